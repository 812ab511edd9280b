# Backhaul. `make demo` shows the whole system on this machine; `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help setup demo check test soak chaos format clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: .venv/.complete ## the environment and the servers, in .venv and .servers

.venv/.complete: pyproject.toml constraints.txt .ci/setup
	PYTHON=$(PYTHON) sh .ci/setup
	@touch $@

demo: setup ## the whole system on one machine: ARGS="--duration 30 --report report.json --headless"
	$(BIN)/backhaul demo $(ARGS)

check: setup ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup ## the tests, on real servers
	sh .ci/setup browser
	$(BIN)/pytest -m "not soak and not chaos" -n 2 $(ARGS)

soak: setup ## long runs under load
	$(BIN)/pytest -m soak $(ARGS)

chaos: setup ## processes and servers killed at random, for long
	$(BIN)/pytest -m chaos $(ARGS)

format: setup ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what `make setup` made
	rm -rf .venv .servers build *.egg-info
