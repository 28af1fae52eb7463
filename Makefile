# make               everything: .venv, toy data and encoders, every run, every figure
# make test          lint and tests
# make check         the accuracy claims, read from results/
# make clean         removes caches and figures; never data, weights or results
# make help          these lines
#
# make all DATA=fruits360 MODELS="RN101 ViT-B-32"     the same on data/fruits360, or on any folder of class folders
# make all PYTHON=python                              in your own environment, where nothing is installed

PYTHON ?= .venv/bin/python
DATA   ?= toy
NAME   := $(notdir $(DATA:%/=%))
MODELS ?= $(if $(filter toy,$(NAME)),toy-ViT toy-RN,RN101 ViT-B-32)

ifeq ($(PYTHON),.venv/bin/python)
ENV      := .venv/installed
TEST_ENV := .venv/installed-tests
endif
ifneq ($(filter toy,$(DATA))$(filter toy-%,$(MODELS)),)
WORLD := weights/toy-imagenet.pt
endif

RESULTS := $(MODELS:%=results/zero_shot/$(NAME)/%.json)
GRIDS   := $(MODELS:%=figures/zero_shot/$(NAME)/%.png)

.PHONY: all test check clean help
.DELETE_ON_ERROR:

all: $(RESULTS) $(GRIDS)

$(RESULTS): results/zero_shot/$(NAME)/%.json: | $(ENV) $(WORLD)
	$(PYTHON) zero_shot.py --data $(DATA) --model $* --out $@

$(GRIDS): figures/zero_shot/$(NAME)/%.png: results/zero_shot/$(NAME)/%.json
	$(PYTHON) zero_shot.py --data $(DATA) --model $* --grid $@

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

check: results/toy_world.json | $(TEST_ENV)
	$(PYTHON) -m pytest -q tests/check_claims.py

results/toy_world.json: | $(TEST_ENV) $(WORLD)
	$(PYTHON) bench/toy_world.py --out $@

clean:
	rm -rf cache figures .pytest_cache .ruff_cache __pycache__ */__pycache__

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
