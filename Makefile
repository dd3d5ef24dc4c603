# Every target sets up what it needs: a Python of 3.11 or newer and make are enough. The environments, .venv and, for
# Triton's models, .venv-serving, are made once, with the versions of constraints.txt and constraints-serving.txt, and
# again only when these or pyproject.toml change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SERVING := .venv-serving/.ready
SERVING_PIP := .venv-serving/bin/python -m pip --disable-pip-version-check -q
TORCHREC := .venv/.torchrec
TORCHREC_PINS := src/redis_recsys/trainers/torchrec/requirements.txt
MERLIN := .venv-merlin/.ready
MERLIN_PINS := src/redis_recsys/trainers/merlin/requirements.txt
MERLIN_PYTHON ?= $(PYTHON)
FEAST := .venv-serving-feast/.ready
FEAST_PIP := .venv-serving-feast/bin/python -m pip --disable-pip-version-check -q
NEWER := sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " \
	+ sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")

MERLIN_NEEDS := sys.exit(None if sys.version_info[:2] in ((3, 10), (3, 11)) else "Merlin needs Python 3.10 or 3.11, \
	$(MERLIN_PYTHON) is " + sys.version.split()[0] + ": run make merlin MERLIN_PYTHON=/path/to/python3.11")

.DEFAULT_GOAL := help
.PHONY: help demo demo-large test lint bench bench-online bench-large bench-merlin serving torchrec merlin lock clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1	\2/p' Makefile | expand -t 19

demo: $(READY) $(SERVING)  ## MovieLens-100k: train, compare, write to Redis; deploy, serve, recommend, an event: a few minutes
	@$(BIN)/recsys demo

demo-large: $(READY) $(TORCHREC) $(SERVING)  ## DLRM on sharded tables: train, fill a Redis Cluster, serve, update, kill a node: a minute
	@$(BIN)/recsys dlrm demo

test: lint $(TORCHREC) $(SERVING) $(MERLIN)  ## linters, type checker and all tests, the notebooks among them
	@$(BIN)/pytest

lint: $(READY)  ## linters and type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)  ## measure speed and memory, print the table, draw the plot in assets/
	@$(BIN)/python -m benchmarks

bench-online: $(READY) $(SERVING) $(FEAST)  ## measure the online pipeline in all its revisions: eight minutes
	@$(BIN)/python -m benchmarks.online

bench-large: $(READY) $(TORCHREC) $(SERVING)  ## measure the parameter server tier by tier, Triton over it, and training: 15 minutes
	@$(BIN)/python -m benchmarks.dlrm_training --out benchmarks/results-dlrm-training.json
	@$(BIN)/python -m benchmarks.tables

bench-merlin: $(READY) $(MERLIN)  ## measure Merlin and this library side by side on the same data: about 20 minutes
	@$(BIN)/python -m benchmarks.merlin

serving: $(SERVING)  ## make .venv-serving, the environment of Triton, which demo and test need, too

torchrec: $(TORCHREC)  ## add TorchRec to .venv, which demo-large and test need, too

merlin: $(MERLIN)  ## make .venv-merlin, the environment of NVIDIA Merlin (Python 3.10 or 3.11, CPU), and try it out

lock: $(READY) $(SERVING)  ## write the installed versions to constraints.txt and constraints-serving.txt
	@head -1 constraints.txt > .venv/constraints.txt
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//' >> .venv/constraints.txt
	@head -1 constraints-serving.txt > .venv/constraints-serving.txt
	@$(SERVING_PIP) freeze --exclude-editable >> .venv/constraints-serving.txt
	@mv .venv/constraints.txt .venv/constraints-serving.txt . && touch $(READY) $(SERVING)

clean:  ## remove the environments and caches; data/ stays
	@rm -rf .venv .venv-serving .venv-serving-feast .venv-merlin build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; $(NEWER)'
	@echo "setting up .venv, a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Without looking at what they say they need: that would be builds of PyTorch for GPUs.
$(TORCHREC): $(READY) $(TORCHREC_PINS)
	@echo "adding TorchRec to .venv"
	@$(PIP) install --no-deps -r $(TORCHREC_PINS)
	@touch $@

$(SERVING): pyproject.toml constraints-serving.txt
	@$(PYTHON) -c 'import sys; $(NEWER)'
	@echo "setting up .venv-serving, about a minute the first time"
	@$(PYTHON) -m venv .venv-serving
	@$(SERVING_PIP) install -c constraints-serving.txt -e '.[serving]'
	@touch $@

# All of its packages by name, without looking at what they say they need: TensorFlow 2.12 and Feast 0.31 contradict
# each other there, and yet they work together.
$(MERLIN): $(MERLIN_PINS)
	@$(MERLIN_PYTHON) -c 'import sys; $(MERLIN_NEEDS)'
	@echo "setting up .venv-merlin (2.3 GB), about two minutes the first time"
	@$(MERLIN_PYTHON) -m venv --clear .venv-merlin
	@.venv-merlin/bin/python -m pip --disable-pip-version-check -q install --no-deps -r $(MERLIN_PINS)
	@echo "training with Merlin on a few rows, to see that it works"
	@PYTHONPATH=src .venv-merlin/bin/python -m redis_recsys.trainers.merlin.worker check \
	  < /dev/null > .venv-merlin/check.log 2>&1 || { tail -n 20 .venv-merlin/check.log; exit 1; }
	@touch $@

$(FEAST): pyproject.toml constraints-serving.txt constraints-serving-feast.txt
	@$(PYTHON) -c 'import sys; $(NEWER)'
	@echo "setting up .venv-serving-feast, about a minute the first time"
	@$(PYTHON) -m venv .venv-serving-feast
	@$(FEAST_PIP) install -c constraints-serving.txt -e '.[serving]'
	@$(FEAST_PIP) install --no-deps -r constraints-serving-feast.txt
	@touch $@
