# Everything sets itself up in .venv: a machine with Python 3.11 or later, make and a package index is enough.
PYTHON ?= python3
PROMPT ?= a portrait of an old fisherman at dawn
BIN := .venv/bin

.PHONY: generate test check setup bench clean
.DEFAULT_GOAL := help
help: ## this text
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

generate: .venv/.use ## draw PROMPT="..." with the embedded model and print where the picture is
	@$(BIN)/realgen generate "$(PROMPT)"

test: .venv/.dev check ## all checks, then all tests
	@$(BIN)/python -m pytest

check: .venv/.dev ## lint, format and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

setup: .venv/.dev ## the environment for development

bench: .venv/.dev ## speed of the generator against diffusers' own pipeline
	@$(BIN)/python benchmarks/generate.py

clean: ## remove the environment and what was built
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "realgen needs Python 3.11 or later: make PYTHON=python3.12")'
	@echo "setting up .venv (once; a few minutes, most of it the download of torch)"
	@$(PYTHON) -m venv .venv

.venv/.use: .venv/bin/python pyproject.toml constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ .venv/.use
