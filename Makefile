PYTHON ?= python3
VENV := .venv
FAULTS ?= long
# The oldest supported torch and what goes with it; what else the pipeline's tests need, in the locked version; and those
# of them that use torch, but for the slow ones of the checks of recipes.
LOWEST := torch==2.11.0 torchvision==0.26.0 numpy==2.0.2 safetensors==0.5.0 pytest==8.3.5
LOCKED := filelock|jinja2|matplotlib|nvidia-ml-py|pandas|pillow|psutil|pydantic|pytest-xdist|ruamel-yaml|scipy|tqdm
WITH_TORCH := helpers $(addprefix pipeline/,core training evaluation measuring \
	test_train.py test_evaluate.py test_measure.py test_mixture.py)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# In the C locale Python cannot read non-ASCII paths, and the path of this folder may be one.
ifneq ($(filter C POSIX,$(LC_ALL)),)
export LC_ALL := C.UTF-8
endif

.DEFAULT_GOAL := help
.PHONY: help setup repro paper test page faults check wheel rivals bench lowest

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Make .venv and install the locked dependencies

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV), some 6 GB: 2 to 3 minutes"
	pip install --quiet --disable-pip-version-check --use-pep517 --requirement requirements.lock
	pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

repro: setup ## Run the pipeline and say where the report is
	@git rev-parse 2> /dev/null || dvc config --local core.no_scm true
	@python -m tools.unlock_dvc
	@python -m pipeline.preset --check
	dvc repro
	@echo "The report: $(CURDIR)/reports/index.html"

paper: ## Run it at the paper's scale on a GPU, without DVC: make paper LIMIT=590, again and again; see the README
	$(PYTHON) -m pipeline.run --plan paper --out paper-run $(if $(LIMIT),--time-limit $(LIMIT))

test: setup ## Run the tests but those of page and faults, one whole run of the pipeline on a small subset included
	OMP_NUM_THREADS=1 pytest -m "not faults and not page" --numprocesses logical --maxprocesses 4 \
		--dist loadfile --no-loadscope-reorder

page: setup ## Try the report in a browser, where there is a Chromium
	pytest -m page tests

faults: setup ## Kill, damage, fill and mistype in the long form; FAULTS=short for minutes
	OMP_NUM_THREADS=1 FAULTS=$(FAULTS) pytest --numprocesses 2 tests/faults

check: setup ## Run the linter, the formatter and the type checker
	ruff check
	ruff format --check
	mypy

wheel: setup ## Build the wheel and run the library's tests on it, outside this tree
	rm -rf dist
	pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	folder=$$(mktemp -d) && cp -r tests/lunet $$folder/tests && cp tests/conftest.py $$folder && cd $$folder \
	&& pip install --quiet --disable-pip-version-check --no-deps --target site $(CURDIR)/dist/*.whl \
	&& export PYTHONPATH=$$folder/site \
	&& python -c "import lunet; assert lunet.__file__.startswith('$$folder'), lunet.__file__" \
	&& OMP_NUM_THREADS=1 pytest -q -c /dev/null --rootdir . --numprocesses 2 tests

rivals: setup ## Install the libraries that the models are compared with, and compare
	pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[rivals]'
	pytest tests/lunet/test_rivals.py

bench: rivals ## Time the models beside those of other libraries, some minutes; python -m benchmarks --help
	python -m benchmarks

lowest: ## Run the tests of library, training and measurements with the oldest supported torch, in a folder of its own
	$(PYTHON) -m venv .venv-lowest
	grep -E '^($(LOCKED))==' requirements.lock > .venv-lowest/locked.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check $(LOWEST) --requirement .venv-lowest/locked.txt \
		--editable .
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest --numprocesses 2 tests/lunet $(addprefix tests/,$(WITH_TORCH)) \
		--ignore tests/pipeline/training/test_models.py
