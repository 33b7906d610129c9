# make repro   everything: environment, the whole pipeline, the results table
# make test    the everyday tests; `make slow` those that start servers; `make lint` style, types, import contracts
# make serve   Prefect: server, worker, deployments in this terminal; `make flow BUDGET=large` in another
# make ui      MLflow's pages
SHELL := bash
.DEFAULT_GOAL := repro
.PHONY: repro test slow lint serve flow ui

# No tool phones home (also in sum/cli.py and .dvc/config).
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)

INSTALLED := .venv/.installed
# Two workers, a test file each, in the order of tests/conftest.py: every test has one thread of its own.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
BUDGET ?= large

repro: $(INSTALLED)
	@dvc repro
	@python -m sum results

test: $(INSTALLED)
	pytest $(PARALLEL)

slow: $(INSTALLED)
	pytest -m "slow and not gpu" --timeout 900 $(PARALLEL)

lint: $(INSTALLED)
	ruff check .
	mypy
	lint-imports --no-logo

serve: $(INSTALLED)
	@exec python -m flows.serve

flow: $(INSTALLED)
	@exec python -m flows.start $(BUDGET)

ui: $(INSTALLED)
	@exec python -m flows.ui

# Made again only when the dependencies change. constraints.txt pins the versions that were tested together.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x .venv/bin/python ]; then \
	  for python in $(PYTHON) python3.11 python3.12 python3.13 python3 none; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  done; \
	  if [ $$python = none ]; then \
	    echo "error: no Python 3.11 or newer found; install one, or: make PYTHON=/path/to/python" >&2; exit 1; \
	  fi; \
	  "$$python" -m venv .venv; \
	fi
	@echo "Installing into .venv, once: about 6 minutes and 7 GB, most of it torch."
	@python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)
