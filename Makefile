# Each target makes its own environment in $(VENV) first; nothing is installed elsewhere.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
NPROCS ?= $(shell nproc)
BIN := $(VENV)/bin

.PHONY: help demo test test-slow lint clean

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

lint: $(VENV)/.test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environment and the demo
	rm -rf $(VENV) $(DEMO)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/.app
