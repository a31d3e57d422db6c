# The README's commands. Each installs what it needs into a virtual environment first; a second run starts at once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
FLOOR := .venv-floor
EVAL := .venv-eval
WEB := .venv-web
INT8 = --no-deps --target $(@D)/int8 torchao  # apart: where it lies, transformers imports it with every command
PIP := -m pip --disable-pip-version-check install --quiet
PLUGINS := plugins/tokenprune-knorm plugins/tokenprune-papers plugins/tokenprune-tower
ARGS ?=

.PHONY: help demo web test lint docs compatibility test-eval test-web test-floor wheel sdist dist clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/base ## a picture, a question of each kind, with and without pruning (ARGS="--image my.png")
	$(VENV)/bin/tokenprune demo $(ARGS)

web: $(WEB)/ready ## the demo as a page on this machine (ARGS="--model MODEL --port 7860")
	PYTHONPATH=$(CURDIR)/$(WEB) $(VENV)/bin/tokenprune demo --web $(ARGS)

test: lint ## ruff, mypy and pytest (ARGS="-k entropy")
	PYTHONPATH=$(VENV)/int8 $(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/docs ## site/, the documentation as pages that need no network
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

compatibility: $(VENV)/dev ## docs/compatibility.md, from what the tests do
	PYTHONPATH=$(VENV)/int8 $(VENV)/bin/python -m pytest --write-compatibility

test-eval: $(EVAL)/ready ## pytest of what needs lmms-eval (80 MB to download)
	PYTHONPATH=$(CURDIR)/$(EVAL) $(VENV)/bin/python -m pytest tests/test_eval.py $(ARGS)

test-web: $(WEB)/ready ## pytest of the page, in a Chromium if there is one (100 MB to download)
	PYTHONPATH=$(CURDIR)/$(WEB) $(VENV)/bin/python -m pytest tests/test_web.py $(ARGS)

test-floor: $(FLOOR)/dev ## pytest with the oldest supported transformers
	PYTHONPATH=$(FLOOR)/int8 $(FLOOR)/bin/python -m pytest $(ARGS)

wheel: $(VENV)/dev ## dist/*.whl, configs inside
	$(VENV)/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

sdist: $(VENV)/dev ## dist/*.tar.gz
	$(VENV)/bin/python -m hatchling build --target sdist --directory dist

dist: $(VENV)/release ## wheel and sdist of this version alone, checked by twine
	rm -rf dist
	$(MAKE) wheel sdist
	$(VENV)/bin/python -m twine check --strict dist/*

clean: ## remove environments, caches and builds
	rm -rf $(VENV) $(FLOOR) $(EVAL) $(WEB) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis demo site

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/base $(PLUGINS:=/pyproject.toml)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[dev]" $(PLUGINS:%=-e %)
	$(VENV)/bin/python $(PIP) -c constraints.txt $(INT8)
	touch $@

$(VENV)/docs: $(VENV)/base
	$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)/release: $(VENV)/dev
	$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[release]"
	touch $@

$(FLOOR)/dev: pyproject.toml constraints.txt $(PLUGINS:=/pyproject.toml)
	$(PYTHON) -m venv $(FLOOR)
	sed 's/^transformers==[^ ]*/transformers==5.19.0/' constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python $(PIP) -c $(FLOOR)/constraints.txt -e ".[dev]" $(PLUGINS:%=-e %)
	$(FLOOR)/bin/python $(PIP) -c constraints.txt $(INT8)
	touch $@

$(EVAL)/ready: $(VENV)/dev tests/eval-requirements.txt
	rm -rf $(EVAL)
	$(VENV)/bin/python $(PIP) --no-deps --target $(EVAL) -r tests/eval-requirements.txt
	touch $@

$(WEB)/ready: $(VENV)/dev tests/web-requirements.txt
	rm -rf $(WEB)
	$(VENV)/bin/python $(PIP) --no-deps --target $(WEB) -r tests/web-requirements.txt
	touch $@
