# `make demo` and `make test` set everything up themselves; a second call does not install again.
.PHONY: help demo test quick coverage check docs setup clean

PYTHON ?= python3
BIN := .venv/bin
# Two threads that wait actively for each other waste a small machine.
export OMP_WAIT_POLICY ?= PASSIVE

help:
	@echo 'make demo    train, decompose, prune and fine-tune a small network, in minutes'
	@echo 'make test    all checks and tests'
	@echo 'make quick   the tests that are over in a minute'
	@echo 'make coverage  all tests, and which lines none of them runs'
	@echo 'make check   style, types, and which package may import which'
	@echo 'make docs    the documentation as a site, in docs/_build/html'
	@echo 'make setup   an environment with everything, in .venv'
	@echo 'make clean   remove what these commands made'

demo: setup
	$(BIN)/python -m experiments.pipeline experiment=demo

# A process per core with one thread each: the tensors of the tests are too small to share.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal --durations=20

# Of the other files not even the imports.
quick: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m quick $$(grep -rl 'pytest.mark.quick' tests --include='test_*.py')

# Lines that no test runs; commands that run in processes of their own are not seen.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal --cov=norton --cov=experiments --cov=detection --cov-report=term-missing:skip-covered

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# A warning or a dead link fails.
docs: .venv/.docs
	$(BIN)/sphinx-build -W --keep-going -n -q docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

setup: .venv/.installed

# The stamp is written last, so a stopped installation is repeated.
.venv/.installed: setup.cfg setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv outputs build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
