# Everything goes through two targets: `make book` and `make test`.
PYTHON  ?= python3
PROFILE ?= quick
DATASET ?= embedded
SEED    ?= 0
JOBS    ?= 2
SEEDS   ?= 5
# What a run of the benchmarks is stored under: cpu, or gpu on a machine that has one.
MACHINE ?= cpu

VENV := .venv
BIN  := $(VENV)/bin
# Written last, so that an installation cut short is taken up again.
INSTALLED := $(VENV)/.installed

.PHONY: help book test lint outputs experiments benchmarks clean

help:
	@echo "make book      run every chapter, render the book  [PROFILE=quick|standard|paper] [DATASET=embedded|sst2|...] [SEED=0] [JOBS=2]"
	@echo "make test      lint, pairing, unit tests, notebook outputs, strict build of the book"
	@echo "make outputs   execute the chapters in place, after an edit of a .md"
	@echo "make experiments  the runs behind chapter 5's tables  [PROFILE=standard] [DATASET=sst2] [SEEDS=5] [JOBS=2: runs at a time]"
	@echo "make benchmarks  time each fast path beside its peer, for chapter 6  [MACHINE=cpu|gpu]"
	@echo "make clean     remove what was built; .venv stays"

book: $(INSTALLED)
	$(BIN)/coalora book --profile $(PROFILE) --dataset $(DATASET) --seed $(SEED) --jobs $(JOBS)

test: $(INSTALLED) lint
	$(BIN)/pytest -q tests/book
	$(BIN)/pytest -q tests --ignore tests/book --benchmark-skip
	$(BIN)/pytest -q --nbval-lax --nbval-cell-timeout 600 book
	$(BIN)/coalora render --strict

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

outputs: $(INSTALLED)
	$(BIN)/coalora outputs

experiments: PROFILE := standard
experiments: DATASET := sst2
experiments: $(INSTALLED)
	$(BIN)/coalora experiments --profile $(PROFILE) --dataset $(DATASET) --seeds $(SEEDS) \
	  --jobs $(JOBS) --results book/results/$(DATASET)

benchmarks: $(INSTALLED)
	mkdir -p book/results/benchmarks
	$(BIN)/pytest tests/benchmarks -k $(if $(filter gpu,$(MACHINE)),cuda,"not cuda") \
	  --benchmark-json=book/results/benchmarks/$(MACHINE).json

clean:
	rm -rf _build

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.txt into $(VENV) (about 2 GB, some minutes) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@touch $(INSTALLED)
