PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-fast torture audit format docs clean

quickstart: .venv/installed
	$(BIN)/python examples/quickstart.py

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 20
	$(BIN)/python -m pytest -m gpu tests/method tests/training

test-fast: .venv/installed-dev
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m "not slow and not torture and not gpu" --numprocesses auto --maxprocesses 4 --dist worksteal

torture: .venv/installed-dev
	$(BIN)/python -m pytest -m torture tests/torture

audit: .venv/installed-dev
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --skip-editable

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ .venv/installed
