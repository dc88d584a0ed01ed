# `make demo` and `make test` do the complete setup on a fresh machine with Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= auto
# Each process gets consecutive tests, so that those of a file share its fixtures, and takes over some of a slower one.
PARALLEL := --numprocesses $(JOBS) --dist worksteal
TRANSFORMERS := $(shell sed -n 's/^transformers==//p' constraints.txt)
SUITE := .venv/transformers_tests/$(TRANSFORMERS)
DOCS := .venv/.installed_docs
# Material's announcement of MkDocs 2, a different program that constraints.txt does not install.
export NO_MKDOCS_2_WARNING := true

.PHONY: help install browser demo test test-slow check style docs docs-serve

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pcmanet needs Python >= 3.11, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,app,serve,onnx,archive,test,dev]'
	touch $(STAMP)

install: $(STAMP)  ## the pinned environment in .venv

# Tests in a browser are slow. They are skipped where none is found, but fail in .github/workflows/slow.yml, which installs one.
browser: $(STAMP)  ## a Chromium for the slow tests of the page, if none is found
	@$(BIN)/python tests/browsers.py 2>/dev/null || { \
	    SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    { $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium >/dev/null; } || \
	    $(BIN)/python -m playwright install chromium; \
	    $(BIN)/python tests/browsers.py; }

demo: $(STAMP)  ## segment the bundled clip and show the results
	$(BIN)/pcmanet demo --output demo_output

test: $(STAMP)  ## all tests but the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" -r s

# Transformers' own common tests are in its source distribution only.
$(SUITE): $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest .venv/sources transformers==$(TRANSFORMERS)
	mkdir -p $@
	tar -xzf .venv/sources/transformers-$(TRANSFORMERS).tar.gz --strip-components=2 -C $@ transformers-$(TRANSFORMERS)/tests

test-slow: $(STAMP) $(SUITE) $(DOCS)  ## all tests
	$(BIN)/python -m pytest $(PARALLEL)

check: $(STAMP)  ## lint, formatting, types and the layout of the library; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .ci/lint_models.py modeling_pcmanet
	$(BIN)/python .ci/check_types.py
	$(BIN)/python .ci/architecture.py

style: $(STAMP)  ## fix the findings of `check` that a tool can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS)

docs: $(DOCS)  ## the documentation site in site/; warnings are errors
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(DOCS)  ## the documentation site at http://127.0.0.1:8000, rebuilt when a page changes
	$(BIN)/python -m mkdocs serve
