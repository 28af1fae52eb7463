# make               everything: .venv, toy data and encoders, every run, every figure; started again, what is missing
# make test          lint and tests
# make check         the claims about the toy world, read from results/
# make test-faults   thousands of accidents (damaged files, odd flags and folders, kills, full disks), and a table of what became of them
# make readme        the figures, table and advice of toy into pics/
# make report        results/NAME.report.html: the answer, all results and figures, and how they were made, in one file; DATA=... as below
# make clean         removes caches and figures; never data, weights or results
# make bench         how fast all this is beside what one would run instead, into docs/speed.md: a quarter of an hour on 2 cores
# make check-clip    downloads CLIP and SigLIP, and compares their accuracy on CIFAR with published figures
# make help          these lines
#
# make all DATA=fruits360 CLIP="RN101 ViT-B-32" IMAGENET="resnet101"     the same on data/fruits360, or on any folder of class folders,
#                                                     with frozen encoders; FINETUNE=1 trains them and an SRGAN too;
#                                                     GROUPS='patient(\d+)' are never cut by a split; MARGIN=.01 is a loss that does not matter
# make all DATA=photos.csv MODELS="ViT-B/32 timm:vit_small_patch14_dinov2.lvd142m mine.py:small"     any encoders, in one list: those of
#                                                     CLIP and open_clip:ARCH/TAG, which have captions, are added to CLIP=, others to
#                                                     IMAGENET=; a FILE.py that has captions is named in CLIP=
#                                                     DATA: a folder, photos.csv, photos.zip, photos.tar or torchvision:CIFAR10;
#                                                     LABEL_FROM= and FIT=crop|pad|squash are --label-from and --fit of every run
# make all PYTHON=python                              in your own environment, where nothing is installed

PYTHON ?= .venv/bin/python
DATA   ?= toy

# slips of the pen that would start another study
$(foreach name,data model models MODEL,$(if $(filter command,$(origin $(name))),$(error $(name)= means nothing here: say DATA= or MODELS=)))
ifeq ($(strip $(DATA)),)
$(error DATA= is empty: name a folder, or leave it out for the toy world)
endif

# make takes a space for the end of a name
ifneq ($(word 2,$(DATA)),)
FOUND := $(or $(wildcard data/$(subst $() ,\ ,$(DATA))),$(DATA))
LINK  := $(subst $() ,-,$(notdir $(DATA:%/=%)))
$(error DATA="$(DATA)" has a space, at which make ends a name: rename the folder, or link to it by \
mkdir -p data && ln -s "$$(cd "$(FOUND)" && pwd)" data/$(LINK) and say DATA=$(LINK))
endif

# DATA may be a path, an archive, a table or torchvision:NAME; its last part, without what says which, is the name of its results
FILES := $(filter %.csv %.zip %.tar torchvision:%,$(DATA))
NAME  := $(notdir $(patsubst torchvision:%,%,$(DATA:%/=%)))
ifdef FILES
NAME  := $(patsubst %.csv,%,$(patsubst %.zip,%,$(patsubst %.tar,%,$(NAME))))
endif

# of one list of encoders those that have captions, and the rest; then there are no defaults
MODELS ?=
ifneq ($(MODELS),)
CAPTIONED := RN50% RN101 ViT-B/% ViT-B-% ViT-L/% ViT-L-% toy-ViT toy-RN open_clip:%
CLIP     ?=
IMAGENET ?=
override CLIP     := $(strip $(CLIP) $(filter-out $(CLIP) $(IMAGENET),$(filter $(CAPTIONED),$(MODELS))))
override IMAGENET := $(strip $(IMAGENET) $(filter-out $(CLIP) $(IMAGENET) $(CAPTIONED),$(MODELS)))
endif

# what is compared, and how, where the command line does not say it (?=)
ifeq ($(NAME),toy)
CLIP     ?= toy-ViT toy-RN
IMAGENET ?= toy-imagenet
FINETUNE ?= 1
# small encoders bear, and need, larger steps (chosen on held-out training images) and more epochs than finetune.py's default,
# and small pictures a small SRGAN
RATES    ?= 5e-4
TUNE     ?= --epochs 8
SRGAN    ?= --blocks 4 --width 32 --epochs 5 --adversarial 3
# so small that two runs, each on a core, take less time than one after the other on both
JOBS     ?= 2
else
CLIP     ?= RN101 ViT-B-32
IMAGENET ?= resnet101 efficientnet_b7 vit_b_32
# training networks takes a GPU, or patience
FINETUNE ?= 0
# learning rates that validation chooses among
RATES    ?= 1e-5 1e-4
endif

