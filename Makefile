# make report | test | lint | lab | docs: each makes .venv first, from environment.yml. Needs Python 3.11, make and bash.
SHELL := bash
PYTHON ?= python3.11
STAMP := .venv/.kerf-ready
EXTRAS := .venv/.kerf-extras
DOCS := .venv/.kerf-docs

.PHONY: report test lint lab docs benchmarks peers
report: $(STAMP)
	.venv/bin/kerf run minilm
	@echo "open $(CURDIR)/reports/index.html"

test: lint
	.venv/bin/python tests/run.py

# The contracts of the layers stand in lib/pyproject.toml.
lint: $(EXTRAS)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	cd lib && ../.venv/bin/lint-imports --no-cache --no-logo
	cd lib && ../.venv/bin/mypy

lab: $(STAMP)
	.venv/bin/kerf lab

# The site: reference pages from the library, tables from docs/runs/, executed notebooks. Warnings are errors.
docs: $(DOCS)
	.venv/bin/python docs/reference.py
	.venv/bin/python docs/tables.py
	.venv/bin/python docs/notebook_pages.py
	.venv/bin/python -m sphinx -n -W --keep-going -q -b html docs docs/_build/html
	@echo "open $(CURDIR)/docs/_build/html/index.html"

benchmarks: $(STAMP)
	.venv/bin/python benchmarks/quantize.py
	.venv/bin/python benchmarks/memory.py
	.venv/bin/python benchmarks/overhead.py

# One environment a peer that Kerf is compared with (benchmarks/peers.py), from the pins in environments/.
peers: $(patsubst environments/%.txt,.venv-peers/%/.ready,$(wildcard environments/*.txt))

# The last line of the pins is the peer itself: what it asks for stands above it, in the versions that work here.
.venv-peers/%/.ready: environments/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r <(sed '$$d' $<)
	BUILD_CUDA_EXT=0 $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r <(tail -n 1 $<)
	touch $@

# The pins stand in environment.yml alone; pip reads them out of its `pip:` section.
$(STAMP): environment.yml lib/pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r <(sed '1,/- pip:/d; s/^ *- //' environment.yml)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e lib
	touch $@

# What Kerf can do without, and the tests do not.
$(EXTRAS): $(STAMP)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e 'lib[lm-eval,onnxruntime,dev]'
	touch $@

# The generator of the site, which nothing else needs.
$(DOCS): $(STAMP)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e 'lib[docs]'
	touch $@
