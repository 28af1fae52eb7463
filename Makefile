# make               everything: .venv, toy data and encoders, every run, every figure; started again, what is missing
# make test          lint and tests
# make check         the claims about the toy world, read from results/
# make readme        the figures, table and advice of toy into pics/
# make clean         removes caches and figures; never data, weights or results
# make help          these lines
#
# make all DATA=fruits360 CLIP="RN101 ViT-B-32" IMAGENET="resnet101"     the same on data/fruits360, or on any folder of class folders,
#                                                     with frozen encoders; FINETUNE=1 trains them and an SRGAN too;
#                                                     GROUPS='patient(\d+)' are never cut by a split; MARGIN=.01 is a loss that does not matter
# make all PYTHON=python                              in your own environment, where nothing is installed

PYTHON ?= .venv/bin/python
DATA   ?= toy
NAME   := $(notdir $(DATA:%/=%))
CLIP   ?= $(if $(filter toy,$(NAME)),toy-ViT toy-RN,RN101 ViT-B-32)
IMAGENET ?= $(if $(filter toy,$(NAME)),toy-imagenet,resnet101 efficientnet_b7 vit_b_32)

# what no split may cut, a regular expression or a .csv file (--groups); the loss of accuracy that does not matter
GROUPS ?=
MARGIN ?= .02
override COMMON := $(if $(GROUPS), --groups '$(GROUPS)')

# ViT-B/32 and ViT-L/14@336px as files can be called
override CLIP := $(subst @,-,$(subst /,-,$(CLIP)))

# training networks takes a GPU, or patience, but for toys; CLIP models to compare on bicubic and SRGAN, none with UPSAMPLED=
FINETUNE  ?= $(if $(filter toy,$(NAME)),1,0)
UPSAMPLED ?= $(if $(filter-out 0,$(FINETUNE)),$(CLIP))

# learning rates that validation chooses among; small encoders bear, and need, larger steps (chosen on held-out training images)
RATES ?= $(if $(filter toy,$(NAME)),5e-4,1e-5 1e-4)
# small encoders need more epochs than finetune.py's default, and small pictures a small SRGAN
TUNE  ?= $(if $(filter toy,$(NAME)),--epochs 12)
SRGAN ?= $(if $(filter toy,$(NAME)),--blocks 4 --width 32 --epochs 8 --adversarial 4)

# glibc hands large tensors back after each use and pays for fresh pages at the next; other systems do not know these
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 4000000000

ifeq ($(PYTHON),.venv/bin/python)
ENV      := .venv/installed
TEST_ENV := .venv/installed-tests
endif
ifneq ($(filter toy,$(DATA))$(filter toy-%,$(CLIP) $(IMAGENET)),)
WORLD := weights/toy-imagenet.pt
endif

# NAME/MODEL of every run; the data sets NAME, which the device enlarges, and NAME-srgan
CLIPS     := $(CLIP:%=$(NAME)/%)
ENLARGED  := $(UPSAMPLED:%=$(NAME)-srgan/%)
ALL       := $(CLIPS) $(IMAGENET:%=$(NAME)/%)
ZERO_SHOT := $(patsubst %,results/zero_shot/%.json,$(CLIPS) $(ENLARGED))
PROMPTS   := $(CLIPS:%=results/prompts/%.json)
PROBES    := $(patsubst %,results/linear_probe/%.json,$(ALL) $(ENLARGED))
FEW_SHOT  := $(ALL:%=results/few_shot/%.json)
RESTORED  := $(if $(UPSAMPLED),results/upsample/$(NAME)/eval.json)
ifneq ($(filter-out 0,$(FINETUNE)),)
ML        := $(foreach rate,$(RATES),$(patsubst %,results/finetune/%-ml-$(rate).json,$(ALL) $(ENLARGED)))
CS        := $(foreach rate,$(RATES),$(patsubst %,results/finetune/%-cs-$(rate).json,$(CLIPS) $(ENLARGED)))
FROZEN    := $(ALL:%=results/finetune/%-frozen.json)
endif
RUNS      := $(ZERO_SHOT) $(PROMPTS) $(PROBES) $(FEW_SHOT) $(RESTORED) $(ML) $(CS) $(FROZEN)

