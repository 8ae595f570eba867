# GoodDrag. `make demo` and `make test` work on a fresh machine with Python 3.11+ and nothing else.

VENV ?= .venv
# Another interpreter: make demo PYTHON=/path/to/python3.11. Otherwise the first that is new enough.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# pinned: torch as in constraints.txt. system: the torch that $(PYTHON) has already, seen through
# --system-site-packages. auto: system if that torch has a CUDA device, so that a CUDA machine keeps
# the build that fits its driver, else pinned. Changing it needs `make clean` first.
TORCH ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
CONSTRAINTS := $(VENV)/constraints.txt

# Threads that wait spin for a short while only: see src/gooddrag/__init__.py.
export GOMP_SPINCOUNT ?= 3000

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format types experiments bench bench-gpu notebooks clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME)  ## Install, then edit a built-in picture with the built-in model
	@$(BIN)/gooddrag edit

# Two processes of one thread each: the models are small, and threads that share them mostly wait.
test: $(DEV)  ## Install, then all tests but the slow ones, with doctests and coverage
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --durations=15 \
		--cov --cov-report=term:skip-covered

test-slow: $(DEV)  ## The slow tests
	@$(BIN)/python -m pytest -m slow

lint: $(DEV)  ## Style, formatting and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

format: $(DEV)  ## Mend what `make lint` can mend by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(DEV)  ## mypy
	@$(BIN)/mypy src/gooddrag

experiments: $(RUNTIME)  ## Run experiments 01 to 07 (SEEDS=, MINUTES=, OVERRIDES=); goes on where it was
	@GOODDRAG=$(BIN)/gooddrag experiments/run_all.sh $(OVERRIDES)

bench: $(DEV)  ## Measure speed and memory here; writes benchmarks/RESULTS_<machine>.md
	@$(BIN)/python -m benchmarks.run $(BENCH)

bench-gpu: $(DEV)  ## Measure an edit of SD 1.5's size on a CUDA device
	@$(BIN)/python -m benchmarks.gpu $(BENCH)

notebooks: $(DEV)  ## Run the notebooks; with their pictures they are in outputs/notebooks/
	@mkdir -p outputs/notebooks && cp notebooks/*.ipynb outputs/notebooks/
	@cd outputs/notebooks && for book in *.ipynb; do \
		PATH="$(abspath $(BIN)):$$PATH" jupyter-execute --inplace $$book || exit 1; done

clean:  ## Remove the virtual environment and what tools left behind
	rm -rf $(VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# -- installation: stamp files, so that a second `make test` installs nothing -----------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "GoodDrag needs Python 3.11 or newer: give PYTHON=/path/to/python3"; exit 2; }
	@echo "making $(VENV) with $(PYTHON)"
	@if [ "$(call torch)" = system ]; then \
		$(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
		$(PYTHON) -m venv $(VENV); \
	fi

# Beside a system torch, it and what it brought along stay unpinned.
$(CONSTRAINTS): constraints.txt | $(BIN)/python
	@if grep -q 'include-system-site-packages = true' $(VENV)/pyvenv.cfg; then \
		grep -vE '^(torch|triton|sympy|mpmath|networkx|setuptools)==' constraints.txt > $@; \
	else \
		cp constraints.txt $@; \
	fi

$(RUNTIME): setup.cfg $(CONSTRAINTS)
	@echo "installing (a few minutes the first time)"
	@$(PIP) --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(DEV): setup.cfg $(CONSTRAINTS)
	@echo "installing with the development tools (a few minutes the first time)"
	@$(PIP) --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $(RUNTIME) $@

torch = $(if $(filter auto,$(TORCH)),$(shell $(PYTHON) -c \
	'import torch; print("system" if torch.cuda.is_available() else "pinned")' 2>/dev/null || echo pinned),$(TORCH))
