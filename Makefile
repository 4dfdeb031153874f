# `make demo` and `make test` need python3 (3.11 or newer), make and git; everything else is installed into .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv where it is installed; otherwise a private copy beside the environment, put there with pip.
UV_HOME := .uv
# Debian's python3 comes without pip: the wheel in tools/ runs as it lies there.
PIP = $(firstword $(wildcard tools/pip-*.whl))/pip
UV := $(shell command -v uv 2>/dev/null || echo $(UV_HOME)/bin/uv)
export UV_PYTHON_DOWNLOADS ?= never
export UV_HTTP_TIMEOUT ?= 180

.PHONY: help demo test lint types unit docs lock perf clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-6s %s\n", $$1, $$2}'

$(UV_HOME)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit("limbeck needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "installing uv into $(UV_HOME)"
	@$(PYTHON) $(PIP) install --quiet --disable-pip-version-check --root-user-action ignore --target $(UV_HOME)/lib uv
	@mkdir -p $(UV_HOME)/bin && ln -sf ../lib/bin/uv $@

$(BIN)/python: | $(UV)
	$(UV) venv --quiet --python $(PYTHON) $(VENV)

$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	@echo "installing the locked dependencies into $(VENV)"
	$(UV) pip install --quiet --python $(BIN)/python -r requirements/demo.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "installing the locked dependencies of every task into $(VENV)"
	$(UV) pip install --quiet --python $(BIN)/python -r requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## distil on real digits, show the tables, write out/demo/index.html
	$(BIN)/limbeck demo --out out/demo

test: $(VENV)/.dev lint types unit ## lint, types and tests, with every task's extras

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

docs: $(VENV)/.dev ## build the documentation into out/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir out/docs

perf: $(VENV)/.dev ## measure the cost of distilling, as ratios within one run
	$(BIN)/python -m benchmarks.perf

lock: | $(UV) ## resolve requirements/*.txt anew
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-header --extra dev -o requirements/dev.txt
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-header -c requirements/dev.txt -o requirements/base.txt
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-header --extra segmentation --extra detection --extra pointcloud --extra diffusion -c requirements/dev.txt -o requirements/demo.txt

clean: ## remove the environment and everything generated
	rm -rf $(VENV) $(UV_HOME) out
