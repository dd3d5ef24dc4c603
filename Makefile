# Every target sets up what it needs: a Python of 3.11 to 3.13 and make are enough. The environments are made once, .venv
# with the versions of constraints.txt and the others by 'recsys setup', and again only when their versions change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SERVING := .venv-serving/.ready
SERVING_PIP := .venv-serving/bin/python -m pip --disable-pip-version-check -q
SERVING_PINS := src/redis_recsys/triton/requirements.txt
TORCHREC := .venv/.torchrec
TORCHREC_PINS := src/redis_recsys/trainers/torchrec/requirements.txt
MERLIN := .venv-merlin/.ready
MERLIN_PINS := src/redis_recsys/trainers/merlin/requirements.txt
COMPOSE := .venv-compose/.ready
CLOUD := .venv-cloud/.ready
CLOUD_BIN := $(CURDIR)/.venv-cloud/bin
TERRAFORM := terraform -chdir=cloud-deployment/terraform
PLAYBOOKS := $(CURDIR)/.cache/cloud/ansible.tar.gz
DEPLOYED := $(CURDIR)/.cache/cloud/deployed.json
PLAY = cd cloud-deployment/ansible && PATH=$(CLOUD_BIN):$$PATH \
	RECSYS_NAME=$$($(OUTPUT_OF) recsys_name) AWS_REGION=$$($(OUTPUT_OF) recsys_region) ansible-playbook -e @$(DEPLOYED) $(ARGS)
OUTPUT_OF := $(CLOUD_BIN)/python -c 'import json, sys; print(json.load(open("$(DEPLOYED)"))[sys.argv[1]])'
# In the order in which one uses what another made.
NOTEBOOKS := $(or $(NOTEBOOK),$(wildcard offline-batch-recsys/*.ipynb) $(sort $(wildcard multi-stage/*.ipynb)) \
	$(wildcard large-scale-recsys/*.ipynb))
FEAST := .venv-serving-feast/.ready
FEAST_PIP := .venv-serving-feast/bin/python -m pip --disable-pip-version-check -q
# Without the advertisement of another program.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
SUPPORTED := sys.exit(None if (3, 11) <= sys.version_info[:2] < (3, 14) else "Python 3.11 to 3.13 is needed, $(PYTHON) is " \
	+ sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")

# What tests' hosts need, and what installs the packages of those programs that are missing: program:package ...
HOSTS := mmdebstrap:mmdebstrap mke2fs:e2fsprogs ip:iproute2 nft:nftables
install = { set --; for each in $(1); do command -v $${each%:*} > /dev/null || set -- "$$@" $${each\#*:}; done; \
	[ $$\# = 0 ] || { apt-get -qq update && apt-get -qq install -y "$$@" > /dev/null; } \
	|| { echo "install $$@, or run this as root on Debian"; exit 1; }; }

# Where it is set, every process of Ansible and of this library would compile again what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-large notebooks test lint docs docs-serve bench bench-quality bench-online bench-large bench-merlin serving torchrec merlin lock clean \
	compose-test cloud cloud-test cloud-plan cloud-up cloud-vpn cloud-configure cloud-publish cloud-rotate cloud-down cloud-outputs

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1	\2/p' Makefile | expand -t 22

demo: $(READY) $(SERVING)  ## MovieLens-100k: train, compare, write to Redis; deploy, serve, recommend, an event: a few minutes
	@$(BIN)/recsys demo

demo-large: $(READY) $(TORCHREC) $(SERVING)  ## DLRM on sharded tables: train, fill a Redis Cluster, serve, update, kill a node: a minute
	@$(BIN)/recsys dlrm demo

# On a copy with data of its own, so that what was run here before changes no result; each one is saved if it succeeds.
notebooks: $(READY) $(TORCHREC) $(SERVING)  ## run all notebooks top to bottom and save them with their results; NOTEBOOK=PATH for one
	@rm -rf .cache/notebooks && mkdir -p .cache/notebooks/data data/downloads
	@ln -s $(CURDIR)/data/downloads .cache/notebooks/data/downloads
	@cp -r $(sort $(patsubst %/,%,$(dir $(NOTEBOOKS)))) .cache/notebooks/
	@set -e; for each in $(NOTEBOOKS); do echo "$$each"; env $(addprefix -u ,$(filter RECSYS_%,$(.VARIABLES))) \
	  $(BIN)/jupyter nbconvert --log-level=WARN --to=notebook --execute --inplace --ExecutePreprocessor.timeout=600 \
	  --ExecutePreprocessor.record_timing=False ".cache/notebooks/$$each"; cp ".cache/notebooks/$$each" "$$each"; done
	@rm -rf .cache/notebooks

# Three files at a time, in the order of tests/conftest.py, the long ones first: on two cores, one of three often waits.
test: lint $(TORCHREC) $(SERVING) $(MERLIN)  ## linters, type checker and all tests, the notebooks among them
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## linters, type checker, layers, and a strict build of the documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir .cache/import-linter
	@$(MKDOCS) build --quiet --site-dir .cache/site

docs: $(READY)  ## build the documentation site into site/; what is not right is an error
	@$(MKDOCS) build --quiet && echo "site/index.html"

docs-serve: $(READY)  ## show the documentation at http://127.0.0.1:8000, built again at every change
	@$(MKDOCS) serve --dev-addr 127.0.0.1:8000

bench: $(READY)  ## measure speed and memory, write the table into docs/benchmarks.md, draw the plot in assets/
	@$(BIN)/python -m benchmarks.offline

bench-quality: $(READY)  ## measure quality at several moments with several seeds: hours, goes on where it stopped; ARGS=--help
	@$(BIN)/python -m benchmarks.offline.quality $(ARGS)

bench-online: $(READY) $(SERVING) $(FEAST)  ## measure the online pipeline in all its revisions: eight minutes
	@$(BIN)/python -m benchmarks.online

bench-large: $(READY) $(TORCHREC) $(SERVING)  ## measure the parameter server tier by tier, Triton over it, and training: 15 minutes
	@$(BIN)/python -m benchmarks.large_scale.dlrm_training --out benchmarks/large_scale/results/dlrm-training.json
	@$(BIN)/python -m benchmarks.large_scale

bench-merlin: $(READY) $(MERLIN)  ## measure Merlin and this library side by side on the same data: about 20 minutes
	@$(BIN)/python -m benchmarks.merlin

serving: $(SERVING)  ## make .venv-serving, the environment of Triton, which demo and test need, too

torchrec: $(TORCHREC)  ## add TorchRec to .venv, which demo-large and test need, too

merlin: $(MERLIN)  ## make .venv-merlin, the environment of NVIDIA Merlin (Python 3.10 or 3.11, CPU), and try it out

# With the Docker engine of this machine, if it has one with Compose; else, as root on Debian, with one of its own.
compose-test: $(COMPOSE)  ## the containers of all examples, their notebooks in a browser; TESTS=docker/tests/test_X.py for some
	@command -v google-chrome > /dev/null || $(call install,chromium:chromium)
	@docker compose version > /dev/null 2>&1 && docker info > /dev/null 2>&1 || $(call install,$(HOSTS))
	@.venv-compose/bin/pytest $(or $(TESTS),docker/tests)

cloud: $(CLOUD)  ## make .venv-cloud, with Ansible, which the targets below need, too; they need Terraform as well

# Hosts are namespaces of this machine, so this wants root, and Debian's packages.
cloud-test: $(READY) $(TORCHREC) $(SERVING) $(CLOUD)  ## deploy to a stand-in for AWS, on real hosts: as root on Debian
	@command -v terraform > /dev/null || { echo "Terraform 1.7 or newer is missing: see terraform.io"; exit 1; }
	@test $$(id -u) = 0 || { echo "root is needed, for the tests' hosts: sudo make cloud-test"; exit 1; }
	@$(call install,$(HOSTS) ssh:openssh-client)
	@$(CLOUD_BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder cloud-deployment/tests

cloud-plan: $(PLAYBOOKS)  ## AWS: show what cloud-up would change; docs/examples/cloud-deployment.md says what to set before
	@$(TERRAFORM) init -input=false > /dev/null
	@$(TERRAFORM) plan -var playbooks=$(PLAYBOOKS)

cloud-up: $(PLAYBOOKS)  ## AWS: make or change the machines, and the secrets
	@$(TERRAFORM) init -input=false > /dev/null
	@$(TERRAFORM) apply -var playbooks=$(PLAYBOOKS)
	@$(MAKE) --no-print-directory cloud-outputs
	@$(PLAY) secrets.yml

cloud-vpn: cloud-outputs  ## AWS: write configurations for the VPN's clients
	@$(PLAY) vpn-client.yml

cloud-configure: cloud-outputs  ## AWS: configure everything, over the VPN; again and again, it changes only what differs
	@$(PLAY) site.yml

cloud-publish: cloud-outputs  ## AWS: hand the deployed models to Triton's machines
	@$(CLOUD_BIN)/python cloud-deployment/publish.py $$($(OUTPUT_OF) recsys_assets_bucket) $$($(OUTPUT_OF) triton_model) $(ARGS)

cloud-rotate: cloud-outputs  ## AWS: a new value for SECRET=redis-server or another; then cloud-configure
	@$(PLAY) rotate.yml -e secret=$(SECRET)

cloud-down: $(PLAYBOOKS)  ## AWS: destroy everything, data included
	@$(TERRAFORM) destroy -var playbooks=$(PLAYBOOKS)

cloud-outputs: $(CLOUD)
	@mkdir -p $(dir $(DEPLOYED))
	@$(TERRAFORM) output -json ansible > $(DEPLOYED).part && mv $(DEPLOYED).part $(DEPLOYED)

lock: $(READY) $(SERVING)  ## write the installed versions to constraints.txt and Triton's requirements.txt
	@head -1 constraints.txt > .venv/constraints.txt
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//' >> .venv/constraints.txt
	@head -1 $(SERVING_PINS) > .venv/serving.txt
	@$(SERVING_PIP) freeze --exclude-editable >> .venv/serving.txt
	@mv .venv/constraints.txt . && mv .venv/serving.txt $(SERVING_PINS) && touch $(READY) $(SERVING)

clean:  ## remove the environments and caches; data/ stays
	@rm -rf .venv .venv-serving .venv-serving-feast .venv-merlin .venv-compose .venv-cloud .cache build site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; $(SUPPORTED)'
	@echo "setting up .venv, a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(TORCHREC): $(READY) $(TORCHREC_PINS)
	@$(BIN)/recsys setup torchrec
	@touch $@

$(SERVING): $(READY) $(SERVING_PINS)
	@$(BIN)/recsys setup serving --environment .venv-serving
	@touch $@

$(MERLIN): $(READY) $(MERLIN_PINS)
	@$(BIN)/recsys setup merlin --environment .venv-merlin $(addprefix --python ,$(MERLIN_PYTHON))
	@touch $@

$(COMPOSE): pyproject.toml constraints.txt docker/tests/requirements.txt
	@$(PYTHON) -c 'import sys; $(SUPPORTED)'
	@echo "setting up .venv-compose, about a minute the first time"
	@$(PYTHON) -m venv .venv-compose
	@.venv-compose/bin/python -m pip --disable-pip-version-check -q install \
	  -c constraints.txt -e '.[online]' pytest -r docker/tests/requirements.txt
	@touch $@

# Python compiles what is used when it is: of all of Ansible that is little.
$(CLOUD): cloud-deployment/requirements.txt cloud-deployment/constraints.txt
	@$(PYTHON) -c 'import sys; $(SUPPORTED)'
	@echo "setting up .venv-cloud, about a minute the first time"
	@$(PYTHON) -m venv .venv-cloud
	@.venv-cloud/bin/python -m pip --disable-pip-version-check -q install --no-compile \
	  -c cloud-deployment/constraints.txt -r cloud-deployment/requirements.txt
	@touch $@

$(PLAYBOOKS): $(CLOUD) $(shell find cloud-deployment/ansible -type f -not -path '*/clients/*')
	@mkdir -p $(dir $@)
	@$(CLOUD_BIN)/python cloud-deployment/archive.py $@

$(FEAST): pyproject.toml $(SERVING_PINS) constraints-serving-feast.txt
	@$(PYTHON) -c 'import sys; $(SUPPORTED)'
	@echo "setting up .venv-serving-feast, about a minute the first time"
	@$(PYTHON) -m venv .venv-serving-feast
	@$(FEAST_PIP) install -c $(SERVING_PINS) -e '.[serving]'
	@$(FEAST_PIP) install --no-deps -r constraints-serving-feast.txt
	@touch $@
