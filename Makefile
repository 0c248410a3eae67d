# Sluice. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export PYTHONDONTWRITEBYTECODE := 1
BIN := .venv/bin
ARGS ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup setup-dev
setup: ## Install nginx with Lua, nats-server and the Python environment
	@scripts/setup run
setup-dev: ## The same, with what tests and linters need
	@scripts/setup dev

.PHONY: up
up: setup ## Run everything on this machine: the example application on two nginx nodes
	@exec $(BIN)/sluice up --demo $(ARGS)

.PHONY: test
test: setup-dev ## Run all tests (ARGS="-n 0 -k name" for some, one after another)
	@scripts/with-a-root-mount $(BIN)/python -m pytest -q -n 3 --dist loadfile $(ARGS)

.PHONY: check
check: setup-dev ## Format, lint, types, import contracts, Lua
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	luacheck -q services tests

.PHONY: format
format: setup-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: golden
golden: setup-dev ## Rewrite the expected outputs under tests/golden; read the diff afterwards
	SLUICE_REWRITE_GOLDEN=1 $(BIN)/python -m pytest -q tests/golden
	git diff --stat tests/golden

.PHONY: bench
bench: setup-dev ## Measure: prints a table, writes bench-results.json
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: cluster
cluster: setup-dev ## An API server (kube-apiserver, etcd) for hands-on work, until Ctrl-C
	@$(BIN)/python -m tests.cluster

.PHONY: lock
lock: ## Lock the dependencies anew (with hashes, naming no registry)
	scripts/lock

.PHONY: clean
clean: ## Remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
