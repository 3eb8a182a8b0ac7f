# make demo            train, distil and compare on phantom images that the project draws itself
# make demo DATA=DIR   the same on DIR/train/<class>/*, DIR/test/<class>/*
# make test            all tests
# make test-oldest     all tests with the oldest timm that is supported
# make test-ecosystem  the tests with other libraries: transformers, fastai, Lightning, OpenVINO, ...
# make bench-check     speeds, as ratios in one run, compared with the floors of this class of processor: three minutes
# make lint            ruff check and format, what may import what, and types of the public API
# make docs            the site of the documentation, in site/
# Each sets up .venv first if it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST_TIMM := 1.0.29
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
# a file at a time in each of a few processes, one more than cores since tests also wait; in their order, as the longest
# have few tests
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-oldest test-ecosystem bench-check lint docs clean

demo: $(VENV)/installed
	$(BIN)/hdkd demo $(if $(DATA),--data-dir "$(DATA)")

test: $(VENV)/installed-test
	$(PYTEST)

test-oldest: $(VENV)/installed-test
	$(BIN)/pip install --quiet --upgrade --no-deps --target $(VENV)/timm-oldest timm==$(OLDEST_TIMM)
	PYTHONPATH="$(CURDIR)/$(VENV)/timm-oldest" $(PYTEST)

test-ecosystem: $(VENV)/installed-ecosystem
	$(PYTEST) --dist worksteal tests/ecosystem
	$(BIN)/pip install --quiet --upgrade --no-deps --target $(VENV)/timm-oldest timm==$(OLDEST_TIMM)
	PYTHONPATH="$(CURDIR)/$(VENV)/timm-oldest" $(PYTEST) tests/ecosystem/test_transformers.py tests/ecosystem/test_fastai.py

bench-check: $(VENV)/installed-test
	$(BIN)/python tests/check_speed.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[report]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/installed-ecosystem: $(VENV)/installed-test
	$(BIN)/pip install --quiet --editable '.[test,ecosystem]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site
