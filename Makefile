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

ifeq ($(PYTHON),.venv/bin/python)
ENV      := .venv/installed
TEST_ENV := .venv/installed-tests
endif
ifneq ($(filter toy,$(DATA))$(filter toy-%,$(CLIP) $(IMAGENET)),)
WORLD := weights/toy-imagenet.pt
endif

ZERO_SHOT := $(CLIP:%=results/zero_shot/$(NAME)/%.json)
GRIDS     := $(CLIP:%=figures/zero_shot/$(NAME)/%.png)
PROMPTS   := $(CLIP:%=results/prompts/$(NAME)/%.json)
PROBES    := $(CLIP:%=results/linear_probe/$(NAME)/%.json) $(IMAGENET:%=results/linear_probe/$(NAME)/%.json)
ML        := $(CLIP:%=results/finetune/$(NAME)/%-ml.json) $(IMAGENET:%=results/finetune/$(NAME)/%-ml.json)
CS        := $(CLIP:%=results/finetune/$(NAME)/%-cs.json)
FEW_SHOT  := $(CLIP:%=results/few_shot/$(NAME)/%.json) $(IMAGENET:%=results/few_shot/$(NAME)/%.json)

.PHONY: all test check clean help
.DELETE_ON_ERROR:

all: $(ZERO_SHOT) $(GRIDS) $(PROMPTS) $(PROBES) $(FEW_SHOT) $(ML) $(CS)

$(ZERO_SHOT): results/zero_shot/$(NAME)/%.json: | $(ENV) $(WORLD)
	$(PYTHON) zero_shot.py --data $(DATA) --model $* --out $@

$(GRIDS): figures/zero_shot/$(NAME)/%.png: results/zero_shot/$(NAME)/%.json
	$(PYTHON) zero_shot.py --data $(DATA) --model $* --grid $@

$(PROMPTS): results/prompts/$(NAME)/%.json: | $(ENV) $(WORLD)
	$(PYTHON) prompts.py --data $(DATA) --model $* --out $@

$(PROBES): results/linear_probe/$(NAME)/%.json: | $(ENV) $(WORLD)
	$(PYTHON) linear_probe.py --data $(DATA) --model $* --save $(@:.json=.safetensors) --out $@

$(FEW_SHOT): results/few_shot/$(NAME)/%.json: | $(ENV) $(WORLD)
	$(PYTHON) few_shot.py --data $(DATA) --model $* --out $@

# starts from the head of the probe; one seed
$(ML): results/finetune/$(NAME)/%-ml.json: | results/linear_probe/$(NAME)/%.json $(ENV) $(WORLD)
	$(PYTHON) finetune.py --data $(DATA) --model $* --method ml --head results/linear_probe/$(NAME)/$*.safetensors $(TUNE) --out $@

$(CS): results/finetune/$(NAME)/%-cs.json: | $(ENV) $(WORLD)
	$(PYTHON) finetune.py --data $(DATA) --model $* --method cs $(TUNE) --out $@

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
