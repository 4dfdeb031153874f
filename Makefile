# `make demo` and `make test` need python3 (3.11 or newer), make and git; everything else is installed into .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv where it is installed; otherwise a private copy beside the environment, put there with pip.
UV_HOME := .uv
UV := $(shell command -v uv 2>/dev/null || echo $(UV_HOME)/bin/uv)
export UV_PYTHON_DOWNLOADS ?= never
export UV_HTTP_TIMEOUT ?= 180

.PHONY: help demo test lint types unit docs lock perf clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-6s %s\n", $$1, $$2}'

$(UV_HOME)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit("limbeck needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv --without-pip $(UV_HOME) 2>/dev/null || $(PYTHON) -m venv $(UV_HOME)
	@if $(PYTHON) -m pip --version >/dev/null 2>&1; then $(PYTHON) -m pip install -q --target $(UV_HOME)/lib uv && ln -sf ../lib/bin/uv $(UV_HOME)/bin/uv; \
	else echo "pip is missing: install python3-pip, or uv, and run make again" >&2; exit 2; fi

$(BIN)/python: | $(UV)
	$(UV) venv --quiet --python $(PYTHON) $(VENV)

$(VENV)/.base: requirements/base.txt pyproject.toml | $(BIN)/python
	$(UV) pip install --quiet --python $(BIN)/python -r requirements/base.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(UV) pip install --quiet --python $(BIN)/python -r requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@ $(VENV)/.base

demo: $(VENV)/.base ## distil on real digits, show the table, write out/demo/index.html
	$(BIN)/limbeck demo --out out/demo

test: $(VENV)/.dev lint types unit ## lint, types and tests, with every task's extras

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

unit: $(VENV)/.dev
	$(BIN)/python -m pytest

docs: $(VENV)/.dev ## build the documentation into out/docs
	$(BIN)/mkdocs build --strict --site-dir out/docs

perf: $(VENV)/.dev ## measure the cost of distilling, as ratios within one run
	$(BIN)/python -m benchmarks.perf

lock: | $(UV) ## resolve requirements/*.txt anew
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-header --extra dev -o requirements/dev.txt
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-header -c requirements/dev.txt -o requirements/base.txt

clean: ## remove the environment and everything generated
	rm -rf $(VENV) $(UV_HOME) out
