# `make demo` and `make test` set everything up themselves; a second call does not install again.
.PHONY: demo test check setup clean

PYTHON ?= python3
BIN := .venv/bin
# Two threads that wait actively for each other waste a small machine.
export OMP_WAIT_POLICY ?= PASSIVE

demo: setup
	$(BIN)/python -m experiments.pipeline experiment=demo

# A process per core with one thread each: the tensors of the tests are too small to share.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: .venv/.installed

# The stamp is written last, so a stopped installation is repeated.
.venv/.installed: setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache
