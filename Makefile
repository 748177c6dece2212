# make demo   set-up, then the whole path on synthetic logs: raw log to a score over gRPC
# make test   set-up, then linters, types and every test
# make soak   the long tests
# make help   all targets

# The newest supported Python on the PATH; to choose another: make PYTHON=python3.11
PYTHON ?=
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
EXTRAS := train,beam,serving,horovod,dev

# Otherwise every process compiles the tests and our modules again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs unit coverage parallel clusters integration cluster-demo dist soak mutants protos clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## venv, pinned packages, Horovod built for this TensorFlow (cached)

NATIVE := scripts/build_native.py $(wildcard afm_ctr/native/*.cc afm_ctr/native/*.h)

$(READY): setup.py requirements/constraints.txt scripts/build_horovod.py $(NATIVE)
	@if ! test -x $(BIN)/python; then \
	  python=$$(sh scripts/newest_python.sh $(PYTHON)) && "$$python" -m venv $(VENV); fi
	@echo "$(VENV): $$($(BIN)/python -VV | head -1)"
	$(BIN)/python -m pip install --quiet --upgrade "pip<27" wheel "setuptools<81"
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/python scripts/build_horovod.py
	$(BIN)/python scripts/build_native.py || true
	@touch $(READY)

demo: $(READY) ## the whole path on synthetic logs, ending with a table
	$(BIN)/python scripts/demo.py

test: lint docs coverage integration parallel ## everything that CI runs

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## the site of docs/ in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

unit: $(READY) ## one room at a time
	$(BIN)/python -m pytest tests/unit tests/security -n 2 --dist loadfile -q

coverage: $(READY) ## the same, with the branches that they reach: fewer than the floor is an error
	$(BIN)/python -m pytest tests/unit tests/security -n 2 --dist loadfile -q --cov --cov-branch --cov-report term:skip-covered

clusters: $(READY) ## Flink, Spark and Beam's job servers into the cache: 700 MB, once; their tests skip without
	$(BIN)/python scripts/clusters.py fetch || true

integration: $(READY) clusters ## whole paths through files, processes and sockets
	$(BIN)/python -m pytest tests/integration -n 2 --dist loadfile -q --durations 15

parallel: $(READY) ## two and three ranks under horovodrun
	$(BIN)/python -m pytest tests/parallel -q --durations 15

DEMO := build/cluster-demo

cluster-demo: $(READY) ## prepare on a Flink cluster of this machine, or on Spark: make cluster-demo ENGINE=spark
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/afm-ctr make-logs --rows 20000 --output $(DEMO)/logs.tsv.gz
	$(BIN)/python scripts/clusters.py run $(or $(ENGINE),flink) -- $(BIN)/afm-ctr prepare \
	  --schema examples/criteo/schema.yaml --input $(DEMO)/logs.tsv.gz --split tail:0.1/0.1 --output $(DEMO)/data

soak: $(READY) clusters ## long runs: more kills, more swaps, more requests
	$(BIN)/python -m pytest tests/unit tests/security -n 2 --dist loadfile -q --hypothesis-profile default
	$(BIN)/python -m pytest tests -m soak -q --durations 15

mutants: $(READY) ## mutation testing of a drawn sample (SAMPLE=160 SEED=1), about 20 minutes on two cores
	$(BIN)/python scripts/mutants.py --sample $(or $(SAMPLE),160) --seed $(or $(SEED),1)

dist: $(READY) ## sdist and wheel in dist/
	rm -rf dist
	$(BIN)/python setup.py --quiet sdist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@ls -1 dist

protos: $(READY) ## the client's messages, again from their definition
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. serving/protos/*.proto

clean: ## remove the venv and what the tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-out
