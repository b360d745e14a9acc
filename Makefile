# Needs Python 3.11+, make and (for the tests) git. Every target that runs something makes .venv first and reuses it afterwards.
#   make demo      the main job, headless: reports/quickstart.html
#   make lab       JupyterLab on the notebooks
#   make test      lint, types, tests and all notebooks; `make test-all` adds the checks marked slow
#   make bench     the figures of benchmarks/RESULTS.md; `make studies` adds those that train for hours
#   make book      the notebooks, with outputs, in reports/book
# Another interpreter: make demo PYTHON=python3.12     Other pip options: make setup PIP_FLAGS="--extra-index-url ..."

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(if $(shell $(p) -c $(IS_NEW) 2>/dev/null),$(p),)) python3)
WORKERS ?= 2
PIP_FLAGS ?=
PYTEST_FLAGS ?=
ARGS ?=

IS_NEW := "import sys; sys.version_info >= (3, 11) and print(1)"
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==[^; ]*\).*/\1/p' requirements.lock)
# The stamp's name holds a checksum of what the environment is made from and of where it lies (a venv cannot be moved).
STAMP := $(VENV)/.stamp-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | cut -d' ' -f1)
# One thread per test process: with two processes on two cores more threads only get in each other's way.
TEST_ENV := WORKBENCH_FAST=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --nbmake --nbmake-timeout=180 --doctest-modules

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test test-all notebooks bench studies book lint format lock clean distclean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c $(IS_NEW) 2>/dev/null | grep -q 1 || { echo "The workbench needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@if [ -d $(VENV) ] && ! $(BIN)/python -c $(IS_NEW) 2>/dev/null | grep -q 1; then echo "$(VENV) is broken or too old; making it anew"; rm -rf $(VENV); fi
	@if [ -e $(VENV)/.home ] && [ "$$(cat $(VENV)/.home)" != "$$(pwd)" ]; then echo "$(VENV) was made in another folder; making it anew"; rm -rf $(VENV); fi
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not make $(VENV); on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@pwd > $(VENV)/.home
	@rm -f $(VENV)/.stamp-*
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-index --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/workbench demo $(ARGS)

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir=notebooks $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy workbench tests
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(PYTEST) tests workbench notebooks $(PYTEST_FLAGS)

test-all: lint
	$(PYTEST) tests workbench notebooks -m "slow or not slow" $(PYTEST_FLAGS)

# tests/test_notebooks.py comes along for its rules, and tests/conftest.py with it for the network block.
notebooks: $(STAMP)
	$(PYTEST) tests/test_notebooks.py notebooks $(PYTEST_FLAGS)

# Each benchmarks/*.py but the shared ones is a script that prints its figures and the command and machine that made them.
SHARED := $(addprefix benchmarks/,results.py repeated.py)
STUDIES := $(addprefix benchmarks/,strategies.py few_labels.py pretraining.py tml.py screening.py deletion.py)
bench: $(STAMP)
	@set -e; for f in $(filter-out $(SHARED) $(STUDIES),$(sort $(wildcard benchmarks/*.py))); do echo "== $$f"; $(BIN)/python $$f $(ARGS); done

studies: $(STAMP)
	@set -e; for f in $(STUDIES); do echo "== $$f"; $(BIN)/python $$f $(ARGS); done

book: $(STAMP)
	@mkdir -p reports/book
	WORKBENCH_FREEZE=1 $(BIN)/jupyter nbconvert --execute --to html --output-dir reports/book \
	  --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.timeout=3600 notebooks/*.ipynb

# Install or upgrade what you want in .venv first; this writes down what is there. No stamp: it must not undo the upgrade.
lock:
	$(BIN)/python .ci/lock.py

clean:
	rm -rf build dist reports .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
