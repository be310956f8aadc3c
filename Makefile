# Two commands are all a newcomer needs:   make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test tests check lint format types benchmark benchmark-setup clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("NextMove needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/nextmove demo

# Types are checked beside the tests, a minute in which these wait for brokers.
test: setup lint
	$(MAKE) --no-print-directory --jobs 2 types tests

# Two at a time, each file's tests together; torch with one thread in each, for two that share a busy core wait for each other.
tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

benchmark: benchmark-setup
	$(BIN)/python -m benchmarks.stream
	$(BIN)/python -m benchmarks.engine

# The peers want other versions than ours of the same packages: they get an interpreter of their own.
benchmark-setup: setup .venv-peers/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'

.venv-peers/ready: benchmarks/stream/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement $<
	touch $@

clean:
	rm -rf .venv .venv-peers build *.egg-info .mypy_cache .ruff_cache .pytest_cache
