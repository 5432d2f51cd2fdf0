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
# What keeps the list of packages, apart from them: uv and pip-audit.
TOOLS := _build/tools

# Without stored bytecode every process compiles torch and transformers anew, for 18 seconds. Some
# containers forbid Python to store it, and the installation leaves it to the first process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help book pdf lab test lint pages outputs experiments benchmarks fuzz lock audit clean

help:
	@echo "make book      run every chapter, render the book  [PROFILE=quick|standard|paper] [DATASET=embedded|sst2|...] [SEED=0] [JOBS=2]"
	@echo "make pdf       print the committed chapters to _build/book.pdf; needs Chromium"
	@echo "make lab       open the chapters in JupyterLab"
	@echo "make test      lint, strict build of the book, unit tests, pages in a browser, notebook outputs  [JOBS=2: test processes]"
	@echo "make lint      style, imports between the layers, types"
	@echo "make outputs   execute the chapters in place, after an edit of a .md"
	@echo "make experiments  the runs behind chapter 6's tables, into _build/results/  [PROFILE=standard] [DATASET=sst2] [SEEDS=5] [JOBS=2: runs at a time]"
	@echo "make benchmarks  time each fast path beside its peer, for chapters 7 and 10  [MACHINE=cpu|gpu]"
	@echo "make fuzz      ten times the bad inputs of make test, and new ones each time"
	@echo "make lock      requirements.lock anew, from requirements.txt"
	@echo "make audit     what is known of the locked packages' vulnerabilities"
	@echo "make clean     remove what was built; .venv stays"

book: $(INSTALLED)
	$(BIN)/coalora book --profile $(PROFILE) --dataset $(DATASET) --seed $(SEED) --jobs $(JOBS)

pdf: $(INSTALLED)
	$(BIN)/coalora pdf

# A chapter that is saved there is written into its .md too, by jupytext.
lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir book

# Three stages, each on two cores; every one must pass. First what needs one process each, beside
# one another; then the unit tests, of which some try the pages just rendered in a browser; then the
# chapters from the last to the first: the later ones take longest. A last line tells if there was no
# browser. A test's own processes get one thread each, since two threads on a busy core wait for each
# other; a chapter limits its own.
test: $(INSTALLED)
	$(MAKE) --no-print-directory -j2 $(SYNC) lint pages
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal tests --benchmark-skip
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --nbval-lax --nbval-cell-timeout 1800 $(shell ls -r book/*.ipynb)
	@$(BIN)/python -m tests.pages.browser

# The output of a target in one piece, where this make can (4.0 and newer).
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

pages: $(INSTALLED)
	$(BIN)/coalora render --strict

outputs: $(INSTALLED)
	$(BIN)/coalora outputs

experiments: PROFILE := standard
experiments: DATASET := sst2
experiments: $(INSTALLED)
	$(BIN)/coalora experiments --profile $(PROFILE) --dataset $(DATASET) --seeds $(SEEDS) \
	  --jobs $(JOBS) --results _build/results/$(DATASET)-$(PROFILE)

# These have a file of their own, for chapter 10.
PACKED := tests/benchmarks/test_packed_speed.py

benchmarks: $(INSTALLED)
	mkdir -p book/results/benchmarks
	$(BIN)/pytest tests/benchmarks --ignore $(PACKED) \
	  -k $(if $(filter gpu,$(MACHINE)),cuda,"not cuda") \
	  --benchmark-json=book/results/benchmarks/$(MACHINE).json
	$(if $(filter gpu,$(MACHINE)), \
	  $(BIN)/pytest $(PACKED) --benchmark-json=book/results/benchmarks/packed.json)

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/fuzz --hypothesis-profile nightly

# Every package with its hashes, for the Pythons and systems that the project is for. The project
# itself has none.
lock: $(TOOLS)/.installed
	$(TOOLS)/bin/uv pip compile requirements.txt --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-package coalora-lib \
	  --custom-compile-command "make lock" --output-file requirements.lock

# Strict: without it, what could not be looked up counts as clean.
audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --requirement requirements.lock --disable-pip --strict \
	  --progress-spinner off $(addprefix --ignore-vuln ,$(EXCEPTIONS))

# Those that are explained: the first word of each line that is no comment.
EXCEPTIONS = $(shell sed -n 's/^\([^\#[:space:]]\{1,\}\).*/\1/p' .ci/audit-exceptions.txt)

$(TOOLS)/.installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
	@touch $@

clean:
	rm -rf _build

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.txt into $(VENV) (about 2 GB, some minutes) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@touch $(INSTALLED)
