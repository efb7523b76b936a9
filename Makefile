PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro test check

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Make .venv and install the locked dependencies

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check --requirement requirements.lock
	pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

repro: setup ## Run the pipeline and say where the report is
	dvc repro
	@echo "The report: $(CURDIR)/reports/index.html"

test: setup ## Run the tests, one whole run of the pipeline on a small subset included
	pytest

check: setup ## Run the linter, the formatter and the type checker
	ruff check
	ruff format --check
	mypy
