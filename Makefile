# Every target makes the environment that it needs, once, from Python and pip alone.
#
#   make quickstart   train a real model on real data, evaluate it, show what it learned
#   make test         the whole test suite                make test-fast   without slow and multi-process tests
#   make test-nvme    what training keeps on a disk: compiles minutes of C++ first, so that no other target does it
#   make check        ruff, mypy --strict, import-linter, generated pages
#   make bench        what options, checkpoints, evaluation, ragged data, the data's random numbers, the loop and
#                     several processes cost
#   make docs         write docs/options.md
#
# PYTHON=python3.12 chooses an interpreter, VENV=path another place for the environment, WORKERS=4 more test processes.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt

# DeepSpeed compiles an operation when it is first used, rather than all of them while it is installed.
export DS_BUILD_OPS := 0

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-nvme check format bench docs clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/.examples
	$(BIN)/python examples/prepare_data.py
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder

test-fast: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder -m "not slow and not distributed"

test-nvme: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nvme -m nvme

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m mainspring.arguments.docs --check docs/options.md

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.benchmarks
	$(BIN)/python benchmarks/arguments.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/data_stream.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/distributed.py

docs: $(VENV)/.dev
	$(BIN)/python -m mainspring.arguments.docs docs/options.md

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# torch comes first and alone: pip then takes the build that this machine's own settings prefer (such as a CPU build),
# and the packages that need torch find it there. The second way of making the environment is for Python
# installations that lack ensurepip, as some distributions ship them.
$(VENV)/.torch: constraints.txt
	@test -x $(BIN)/python || echo "making $(VENV): installing packages takes a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	    rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(INSTALL) --upgrade pip
	$(INSTALL) torch
	@touch $@

$(VENV)/.examples: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[examples]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.benchmarks: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[benchmarks]'
	@touch $@
