# The README's commands. Each installs what it needs into a virtual environment first; a second run starts at once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
FLOOR := .venv-floor
EVAL := .venv-eval
WEB := .venv-web
PLUGINS := plugins/tokenprune-knorm plugins/tokenprune-papers plugins/tokenprune-tower
ARGS ?=

.PHONY: help demo web test quick test-all lint docs compatibility test-eval test-web test-floor wheel sdist dist clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/base ## a picture, a question of each kind, with and without pruning (ARGS="--image my.png")
	$(VENV)/bin/tokenprune demo $(ARGS)

web: $(VENV)/base $(WEB)/ready ## the demo as a page on this machine (ARGS="--model MODEL --port 7860")
	PYTHONPATH="$(CURDIR)/$(WEB)" $(VENV)/bin/tokenprune demo --web $(ARGS)

test: lint ## ruff, mypy and pytest (ARGS="-k entropy")
	PYTHONPATH=$(VENV)/int8 $(VENV)/bin/python -m pytest $(ARGS)

test-all: lint ## the same, and tests marked slow
	PYTHONPATH=$(VENV)/int8 $(VENV)/bin/python -m pytest --all $(ARGS)

QUICK := tests/ops tests/plan tests/recipe/test_recipe.py tests/project/test_layering.py tests/model/test_taps.py \
	$(foreach family,llava llava_next video_llava qwen2_5_vl,\
	"tests/decoder/test_oracle.py::test_pruning_equals_masking[$(family)-sdpa-ragged-mixture]")

quick: $(VENV)/dev ## unit tests and one oracle per family, in under a minute
	$(VENV)/bin/python -m pytest $(QUICK) $(ARGS)

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/docs ## site/, the documentation as pages that need no network
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

compatibility: $(VENV)/dev ## docs/compatibility.md, from what the tests do
	PYTHONPATH=$(VENV)/int8 $(VENV)/bin/python -m pytest --write-compatibility

test-eval: $(VENV)/dev $(EVAL)/ready ## pytest of what needs lmms-eval (100 MB to download)
	PYTHONPATH="$(CURDIR)/$(EVAL)" $(VENV)/bin/python -m pytest tests/lab/test_eval.py $(ARGS)

test-web: $(VENV)/dev $(WEB)/ready ## pytest of the page, in a Chromium if there is one (150 MB to download)
	PYTHONPATH="$(CURDIR)/$(WEB)" $(VENV)/bin/python -m pytest tests/lab/test_web.py $(ARGS)

test-floor: $(FLOOR)/dev ## pytest with the oldest supported transformers
	PYTHONPATH=$(FLOOR)/int8 $(FLOOR)/bin/python -m pytest $(ARGS)

wheel: $(VENV)/dev ## dist/*.whl, configs inside
	$(VENV)/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

sdist: $(VENV)/dev ## dist/*.tar.gz
	$(VENV)/bin/python -m hatchling build --target sdist --directory dist

