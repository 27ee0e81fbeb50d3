# The commands of the project. Everything is set up inside this directory; nothing needs root.
#
#   make demo          the service on a simulated exchange, with its page
#   make test          all tests (what is missing on this machine skips its tests with a reason)
#   make sim SEEDS=N   the whole service under virtual time, N seeds
#   make test-long     before a release: many times as many examples, 2,000 seeds, ten minutes of fuzzing a target (hours)
#   make fuzz          structured fuzzing of all that reads data from outside, SECONDS a target
#   make lint          style, types, who may import whom
#   make types         the message types of the page, generated from the schemas of the service
#   make reference     the generated parts of the documents, from the code
#   make test-clients  unmodified third-party clients against the simulated exchange
#   make test-package  wheel and sdist: built in a clean tree, installed into empty environments
#   make bench         measurements as one table, to build/bench.json; QUICK=1 takes two minutes
#   make performance   the table of docs/performance.md, from build/bench.json
#   make profile       a flame graph of the minute's end of 1,000 series, to build/profile.svg
#   make clean         remove what was made

PYTHON ?= python3
BIN := .venv/bin
CLIENTS_BIN := .venv-clients/bin
DEMO_FLAGS ?=
FUZZ_FLAGS ?=
SEEDS ?= 500
FIRST_SEED ?= random
# Any value: `make bench` takes two minutes.
QUICK ?=
# How long each target is fuzzed.
SECONDS ?= 600
# Processes that share the tests: more than cores, because most tests wait for something.
WORKERS ?= 4

PAGE := src/klinesync/web/index.html
PAGE_SOURCES := $(shell find frontend -path frontend/node_modules -prune -o -type f -print)

.PHONY: setup demo test test-long test-python test-page test-clients test-package sim fuzz lint types reference bench performance profile clean

setup: .venv/.dev $(PAGE)

# The demo does without the tools for development, so that a new user waits less.
demo: .venv/.run $(PAGE)
	$(BIN)/klinesync demo $(DEMO_FLAGS)

test: test-page test-python

test-python: setup
	$(BIN)/pytest -n $(WORKERS)

test-page: frontend/node_modules/.installed
	cd frontend && npm run --silent test

test-clients: .venv/.run .venv-clients/.installed
	$(CLIENTS_BIN)/python -m pytest -n $(WORKERS) -c tests/clients/pytest.ini tests/clients

test-package: setup
	$(BIN)/pytest -m package tests/package

sim: setup
	$(BIN)/pytest -n $(WORKERS) --durations=20 tests/sim --seeds $(SEEDS) --first-seed $(FIRST_SEED)

# By hand, before a release: it takes hours.
test-long: setup
	KLINESYNC_TEST_LONG=1 $(BIN)/pytest -n $(WORKERS) --ignore=tests/sim --timeout=3600
	$(MAKE) sim SEEDS=2000 FIRST_SEED=random
	$(MAKE) fuzz SECONDS=600

# A payload that finds a defect is kept in tests/fuzz/corpus.
fuzz: setup
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) $(FUZZ_FLAGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd frontend && npm run --silent lint && npx --no-install tsc --noEmit

# The generated file is committed; a test fails when it is stale.
types: .venv/.dev
	$(BIN)/python tests/docs/message_types.py

# Likewise.
reference: .venv/.dev
	PYTHONPATH=tests $(BIN)/python tests/docs/reference.py

bench: setup
	$(BIN)/python benchmarks/bench.py --output build/bench.json $(if $(QUICK),--quick)

performance: .venv/.dev
	PYTHONPATH=tests/docs $(BIN)/python benchmarks/bench_page.py build/bench.json

profile: setup
	@mkdir -p build
	$(BIN)/python benchmarks/follow_exchange.py --profile build/profile.svg

clean:
	rm -rf .venv .venv-clients .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf frontend/node_modules src/klinesync/web dist build

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "klinesync needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# With the package itself, so that a whole service can be asked for what it has through ccxt.
.venv-clients/.installed: tests/clients/requirements.txt tests/clients/constraints.txt pyproject.toml
	rm -rf .venv-clients
	$(PYTHON) -m venv .venv-clients
	$(CLIENTS_BIN)/pip install --quiet --disable-pip-version-check \
		-r tests/clients/requirements.txt -e . -c tests/clients/constraints.txt
	@touch $@

frontend/node_modules/.installed: frontend/package.json frontend/package-lock.json
	cd frontend && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(PAGE): frontend/node_modules/.installed $(PAGE_SOURCES)
	cd frontend && npm run --silent build
	@touch $@
