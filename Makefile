# make run    see sksd do its whole job on this machine, in private folders
# make test   everything that CI checks
# make bench  the measurements of docs/benchmarks.md (minutes)
# PYTHON=/path/to/python chooses the interpreter (3.11 or newer) for every target.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# One stamp an interpreter: another PYTHON, or another setup.cfg, makes the environment anew.
TAG := $(shell $(PYTHON) -c 'import hashlib, sys; \
  print("%d.%d-" % sys.version_info[:2] + hashlib.sha256(sys.executable.encode()).hexdigest()[:8])' 2>/dev/null)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat

.PHONY: run test bench clean
.DELETE_ON_ERROR:

run: $(VENV)/.demo-$(TAG)
	@$(BIN)/python -m sksd.cli.demo

test: $(VENV)/.test-$(TAG)
	@$(BIN)/python -m tests

bench: $(VENV)/.test-$(TAG)
	@$(BIN)/python -m tests.bench

$(VENV)/.python-$(TAG):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "sksd needs Python 3.11 or newer: make PYTHON=/path/to/python")'
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "python -m venv failed: install your system's python3-venv, or give PYTHON=/path/to/python" >&2; exit 1; }
	@touch $@

$(VENV)/.demo-$(TAG): $(VENV)/.python-$(TAG) setup.cfg pyproject.toml
	@echo "== installing sksd and a Spyder kernel into $(VENV) (once, about a minute)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.test-$(TAG): $(VENV)/.python-$(TAG) setup.cfg pyproject.toml
	@echo "== installing sksd and its test tools into $(VENV) (once, about a minute)"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.demo-$(TAG)

clean:
	rm -rf $(VENV) .cache build dist *.egg-info _trial_temp*