dist: $(VENV)/release ## wheel and sdist of this version alone, checked by twine
	rm -rf dist
	$(MAKE) wheel sdist
	$(VENV)/bin/python -m twine check --strict dist/*

clean: ## remove environments, caches and builds
	@for folder in $(VENV) $(FLOOR) $(EVAL) $(WEB); do $(call discard,$$folder); done
	rm -rf $(WEB).new $(EVAL).new dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis demo site

# An environment is whole where its stamps are (base, dev, docs, release). While pip works in it they lie in
# `unfinished`: whatever ends that, nothing half made passes for ready, and the next make starts it afresh. Where pip
# fails it leaves what was there, so the stamps go back. A folder of packages alone is made beside its place and renamed
# once it is whole. What each is for is imported before it counts as ready.
PIP := -I -m pip --disable-pip-version-check install --quiet
IMPORT := -c 'import sys, importlib; [importlib.import_module(name) for name in sys.argv[1:]]'
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
discard = rm -rf $(1).old; [ ! -e $(1) ] || mv $(1) $(1).old; rm -rf $(1).old

# $(call environment,FOLDER): made, if it is not there
define environment
@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { echo >&2 \
	"make: tokenprune needs a Python from 3.10 to 3.13, and $(PYTHON) is none: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	exit 1; }
@if [ -e $(1)/unfinished ]; then \
	maker=$$(cat $(1)/unfinished/make 2>&- || :); \
	if [ -n "$$maker" ] && kill -0 "$$maker" 2>&-; then echo >&2 \
		"make: process $$maker is installing into $(1): wait for it, or remove $(1) if that is no make."; \
		exit 1; \
	fi; \
	echo "$(1) was not finished: it is made afresh"; $(call discard,$(1)); \
fi
@ours=$$($(PYTHON) $(VERSION)); \
if [ ! -e $(1) ]; then mkdir -p $(1)/unfinished; echo $$PPID > $(1)/unfinished/make; \
elif theirs=$$($(1)/bin/python $(VERSION) 2>&1 || :); [ "$$theirs" != "$$ours" ]; then echo >&2 \
	"make: the Python of $(1) ($$theirs) is not $(PYTHON) ($$ours): remove $(1), or name its Python by PYTHON="; \
	exit 1; \
fi; \
$(1)/bin/python -I -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(1)
endef

# $(call install,FOLDER,what,modules): into an environment
define install
@trap 'exit 130' HUP INT TERM; \
back() { rm $(1)/unfinished/make; for stamp in $$(ls $(1)/unfinished); do mv $(1)/unfinished/$$stamp $(1); done; \
	rmdir $(1)/unfinished; }; \
echo 'installing into $(1): $(2)'; \
mkdir -p $(1)/unfinished; echo $$PPID > $(1)/unfinished/make; \
for stamp in base dev docs release; do [ ! -e $(1)/$$stamp ] || mv $(1)/$$stamp $(1)/unfinished; done; \
$(1)/bin/python $(PIP) -c $(1)/constraints.txt $(2) || { back; $(no_pip); }; \
$(1)/bin/python -I $(IMPORT) $(3) || { $(no_import); }; \
touch $(1)/unfinished/$(@F); back
endef

# $(call beside,FOLDER,ENVIRONMENT,what,modules[,what goes in without its dependencies]): packages in a folder. What a
# list pins wins over constraints.txt.
define beside
@trap 'exit 130' HUP INT TERM; \
echo 'installing into $(1): $(3) $(5)'; \
rm -rf $(1).new; mkdir $(1).new; \
awk -F== 'FILENAME != "constraints.txt" { if (NF > 1) own[$$1]; next } !($$1 in own)' \
	$(filter %.txt,$(3)) constraints.txt > $(1).new/constraints.txt; \
pip() { $(2)/bin/python $(PIP) --target $(1).new -c $(1).new/constraints.txt "$$@"; }; \
{ pip $(3)$(if $(5), && pip --upgrade --no-deps $(5)); } || { $(no_pip); }; \
(cd $(1).new; "$(CURDIR)/$(2)/bin/python" $(IMPORT) $(4)) || { $(no_import); }; \
touch $(1).new/ready; rm -f $(1)/ready; rm -rf $(1); mv $(1).new $(1)
endef

no_pip = echo >&2 "make: pip could not install into $(1), its reason stands above. It needs a package index over the" \
	"network (PyPI, or what pip is set to). Nothing is broken: what was there is as it was; try again later."; exit 1
no_import = echo >&2 "make: what was installed into $(1) cannot be imported, see above;" \
	"the next make starts it afresh."; exit 1

$(FLOOR)/base: PINS := s/^transformers==.*/transformers==5.19.0/
$(VENV)/base $(FLOOR)/base: pyproject.toml constraints.txt Makefile
	$(call environment,$(@D))
	@sed '$(PINS)' constraints.txt > $(@D)/constraints.txt
	$(call install,$(@D),-e .,tokenprune.api tokenprune.cli)

$(VENV)/dev $(FLOOR)/dev: %/dev: %/base %/int8/ready %/vision/ready $(PLUGINS:=/pyproject.toml)
	$(call install,$(@D),-e ".[dev]" $(PLUGINS:%=-e %),hatch_fancy_pypi_readme hatchling hypothesis ipykernel \
	matplotlib.pyplot mypy nbclient peft pytest ruff scipy sklearn tokenprune_knorm tokenprune_papers tokenprune_tower)

$(VENV)/docs: $(VENV)/base
	$(call install,$(@D),-e ".[docs]",material mkdocs mkdocstrings_handlers.python)

$(VENV)/release: $(VENV)/dev
	$(call install,$(@D),-e ".[release]",hatch_fancy_pypi_readme hatchling twine)

# Apart: where it lies beside transformers, every command imports it.
$(VENV)/int8/ready $(FLOOR)/int8/ready: %/int8/ready: %/base
	$(call beside,$(@D),$*,--no-deps torchao,torchao)

# Apart: it does not fit a CPU build of torch, and transformers takes it wherever it is found. How processes of tests
# get it all the same is in tests/support/torchvision_ops.py.
$(VENV)/vision/ready $(FLOOR)/vision/ready: export PYTHONPATH := $(CURDIR)/tests/support
$(VENV)/vision/ready $(FLOOR)/vision/ready: %/vision/ready: %/base
	$(call beside,$(@D),$*,--no-deps torchvision,torchvision_ops torchvision.transforms.v2.functional)

# Apart, and lmms-eval without its dependencies: they bring a second torch, and a torchvision that breaks beside a CPU
# build.
$(EVAL)/ready: $(VENV)/dev tests/eval-requirements.txt
	$(call beside,$(@D),$(VENV),-r tests/eval-requirements.txt,tokenprune.lab.evaluation.run,lmms_eval==0.7.3)

# Apart: Gradio asks for an older pillow.
$(WEB)/ready: $(VENV)/base tests/web-requirements.txt
	$(call beside,$(@D),$(VENV),-r tests/web-requirements.txt,gradio matplotlib.pyplot playwright.sync_api tokenprune.lab.web)