# runs at a time; of several, each has one thread and says what it has to say at its end
JOBS ?= 1
ifneq ($(JOBS),1)
SIDE_BY_SIDE = OMP_NUM_THREADS=1 # a space
TURNS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS) $(if $(filter output-sync,$(.FEATURES)),--output-sync=target))
# small runs are forks of a process that has imported torch: not of those that are only shown (-n), nor by a make that is too old
ifeq ($(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS))))$(word 2,$(PYTHON)),)
ifneq ($(filter output-sync,$(.FEATURES)),)
WARM  = $(PYTHON) bench/warm.py --while # a space
FORKS = SHELL=$(PYTHON) .SHELLFLAGS=bench/warm.py
endif
endif
endif

# what no split may cut, a regular expression or a .csv file (--groups); the loss of accuracy that does not matter
GROUPS ?=
MARGIN ?= .02
# the regular expression that tells a label from a file's name (--label-from); how a picture becomes a square (--fit)
LABEL_FROM ?=
FIT ?=

# 0 is for people; make knows empty and not empty
override FINETUNE := $(filter-out 0,$(FINETUNE))
# CLIP models to compare on bicubic and SRGAN, none with UPSAMPLED=; enlarged copies of what a .csv lists have other names, and plot.py
# compares pictures by their names
ifdef FINETUNE
ifeq ($(filter %.csv,$(DATA)),)
UPSAMPLED ?= $(CLIP)
endif
endif

ifeq ($(strip $(CLIP) $(IMAGENET)),)
$(error CLIP= and IMAGENET= are both empty: name an encoder in one of them, or in MODELS=)
endif

# ViT-B/32, ViT-L/14@336px and mine.py:small as files can be called, from which NAMED finds them again
GIVEN := $(strip $(CLIP) $(IMAGENET) $(filter-out $(CLIP),$(UPSAMPLED)))
NAMED := $(join $(addsuffix =,$(subst :,-,$(subst @,-,$(subst /,-,$(GIVEN))))),$(GIVEN))
override CLIP      := $(subst :,-,$(subst @,-,$(subst /,-,$(CLIP))))
override IMAGENET  := $(subst :,-,$(subst @,-,$(subst /,-,$(IMAGENET))))
override UPSAMPLED := $(subst :,-,$(subst @,-,$(subst /,-,$(UPSAMPLED))))

# in your own environment nothing is installed
ifeq ($(PYTHON),.venv/bin/python)
ENV      := .venv/installed
TEST_ENV := .venv/installed-tests
endif
# toy.py draws the data and trains the encoders, and either may be wanted alone
ifneq ($(filter toy,$(DATA))$(filter toy-%,$(CLIP) $(IMAGENET)),)
WORLD := weights/toy-imagenet.pt
endif

# FOLDER/MODEL of every run: encoders on the data set NAME, which the device enlarges, and CLIP on NAME-srgan, which SRGAN has
CLIPS    := $(CLIP:%=$(NAME)/%)
ALL      := $(CLIPS) $(IMAGENET:%=$(NAME)/%)
ENLARGED := $(UPSAMPLED:%=$(NAME)-srgan/%)

# one result a run
ZERO_SHOT := $(patsubst %,results/zero_shot/%.json,$(CLIPS) $(ENLARGED))
PROMPTS   := $(patsubst %,results/prompts/%.json,$(CLIPS))
PROBES    := $(patsubst %,results/linear_probe/%.json,$(ALL) $(ENLARGED))
FEW_SHOT  := $(patsubst %,results/few_shot/%.json,$(ALL))
ifdef UPSAMPLED
RESTORED  := results/upsample/$(NAME)/eval.json
endif
ifdef FINETUNE
ML        := $(foreach rate,$(RATES),$(patsubst %,results/finetune/%-ml-$(rate).json,$(ALL) $(ENLARGED)))
CS        := $(foreach rate,$(RATES),$(patsubst %,results/finetune/%-cs-$(rate).json,$(CLIPS) $(ENLARGED)))
FROZEN    := $(patsubst %,results/finetune/%-frozen.json,$(ALL))
endif
RUNS      := $(ZERO_SHOT) $(PROMPTS) $(PROBES) $(FEW_SHOT) $(RESTORED) $(ML) $(CS) $(FROZEN)
OF_ENLARGED := $(filter results/zero_shot/$(NAME)-srgan/% results/linear_probe/$(NAME)-srgan/% results/finetune/$(NAME)-srgan/%,$(RUNS))

