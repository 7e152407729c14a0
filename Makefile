# cflow_ray: `make help` lists the targets. Everything but `help` and `clean` first makes .venv with the pinned versions.

PYTHON ?= python3
OUT ?= demo
DATA ?= textures
CATEGORIES ?=
PORT ?= 8000

BIN := .venv/bin
INSTALLED := .venv/.installed
CATEGORY_FLAG := $(if $(CATEGORIES),--category "$(CATEGORIES)")

.DEFAULT_GOAL := help
.PHONY: help install browser demo serve test test-real check format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16
	@echo "overrides: OUT=$(OUT) DATA=$(DATA) (textures, elpv, or a data set's root) CATEGORIES=a,b PORT=$(PORT) PYTHON=$(PYTHON)"

install: $(INSTALLED)  ## make .venv with the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; set PYTHON="; exit 1; }
	@$(PYTHON) -m venv .venv || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y -q python3-venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lite0,elpv,onnx,openvino,dev]"
	@touch $@

browser:  ## install Debian's chromium, in which the page is tested; without root its tests are skipped
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core; } \
		|| echo "chromium is not there and cannot be installed: the tests of the page are skipped"

demo: install  ## the whole job on data that need no download: fit, pack, score, serve, compare
	$(BIN)/cflow-ray demo --output "$(OUT)" --data "$(DATA)" $(CATEGORY_FLAG)

serve: install  ## serve the demo's checkpoints (made first if they are missing) until Ctrl-C
	@[ -e "$(OUT)/summary.json" ] || $(MAKE) demo
	$(BIN)/cflow-ray serve --registry "$(OUT)/registry" --port $(PORT)

test: install browser  ## run the tests
	$(BIN)/python -m pytest

test-real: install  ## the slow tests: real inspection data beside the checkout, a scoring job killed thirty times, moto (half an hour)
	$(BIN)/python -m pytest -m slow -s

check: install browser  ## lint, types, import contract, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

format: install  ## put the code into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Measurements against other libraries, results in benchmarks/results; BENCH="--quick" tries one out. benchmarks/README.md
PEER := benchmarks/.venv-anomalib
BENCHES := bench-fit bench-score bench-encoder bench-memory bench-load bench-fit-all bench-driver bench-archive bench-archive-memory bench-mixed bench-scaling
.PHONY: bench-peer bench-decode bench-serve $(BENCHES)

bench-peer: $(PEER)/.installed  ## make the environment that anomalib, the benchmarks' peer, runs in

$(PEER)/.installed: benchmarks/requirements-anomalib.txt
	@$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-fit: install bench-peer  ## CPU-seconds to fit a category, anomalib to the same AUROC (two hours, a quarter of one with BENCH=--reuse-peer)
bench-score: install bench-peer  ## images per CPU-second against anomalib (minutes)
bench-encoder: install  ## the whole detector against timm's encoder alone (minutes)
bench-memory: install bench-peer  ## peak memory of scoring 1,000 images against anomalib (minutes)
bench-load: install  ## loading a WRN50-sized detector against FrEIA's construction (minutes)
bench-fit-all: install bench-peer  ## a run over 15 categories against their fits alone, and against anomalib (half an hour)
bench-archive: install bench-peer  ## an archive job from an object store against a plain loop and anomalib (quarter of an hour)
bench-archive-memory: install  ## peak memory of an archive job over 20,000 and 200,000 images (minutes)
bench-mixed: install  ## chunks in which 15 categories alternate against sorted ones (minutes)
bench-scaling: install  ## scheduling of a scoring job to 64 workers, and the plan of a million chunks (quarter of an hour)
bench-serve: install bench-peer  ## the server against its parts in process, LitServe and anomalib in FastAPI (quarter of an hour)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@$(BIN)/python -m benchmarks.serve $(BENCH)
bench-decode: install  ## decoders against Pillow, in speed and in pixels (minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@$(BIN)/python -m benchmarks.decode $(BENCH)
bench-driver: install  ## memory of a run's driver at 15 and at 300 categories (minutes)

$(BENCHES):
	@$(BIN)/python -m benchmarks.$(subst -,_,$(@:bench-%=%)) $(BENCH)

clean:  ## remove what was made, .venv included
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
