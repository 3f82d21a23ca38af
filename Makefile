# make report | test | lab: each makes .venv first, from environment.yml. Needs Python 3.11, make and bash.
SHELL := bash
PYTHON ?= python3.11
STAMP := .venv/.kerf-ready

.PHONY: report test lab benchmarks
report: $(STAMP)
	.venv/bin/kerf run minilm
	@echo "open $(CURDIR)/reports/index.html"

test: $(STAMP)
	.venv/bin/python tests/run.py

lab: $(STAMP)
	.venv/bin/kerf lab

benchmarks: $(STAMP)
	.venv/bin/python benchmarks/quantize.py
	.venv/bin/python benchmarks/overhead.py

# The pins stand in environment.yml alone; pip reads them out of its `pip:` section.
$(STAMP): environment.yml lib/pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r <(sed '1,/- pip:/d; s/^ *- //' environment.yml)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e lib
	touch $@
