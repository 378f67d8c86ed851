# Every target sets itself up: Python 3.11 or newer and make are all that is needed, and everything stays in .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The tests start hundreds of Python processes: compiling all modules anew would be half of the start of each.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that is new enough and can create virtual environments; `make PYTHON=…` overrules it.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
IS_SUITABLE := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for each in $(CANDIDATES); do "$$each" $(IS_SUITABLE) && { echo "$$each"; break; }; done)

SEEDS ?= 100000
FRAMES ?= 1000000
JOBS ?= 2
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
CHECKED = $(wildcard src tests benchmarks examples)
SOURCES := $(shell find src -name '*.py')
# A process of pytest that died is not replaced: what waits for its results might wait for ever.
IN_PARALLEL = -n $(JOBS) --dist loadfile --max-worker-restart 0
COMPILED_TESTS := tests/unit tests/processes/test_kill.py tests/processes/test_disk.py tests/processes/test_attached.py

# What can be compiled here is: benchmarks measure what released wheels contain. `COMPILED=no` measures the sources.
CAN_COMPILE := -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h")).close()' 2>/dev/null
COMPILED ?= $(shell command -v cc >/dev/null && "$(PYTHON)" $(CAN_COMPILE) && echo yes || echo no)
MEASURED = $(if $(filter yes,$(COMPILED)),.compiled,.venv)

.PHONY: help demo test test-compiled check format bench simulate fuzz load clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## Watch four nodes survive the death of their primary (under a minute)
	@.venv/bin/hotspare demo

test: .venv/.installed-dev ## Run the tests (at most eight minutes on two cores)
	@.venv/bin/python -m pytest $(IN_PARALLEL) $(ARGS)

test-compiled: .compiled/.installed-dev ## Compile hotspare, and run the tests of it that take no source
	@.compiled/bin/python -m tests.simulation --seeds 300
	@.compiled/bin/python -m pytest $(IN_PARALLEL) $(or $(ARGS),$(COMPILED_TESTS))

check: .venv/.installed-dev ## Check format, lint and types
	@.venv/bin/ruff format --check $(CHECKED)
	@.venv/bin/ruff check $(CHECKED)
	@.venv/bin/mypy $(CHECKED)

format: .venv/.installed-dev ## Format the code, and fix what the linter can
	@.venv/bin/ruff check --fix $(CHECKED)
	@.venv/bin/ruff format $(CHECKED)

bench: .venv/.installed-dev ## Run the benchmarks at full size, compiled where there is a C compiler
	@environment=$(MEASURED) && $(MAKE) --no-print-directory $$environment/.installed-dev \
		&& $$environment/bin/python -m benchmarks $(ARGS)

simulate: .venv/.installed-dev ## Simulate whole clusters under faults: make simulate SEEDS=100000
	@.venv/bin/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

fuzz: .venv/.installed-dev ## Throw bad frames at nodes and stores: make fuzz FRAMES=1000000
	@.venv/bin/python -m tests.fuzz --frames $(FRAMES) $(ARGS)

load: .venv/.installed-dev ## Run the long load test
	@.venv/bin/python -m tests.load $(ARGS)

clean: ## Remove the virtual environment and everything the tools left behind
	@rm -rf .venv .compiled build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@if ! "$(PYTHON)" $(IS_SUITABLE); then \
		found="$$("$(or $(PYTHON),python3)" --version 2>&1 || true)"; \
		echo "hotspare needs Python 3.11 or newer with its venv module; found: $$found" >&2; \
		echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@echo "Creating .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "Installing hotspare into .venv ..."
	@$(PIP) install --editable '.[fast]'
	@touch $@

# A superset of the above. Dependency groups need a newer pip than Python 3.11 brings along.
.venv/.installed-dev: pyproject.toml | .venv/bin/python
	@echo "Installing hotspare and its development tools into .venv ..."
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable '.[fast]' --group dev
	@touch .venv/.installed $@

# An environment with the wheel for this machine instead of the sources.
.compiled/.installed-dev: pyproject.toml $(SOURCES) | .venv/.installed-dev
	@echo "Compiling hotspare into .compiled (takes some minutes) ..."
	@rm -rf .compiled
	@.venv/bin/python -m venv .compiled
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=true .venv/bin/python -m build --outdir .compiled/dist . > .compiled/build.log 2>&1 \
		|| { tail -n 20 .compiled/build.log; echo "It cannot be compiled here; COMPILED=no goes without." >&2; exit 1; }
	@.compiled/bin/python -m pip --disable-pip-version-check --quiet install --upgrade 'pip>=25.1'
	@.compiled/bin/python -m pip --disable-pip-version-check --quiet install .compiled/dist/*.whl --group dev
	@touch $@
