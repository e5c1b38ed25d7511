# Each target does its own set-up, in .venv. `make` alone lists the targets.
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo
JOBS   ?= 2
PYTHON ?= $(firstword $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
            $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && command -v $$p; done))
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

PARTS  ?= $(patsubst speed/bench_%.py,%,$(wildcard speed/bench_*.py))
PEERS  := nnunetv2==2.8.1 albumentations==2.0.8 kornia==0.9.0 torchio==1.2.1 lightly blosc2==4.14.1 monai==1.6.1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-transfer test-browser test-reliability lint format bench tables docs build clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## the full pipeline on built-in phantoms: a Dice table, a picture and a report in demo/
	$(BIN)/hssl demo --output $(OUT)

# Under several processes OpenMP's busy waiting costs ten times the speed: one thread each, passive.
test: $(VENV)/.installed-dev ## run the tests
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not transfer and not browser"

test-slow: $(VENV)/.installed-dev ## run the tests that take longer than a minute
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow

test-transfer: $(VENV)/.installed-dev .venv-transfer/.installed ## run the tests against nnU-Net, in an environment of its own, and MONAI
	$(BIN)/python -m pytest -m transfer
	$(BIN)/python -m pytest tests/export/test_monai_bundle.py

test-browser: $(VENV)/.installed-browser ## look at the pages of hssl view in headless Chromium; screenshots in build/browser
	$(BIN)/python tools/niivue.py
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m browser tests/viewer

test-reliability: $(VENV)/.installed-dev ## the tests of reliability at full length: 1,000 damaged files of each kind, 25 kills of each stage
	HSSL_MUTATIONS=1000 HSSL_KILLS=25 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) tests/reliability

lint: $(VENV)/.installed-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv-bench/.installed ## measure the speed of each part beside its peers, in an environment of its own; PARTS="views training" for some
	@set -e; for part in $(PARTS); do echo "== $$part"; OMP_WAIT_POLICY=PASSIVE .venv-bench/bin/python speed/bench_$$part.py; done

tables: $(VENV)/.installed ## write the tables of README.md and docs anew from the ledgers
	$(BIN)/python tools/tables.py

docs: $(VENV)/.installed-docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build: $(VENV)/.installed-dev ## build the wheel, install it in a clean environment and try it
	rm -rf dist build/smoke
	$(BIN)/python tools/niivue.py
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build && smoke/bin/hssl --version && smoke/bin/hssl config show aggregate >/dev/null \
	    && smoke/bin/hssl --quiet phantoms -o smoke/raw --subjects 4 >/dev/null \
	    && smoke/bin/hssl --quiet aggregate smoke/raw -o smoke/store --json >/dev/null
	rm -rf build/smoke

clean: ## remove what was built; .venv stays
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "hssl needs Python 3.11, 3.12 or 3.13; none was found. Install one, or: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (on Debian or Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (the first time this downloads about 500 MB) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@$(BIN)/python tools/niivue.py --optional
	@touch $@

# Debian's Chromium will do; where there is none, Playwright brings its own.
$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(PIP) playwright
	@command -v chromium >/dev/null || $(BIN)/python -m playwright install chromium
	@touch $@

.venv-transfer/.installed: constraints.txt tools/peer_env.py | $(BIN)/python
	@echo "Setting up .venv-transfer (the first time this downloads about 600 MB) ..."
	$(BIN)/python tools/peer_env.py .venv-transfer nnunetv2==2.8.1
	@touch $@

.venv-bench/.installed: pyproject.toml constraints.txt tools/peer_env.py | $(BIN)/python
	@echo "Setting up .venv-bench (the first time this downloads about 900 MB) ..."
	$(BIN)/python tools/peer_env.py .venv-bench -e . $(PEERS)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	@touch $@
