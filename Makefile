# The developer's interface. CI calls the same commands (.ci/run).
#   make train ARGS="--learner.lr 5e-4"    passes options on
#   make setup PYTHON=python3.12           chooses another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# -qq: errors only. A failed install leaves no stamp, so the next make tries again.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Compiling every module of torch and Ray takes as long as all else here; Python compiles what it imports, where it may.
PIP += $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

# A plain path instead of an import hook, so that type checkers see the packages from anywhere.
EDITABLE := --config-settings editable_mode=compat -e

VENV_STAMP := $(VENV)/.stamp-venv
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
# deploy/__init__.py holds the version, which the installed metadata repeats.
INPUTS := pyproject.toml constraints.txt deploy/__init__.py

NOT_HERE := long or root
# Most tests wait for processes: three at a time, each file's own in one place and in their order.
TOGETHER := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all test-bench chaos lint format bench results-page
.DELETE_ON_ERROR:

help: ## Print this list
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | sed 's/%/NAME/' | expand -t 22

setup: $(DEV_STAMP) ## Make .venv with everything for development
	@echo "qherd: .venv is ready"

train: $(RUN_STAMP) ## Train LunarLander-v3 until solved (ARGS="..." adds options)
	@$(BIN)/qherd train LunarLander-v3 $(ARGS)

test: lint ## Lint, types, unit, contract and short real runs; no root (ARGS="..." goes to pytest)
	$(BIN)/python -m pytest $(TOGETHER) -m "not ($(NOT_HERE) or bench)" $(ARGS)

# Those that need root wait most of their time, on networks and file systems of their own, beside the others.
test-all: test ## Also what is long or needs root
	$(BIN)/python -m pytest $(TOGETHER) -m "$(NOT_HERE)" $(ARGS)

test-bench: $(DEV_STAMP) ## Every benchmark in its quick form, with the peers, which it installs
	$(BIN)/python -m pytest -m bench $(ARGS)

chaos: $(DEV_STAMP) ## Kill, freeze, cut off and spoil parts of a real run, 200 times (ARGS="--seed 3")
	cd tests && ../$(BIN)/python chaos.py $(ARGS)

lint: $(DEV_STAMP) ## Ruff (rules and format) and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP) ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP) ## Print the benchmarks' medians (ARGS="--json FILE" writes them)
	$(BIN)/python -m benchmarks $(ARGS)

results-page: $(DEV_STAMP) ## Make docs/results.md and its pictures from the rows in results/
	$(BIN)/python -m docs.results
	$(BIN)/python -m docs.pictures peers

# results-classic, results-minatar, ...
results-%: $(DEV_STAMP) ## Train the studies of results/NAME in studies/, write their rows (ARGS="--parallel 2")
	$(BIN)/python -m docs.results repeat $* $(ARGS)

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "qherd: needs Python >= 3.11, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "       Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "qherd: making .venv (once)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch has a line of its own because it is most of the download.
$(RUN_STAMP): $(INPUTS) | $(VENV_STAMP)
	@echo "qherd: installing torch (once; the longest step)"
	@$(PIP) torch
	@echo "qherd: installing Ray, Valkey, Gymnasium and the rest (once)"
	@$(PIP) $(EDITABLE) .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@echo "qherd: installing the development tools (once)"
	@$(PIP) $(EDITABLE) '.[dev]'
	@touch $@