# rewritten only when a picture, the name of a class or a setting has changed, and then every run is out of date
STAMP    := results/$(NAME).fingerprint
SETTINGS := TUNE=$(TUNE) SRGAN=$(SRGAN) GROUPS=$(GROUPS)$(if $(LABEL_FROM), LABEL_FROM=$(LABEL_FROM))$(if $(FIT), FIT=$(FIT))

# said to all that reads the data, and to all that shows pictures to an encoder
override LABELS := $(if $(LABEL_FROM), --label-from '$(LABEL_FROM)')
override SPLIT  := $(if $(GROUPS), --groups '$(GROUPS)')$(LABELS)
override COMMON := $(SPLIT)$(if $(FIT), --fit $(FIT))

.PHONY: all study test test-slow test-rest test-faults check check-clip bench readme report clean help
.DELETE_ON_ERROR:

# goes on after a run that fails; plot.py draws what there is, says what follows from it, names what is missing, and fails then
all: | $(ENV) $(WORLD)
	$(PYTHON) bench/stamp.py --data $(DATA)$(COMMON) --stamp $(STAMP) --settings '$(SETTINGS)'
ifneq ($(NAME),toy)
	$(PYTHON) bench/estimate.py --data $(DATA)$(LABELS) --stamp $(STAMP) --models $(GIVEN) --runs $(RUNS)
endif
	-$(SIDE_BY_SIDE)$(WARM)$(MAKE) --no-print-directory --keep-going $(TURNS) study $(FORKS)
	-$(PYTHON) bench/speed.py --data $(DATA)$(LABELS)$(if $(FIT), --fit $(FIT)) --models $(GIVEN) --out results/$(NAME).speed.json
	$(PYTHON) plot.py --data $(NAME) --margin $(MARGIN) --stamp $(STAMP) --expect $(RUNS)

# In this order: a run that has to wait for another is tried again only when all have been tried once. So what others wait for (the probes,
# an SRGAN, the pictures that it enlarges) comes so early that it is there when they are tried, and no core is idle.
study: $(filter-out $(OF_ENLARGED),$(ZERO_SHOT)) $(if $(OF_ENLARGED),weights/srgan-$(NAME).safetensors) \
  $(filter-out $(OF_ENLARGED),$(PROMPTS) $(PROBES) $(FEW_SHOT) $(ML)) $(if $(OF_ENLARGED),data/$(NAME)-srgan/upsample.json) \
  $(RUNS)

# only where there is none; `all` looks each time whether it still holds
$(STAMP): | $(ENV) $(WORLD)
	$(PYTHON) bench/stamp.py --data $(DATA)$(COMMON) --stamp $@ --settings '$(SETTINGS)'

$(RUNS) weights/srgan-$(NAME).safetensors: $(STAMP)
$(OF_ENLARGED): data/$(NAME)-srgan/upsample.json

# Of results/SCRIPT/FOLDER/MODEL.json, % and so $* are FOLDER/MODEL, of which $(*D) and $(*F) are the parts. FOLDER is NAME,
# whose place is DATA, or NAME-srgan. All variables of a recipe are worked out when it runs, anew for each result.
WHERE = --data $(patsubst $(NAME),$(DATA),$(*D))
MODEL = --model $(firstword $(patsubst $(*F)=%,%,$(filter $(*F)=%,$(NAMED))))
# the FILE.py of an encoder that has one: what it makes is out of date when it has changed
CODE  = $(wildcard $(filter %.py,$(subst :, ,$(lastword $(MODEL)))))

# prerequisites of $$ are worked out for each result too, as recipes are
.SECONDEXPANSION:

$(ZERO_SHOT): results/zero_shot/%.json: $$(CODE)
	$(PYTHON) zero_shot.py $(WHERE) $(MODEL)$(COMMON) --grid $(@:.json=.png) --out $@

$(PROMPTS): results/prompts/%.json: $$(CODE)
	$(PYTHON) prompts.py $(WHERE) $(MODEL)$(COMMON) --out $@

$(PROBES): results/linear_probe/%.json: $$(CODE)
	$(PYTHON) linear_probe.py $(WHERE) $(MODEL)$(COMMON) --save $(@:.json=.safetensors) --suspects $(@:.json=-suspects.csv) --out $@

$(FEW_SHOT): results/few_shot/%.json: $$(CODE)
	$(PYTHON) few_shot.py $(WHERE) $(MODEL)$(COMMON) --out $@

# FOLDER/MODEL-ml-RATE or FOLDER/MODEL-cs-RATE: what is behind the last -ml- or -cs-, and what is before it
RATE    = $(lastword $(subst -ml-, ,$(subst -cs-, ,$*)))
ENCODER = $(patsubst %-ml-$(RATE),%,$(patsubst %-cs-$(RATE),%,$*))
TUNED   = --model $(firstword $(patsubst $(notdir $(ENCODER))=%,%,$(filter $(notdir $(ENCODER))=%,$(NAMED))))

TUNED_CODE = $(wildcard $(filter %.py,$(subst :, ,$(lastword $(TUNED)))))

# ml starts from the head of the probe
$(ML): results/finetune/%.json: $$(TUNED_CODE) | results/linear_probe/$$(ENCODER).json
	$(PYTHON) finetune.py $(WHERE) $(TUNED)$(COMMON) --method ml --head results/linear_probe/$(ENCODER).safetensors --lr $(RATE) $(TUNE) --out $@

$(CS): results/finetune/%.json: $$(TUNED_CODE)
	$(PYTHON) finetune.py $(WHERE) $(TUNED)$(COMMON) --method cs --lr $(RATE) $(TUNE) --out $@

# a linear layer from nothing, as the curves show it that the trained encoder is compared with
$(FROZEN): results/finetune/%-frozen.json: $$(CODE)
	$(PYTHON) finetune.py $(WHERE) $(MODEL)$(COMMON) --freeze --head random $(TUNE) --out $@

weights/srgan-$(NAME).safetensors:
	$(PYTHON) upsample.py train --data $(DATA)$(SPLIT) $(SRGAN) --save $@ --out results/upsample/$(NAME)/train.json

results/upsample/$(NAME)/eval.json: weights/srgan-$(NAME).safetensors
	$(PYTHON) upsample.py eval --data $(DATA)$(SPLIT) --weights $< --grid $(@:.json=.png) --out $@

# the mark of a data set that is whole; make would delete it when a signal comes just after, and then nobody knew whose pictures these are
.PRECIOUS: data/$(NAME)-srgan/upsample.json
data/$(NAME)-srgan/upsample.json: weights/srgan-$(NAME).safetensors
	$(PYTHON) upsample.py apply --restart --data $(DATA)$(LABELS) --weights $<

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
	$(MAKE) --no-print-directory -j2 test-slow test-rest

# at the same time, each on a core of its own
SLOW := $(wildcard tests/test_[bcdemsz]*.py)
test-slow:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m "not slow" $(SLOW)
test-rest:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m "not slow" $(filter-out $(SLOW),$(wildcard tests/test_*.py))

check: | $(TEST_ENV)
	$(PYTHON) -m pytest -q tests/check_claims.py

test-faults: | $(TEST_ENV)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m slow tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q tests/faults.py tests/determinism.py tests/distributed.py

check-clip: | $(TEST_ENV)
	$(PYTHON) bench/check_clip.py

# the peers are among what the tests need
bench: | $(TEST_ENV)
	$(PYTHON) bench/beside.py --to docs/speed.md

readme: | $(ENV)
	$(PYTHON) plot.py --data toy --to pics --readme pics/README.md

report: | $(ENV)
	$(PYTHON) bench/report.py --data $(NAME) --margin $(MARGIN)

clean:
	rm -rf cache figures .pytest_cache .ruff_cache __pycache__ */__pycache__

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
