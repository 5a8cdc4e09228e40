# One verb an action; `make` alone lists them. A verb makes what it lacks: .venv, servers, SDKs.

PYTHON ?= python3
CONFIG ?= deploy/config/development.toml
NODES ?= 3
RELAYS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
PYTEST := $(BIN)/python -X dev -m pytest $(ARGS)
JS := tests/integration/js

# What a verb starts ends with make, even when make is killed. Only Linux can do this.
TIED := $(if $(shell command -v setpriv),setpriv --pdeathsig TERM)

.PHONY: help
help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

# --- run ---

.PHONY: run cluster up down
run: $(VENV)/.runs  ## one node with the memory engine, http://127.0.0.1:8000 (PORT=, CONFIG=)
	@exec env GATEWAY_SERVER__PORT=$(or $(PORT),8000) $(TIED) $(BIN)/python -m gateway serve --config $(CONFIG)

cluster: $(VENV)/.runs  ## 3 nodes, 2 relays, nginx on http://127.0.0.1:8080 (NODES=, RELAYS=, PORT=, TLS_PORT=, CONFIG=)
	@.ci/servers redis rabbitmq nginx
	@exec env NODES=$(NODES) RELAYS=$(RELAYS) PORT=$(PORT) TLS_PORT=$(TLS_PORT) CONFIG=$(CONFIG) \
		$(TIED) $(BIN)/python -m deploy.cluster

up:  ## the compose stack, with Prometheus and Grafana; waits until it is healthy
	@deploy/up.sh

down:  ## stop the compose stack and delete its data
	@deploy/up.sh down

# --- check ---

.PHONY: test unit integration lint types bench
test: $(VENV)/.tests $(JS)/node_modules/.package-lock.json  ## every test; installs the servers it lacks (Debian, root)
	@.ci/servers
	@$(PYTEST)

unit: $(VENV)/.tests  ## the tests that need no server: unit tests, contracts on the memory engine
	@$(PYTEST) tests/unit tests/contract -m "not servers"

integration: $(VENV)/.tests $(JS)/node_modules/.package-lock.json  ## the tests with real servers
	@.ci/servers
	@$(PYTEST) -m servers

lint: $(VENV)/.tests  ## ruff
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(VENV)/.tests  ## mypy
	@$(BIN)/mypy

bench:  ## benchmarks
	@echo "no benchmarks yet"

# --- make ---

.PHONY: certs docs lock clean
certs:  ## a self-signed certificate for localhost in deploy/certs/
	@deploy/certs.sh

docs: $(VENV)/.runs  ## write docs/configuration.md anew from the settings
	@$(BIN)/python -m docs.make_configuration

lock: $(VENV)/.tests  ## write the lock files anew from pyproject.toml (ARGS=--upgrade)
	@.ci/lock $(BIN)/pip-compile $(ARGS)

clean:  ## delete what verbs have made, but for certificates and .env
	rm -rf $(VENV) .cluster build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(JS)/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- files ---

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (PYTHON=)")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.runs: requirements.txt | $(BIN)/python
	@echo "installing the libraries into $(VENV): once, a minute or two"
	@$(PIP) -r $<
	@touch $@

$(VENV)/.tests: requirements-dev.txt $(VENV)/.runs
	@$(PIP) -r $<
	@touch $@

$(JS)/node_modules/.package-lock.json: $(JS)/package-lock.json | $(VENV)/.tests
	@.ci/servers node
	@npm ci --prefix $(JS) --silent --ignore-scripts --no-audit --no-fund
	@touch $@
