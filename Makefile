# make               everything: .venv, toy data and encoders, every run, every figure
# make test          lint and tests
# make check         the accuracy claims, read from results/
# make clean         removes caches and figures; never data, weights or results
# make help          these lines
#
# make all DATA=fruits360 CLIP="RN101 ViT-B-32" IMAGENET="resnet101"     the same on data/fruits360, or on any folder of class folders
# make all PYTHON=python                              in your own environment, where nothing is installed

PYTHON ?= .venv/bin/python
DATA   ?= toy
NAME   := $(notdir $(DATA:%/=%))
CLIP   ?= $(if $(filter toy,$(NAME)),toy-ViT toy-RN,RN101 ViT-B-32)
IMAGENET ?= $(if $(filter toy,$(NAME)),toy-imagenet,resnet101 efficientnet_b7 vit_b_32)

# fine-tuning: small encoders bear, and need, larger steps than finetune.py's defaults (chosen on held-out training images)
TUNE   ?= $(if $(filter toy,$(NAME)),--lr 5e-4 --epochs 16)

# upsampling: a small generator for small pictures; CLIP models to compare on bicubic and SRGAN, none with UPSAMPLED=
SRGAN  ?= $(if $(filter toy,$(NAME)),--blocks 4 --width 32 --epochs 8 --adversarial 4)
UPSAMPLED ?= $(CLIP)

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
ZERO_SHOT := $(CLIPS:%=results/zero_shot/%.json) $(ENLARGED:%=results/zero_shot/%.json)
GRIDS     := $(CLIPS:%=figures/zero_shot/%.png)
PROMPTS   := $(CLIPS:%=results/prompts/%.json)
PROBES    := $(ALL:%=results/linear_probe/%.json) $(ENLARGED:%=results/linear_probe/%.json)
FEW_SHOT  := $(ALL:%=results/few_shot/%.json)
ML        := $(ALL:%=results/finetune/%-ml.json) $(ENLARGED:%=results/finetune/%-ml.json)
CS        := $(CLIPS:%=results/finetune/%-cs.json) $(ENLARGED:%=results/finetune/%-cs.json)
RESTORED  := $(if $(UPSAMPLED),results/upsample/$(NAME)/eval.json)
RUNS      := $(ZERO_SHOT) $(PROMPTS) $(PROBES) $(FEW_SHOT) $(ML) $(CS)

# --data of a run: DATA may be a path, of which NAME is the last part
OF = $(if $(filter $(NAME),$(*D)),$(DATA),$(*D))

.PHONY: all test check clean help
.DELETE_ON_ERROR:

all: $(RUNS) $(GRIDS) $(RESTORED)

$(foreach run,$(RUNS),$(if $(findstring /$(NAME)-srgan/,$(run)),$(run))): | data/$(NAME)-srgan/upsample.json

$(ZERO_SHOT): results/zero_shot/%.json: | $(ENV) $(WORLD)
	$(PYTHON) zero_shot.py --data $(OF) --model $(*F) --out $@

$(GRIDS): figures/zero_shot/%.png: results/zero_shot/%.json
	$(PYTHON) zero_shot.py --data $(OF) --model $(*F) --grid $@

$(PROMPTS): results/prompts/%.json: | $(ENV) $(WORLD)
	$(PYTHON) prompts.py --data $(OF) --model $(*F) --out $@

$(PROBES): results/linear_probe/%.json: | $(ENV) $(WORLD)
	$(PYTHON) linear_probe.py --data $(OF) --model $(*F) --save $(@:.json=.safetensors) --out $@

$(FEW_SHOT): results/few_shot/%.json: | $(ENV) $(WORLD)
	$(PYTHON) few_shot.py --data $(OF) --model $(*F) --out $@

# starts from the head of the probe; one seed
$(ML): results/finetune/%-ml.json: | results/linear_probe/%.json $(ENV) $(WORLD)
	$(PYTHON) finetune.py --data $(OF) --model $(*F) --method ml --head results/linear_probe/$*.safetensors $(TUNE) --out $@

$(CS): results/finetune/%-cs.json: | $(ENV) $(WORLD)
	$(PYTHON) finetune.py --data $(OF) --model $(*F) --method cs $(TUNE) --out $@

weights/srgan-$(NAME).safetensors: | $(ENV) $(WORLD)
	$(PYTHON) upsample.py train --data $(DATA) $(SRGAN) --save $@ --out results/upsample/$(NAME)/train.json

results/upsample/$(NAME)/eval.json: | weights/srgan-$(NAME).safetensors
	$(PYTHON) upsample.py eval --data $(DATA) --weights weights/srgan-$(NAME).safetensors --grid figures/upsample/$(NAME).png --out $@

# the mark of a data set that is whole
data/$(NAME)-srgan/upsample.json: | weights/srgan-$(NAME).safetensors
	$(PYTHON) upsample.py apply --data $(DATA) --weights weights/srgan-$(NAME).safetensors

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

clean:
	rm -rf cache figures .pytest_cache .ruff_cache __pycache__ */__pycache__

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
