# Each target makes its own environment in $(VENV) first; nothing is installed elsewhere.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
NPROCS ?= $(shell nproc)
BIN := $(VENV)/bin
# Of the container: what builds and runs it, which image, and what else to say to the build.
ENGINE ?= docker
TARGET ?= full
IMAGE ?= bids_harmony:$(TARGET)
BUILD_OPTIONS ?=
REVISION = $(shell git rev-parse HEAD)
# Without a user name or password in it.
SOURCE = $(shell git config --get remote.origin.url | sed 's#//[^/@]*@#//#')

.PHONY: help demo test test-slow coverage lint docs pictures image smoke sif smoke-sif clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.app  ## simulate a small dataset, run `participant` on it, say where the reports are
	test -e $(DEMO)/bids/dataset_description.json || \
		$(BIN)/bids_harmony-simulate $(DEMO)/bids --sites 3 --subjects 2 --seed 1 --nprocs $(NPROCS)
	$(BIN)/bids_harmony $(DEMO)/bids $(DEMO)/out participant -w $(DEMO)/work --nprocs $(NPROCS)
	@echo "Open a report: $(abspath $(DEMO))/out/sub-*.html"

test: $(VENV)/.test  ## quick tests
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(VENV)/.test  ## the slow tests, on whole scans
	$(BIN)/python -m pytest -n auto -m slow

coverage: $(VENV)/.test  ## the quick tests, which must reach 90 % of the lines of the packages in pyproject.toml
	$(BIN)/python -m pytest -n auto -m "not slow" --cov --cov-report=term

lint: $(VENV)/.test  ## style, types, layers, spelling and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/deptry bids_harmony workflows
	$(BIN)/deptry --ignore DEP002,DEP004 docs docs/_ext tests tests/faults benchmarks recipes container
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run .ci/smoke .ci/deploy container/*.sh recipes/slurm/*.sh recipes/slurm/*.sbatch
	$(BIN)/check-jsonschema --builtin-schema vendor.circle-ci .circleci/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml

docs: $(VENV)/.docs  ## the pages, in docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -E -b html docs docs/_build/html

pictures: $(VENV)/.test  ## draw the pages' pictures anew, from simulated heads, and their figures
	$(BIN)/python docs/make_pictures.py $(DEMO)/pictures
	$(BIN)/python docs/make_tables.py

image:  ## the container image; TARGET=slim leaves FSL out (docs/container.md)
	$(ENGINE) build --target $(TARGET) --tag $(IMAGE) --build-arg IMAGE=$(IMAGE) \
		--build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' bids_harmony/__init__.py) \
		--build-arg CREATED=$$(git log -1 --format=%cI) --build-arg REVISION=$(REVISION) \
		$(if $(SOURCE),--build-arg SOURCE=$(SOURCE) --build-arg URL=$(SOURCE:.git=) \
		--build-arg DOCUMENTATION=$(SOURCE:.git=)/tree/$(REVISION)/docs) $(BUILD_OPTIONS) .

smoke: $(VENV)/.test  ## try the image: simulated scans, no network, read-only, any user
	ENGINE=$(ENGINE) IMAGE=$(IMAGE) VALIDATOR=$(BIN)/bids-validator-deno .ci/smoke all

sif:  ## Apptainer's image, of the container image saved as image.tar
	apptainer build --force --build-arg BOOTSTRAP=docker-archive --build-arg IMAGE=image.tar \
		bids_harmony.sif Singularity.def

smoke-sif: $(VENV)/.test  ## try Apptainer's image
	ENGINE=apptainer VALIDATOR=$(BIN)/bids-validator-deno .ci/smoke all

clean:  ## remove what these targets made
	rm -rf $(VENV) $(DEMO) docs/_build smoke image.tar bids_harmony.sif

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[simulate]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/.app

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs,simulate]"
	touch $@ $(VENV)/.app
