# Every target sets up what it needs: a Python of 3.11 or newer and make are enough. The environments, .venv and, for
# Triton's models, .venv-serving, are made once, with the versions of constraints.txt and constraints-serving.txt, and
# again only when these or pyproject.toml change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SERVING := .venv-serving/.ready
SERVING_PIP := .venv-serving/bin/python -m pip --disable-pip-version-check -q
FEAST := .venv-serving-feast/.ready
FEAST_PIP := .venv-serving-feast/bin/python -m pip --disable-pip-version-check -q
NEWER := sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " \
	+ sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-online serving lock clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1	\2/p' Makefile | expand -t 19

demo: $(READY) $(SERVING)  ## MovieLens-100k: train, compare, write to Redis; deploy, serve, recommend, an event: a few minutes
	@$(BIN)/recsys demo

test: lint $(SERVING)  ## linters, type checker and all tests, the notebooks among them
	@$(BIN)/pytest

lint: $(READY)  ## linters and type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)  ## measure speed and memory, print the table, draw the plot in assets/
	@$(BIN)/python -m benchmarks

bench-online: $(READY) $(SERVING) $(FEAST)  ## measure the online pipeline in all its revisions: eight minutes
	@$(BIN)/python -m benchmarks.online

serving: $(SERVING)  ## make .venv-serving, the environment of Triton, which demo and test need, too

lock: $(READY) $(SERVING)  ## write the installed versions to constraints.txt and constraints-serving.txt
	@head -1 constraints.txt > .venv/constraints.txt
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//' >> .venv/constraints.txt
	@head -1 constraints-serving.txt > .venv/constraints-serving.txt
	@$(SERVING_PIP) freeze --exclude-editable >> .venv/constraints-serving.txt
	@mv .venv/constraints.txt .venv/constraints-serving.txt . && touch $(READY) $(SERVING)

clean:  ## remove the environments and caches; data/ stays
	@rm -rf .venv .venv-serving .venv-serving-feast build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; $(NEWER)'
	@echo "setting up .venv, a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(SERVING): pyproject.toml constraints-serving.txt
	@$(PYTHON) -c 'import sys; $(NEWER)'
	@echo "setting up .venv-serving, about a minute the first time"
	@$(PYTHON) -m venv .venv-serving
	@$(SERVING_PIP) install -c constraints-serving.txt -e '.[serving]'
	@touch $@

$(FEAST): pyproject.toml constraints-serving.txt constraints-serving-feast.txt
	@$(PYTHON) -c 'import sys; $(NEWER)'
	@echo "setting up .venv-serving-feast, about a minute the first time"
	@$(PYTHON) -m venv .venv-serving-feast
	@$(FEAST_PIP) install -c constraints-serving.txt -e '.[serving]'
	@$(FEAST_PIP) install --no-deps -r constraints-serving-feast.txt
	@touch $@
