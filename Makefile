# `make demo` and `make test` do the complete setup on a fresh machine with Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= auto
TRANSFORMERS := $(shell sed -n 's/^transformers==//p' constraints.txt)
SUITE := .venv/transformers_tests/$(TRANSFORMERS)

.PHONY: help install browser demo test test-slow check style

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pcmanet needs Python >= 3.11, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,app,onnx,archive,test,dev]'
	touch $(STAMP)

install: $(STAMP)  ## the pinned environment in .venv

# The page of examples/app.py is tested in a real browser: an installed one, or Debian's Chromium.
browser:  ## a Chromium for the tests, if none is installed
	@which chromium chromium-browser google-chrome 2>/dev/null | grep -q . || { \
	    echo "No Chromium found; installing Debian's (apt-get install chromium)."; \
	    SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium >/dev/null || { \
	    echo "Install Chromium or Chrome by hand: the tests of examples/app.py drive it." >&2; exit 1; }; }

demo: $(STAMP)  ## segment the bundled clip and show the results
	$(BIN)/pcmanet demo --output demo_output

test: $(STAMP) browser  ## all tests but the slow ones
	$(BIN)/python -m pytest --numprocesses $(JOBS) -m "not slow"

# Transformers' own common tests are in its source distribution only.
$(SUITE): $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest .venv/sources transformers==$(TRANSFORMERS)
	mkdir -p $@
	tar -xzf .venv/sources/transformers-$(TRANSFORMERS).tar.gz --strip-components=2 -C $@ transformers-$(TRANSFORMERS)/tests

test-slow: $(STAMP) browser $(SUITE)  ## all tests
	$(BIN)/python -m pytest --numprocesses $(JOBS)

check: $(STAMP)  ## lint, formatting, types and the layout of the library; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .ci/lint_models.py modeling_pcmanet
	$(BIN)/python .ci/check_types.py
	$(BIN)/python .ci/architecture.py

style: $(STAMP)  ## fix the findings of `check` that a tool can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