# rewritten only when a picture, the name of a class or a setting has changed, and then every run is out of date
STAMP := results/$(NAME).fingerprint
SETTINGS := TUNE=$(TUNE) SRGAN=$(SRGAN) GROUPS=$(GROUPS)
# --data of a run: DATA may be a path, of which NAME is the last part
OF = $(if $(filter $(NAME),$(*D)),$(DATA),$(*D))

.PHONY: all study test check readme clean help
.DELETE_ON_ERROR:

# goes on after a run that fails; plot.py draws what there is, says what follows from it, names what is missing, and fails then
all: | $(ENV) $(WORLD)
	$(PYTHON) bench/estimate.py --data $(DATA) --stamp $(STAMP) --settings '$(SETTINGS)' $(if $(filter-out toy,$(NAME)),--runs $(RUNS))
	-$(MAKE) --no-print-directory --keep-going study
	-$(PYTHON) bench/speed.py --data $(DATA) --models $(CLIP) $(IMAGENET) --out results/$(NAME).speed.json
	$(PYTHON) plot.py --data $(NAME) --margin $(MARGIN) --expect $(RUNS)

study: $(RUNS)

$(STAMP): | $(ENV) $(WORLD)
	$(PYTHON) bench/estimate.py --data $(DATA) --stamp $@ --settings '$(SETTINGS)'

$(RUNS) weights/srgan-$(NAME).safetensors: $(STAMP)
$(foreach run,$(RUNS),$(if $(findstring /$(NAME)-srgan/,$(run)),$(run))): data/$(NAME)-srgan/upsample.json

$(ZERO_SHOT): results/zero_shot/%.json:
	$(PYTHON) zero_shot.py --data $(OF) --model $(*F)$(COMMON) --out $@

$(PROMPTS): results/prompts/%.json:
	$(PYTHON) prompts.py --data $(OF) --model $(*F)$(COMMON) --out $@

$(PROBES): results/linear_probe/%.json:
	$(PYTHON) linear_probe.py --data $(OF) --model $(*F)$(COMMON) --save $(@:.json=.safetensors) --out $@

$(FEW_SHOT): results/few_shot/%.json:
	$(PYTHON) few_shot.py --data $(OF) --model $(*F)$(COMMON) --out $@

# ml starts from the head of the probe; one seed
define TUNED
$(filter %-ml-$(1).json,$(ML)): results/finetune/%-ml-$(1).json: | results/linear_probe/%.json
	$$(PYTHON) finetune.py --data $$(OF) --model $$(*F)$$(COMMON) --method ml --head results/linear_probe/$$*.safetensors --lr $(1) $$(TUNE) --out $$@

$(filter %-cs-$(1).json,$(CS)): results/finetune/%-cs-$(1).json:
	$$(PYTHON) finetune.py --data $$(OF) --model $$(*F)$$(COMMON) --method cs --lr $(1) $$(TUNE) --out $$@
endef
$(foreach rate,$(if $(ML),$(RATES)),$(eval $(call TUNED,$(rate))))

# a linear layer from nothing, as the curves show it that the trained encoder is compared with
$(FROZEN): results/finetune/%-frozen.json:
	$(PYTHON) finetune.py --data $(OF) --model $(*F)$(COMMON) --freeze --head random $(TUNE) --out $@

weights/srgan-$(NAME).safetensors:
	$(PYTHON) upsample.py train --data $(DATA)$(COMMON) $(SRGAN) --save $@ --out results/upsample/$(NAME)/train.json

results/upsample/$(NAME)/eval.json: weights/srgan-$(NAME).safetensors
	$(PYTHON) upsample.py eval --data $(DATA)$(COMMON) --weights $< --out $@

# the mark of a data set that is whole
data/$(NAME)-srgan/upsample.json: weights/srgan-$(NAME).safetensors
	$(PYTHON) upsample.py apply --restart --data $(DATA) --weights $<

# the last file that toy.py writes; order-only, because git and copies keep no file times
weights/toy-imagenet.pt: | $(ENV)
	$(PYTHON) toy.py

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-tests: tests/requirements.txt | .venv/installed
	.venv/bin/python -m pip install --disable-pip-version-check -r tests/requirements.txt
	touch $@

test: | $(TEST_ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest -q tests

check: | $(TEST_ENV)
	$(PYTHON) -m pytest -q tests/check_claims.py

readme: | $(ENV)
	$(PYTHON) plot.py --data toy --to pics --readme pics/README.md

clean:
	rm -rf cache figures .pytest_cache .ruff_cache __pycache__ */__pycache__

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
