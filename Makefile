# Every target sets up what it needs: a Python of 3.11 or newer and make are enough. The environment in .venv is made
# once, with the versions of constraints.txt, and again only when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench lock clean

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/make \1	\2/p' Makefile | expand -t 14

demo: $(READY)  ## train on MovieLens-100k, compare with baselines, write to Redis, read back: a few minutes
	@$(BIN)/recsys demo

test: lint  ## linters, type checker and all tests, the notebook among them
	@$(BIN)/pytest

lint: $(READY)  ## linters and type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)  ## measure speed and memory, print the table, draw the plot in assets/
	@$(BIN)/python -m benchmarks

lock: $(READY)  ## write the installed versions to constraints.txt
	@head -1 constraints.txt > .venv/constraints.txt
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//' >> .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt && touch $(READY)

clean:  ## remove the environment and caches; data/ stays
	@rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, \
	$(PYTHON) is " + sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")'
	@echo "setting up .venv, a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
