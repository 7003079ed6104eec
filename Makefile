# Every target makes .venv and installs into it by itself; a second run finds it done.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=

BIN := .venv/bin
BOOTSTRAP := "$(PYTHON)" scripts/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help serve loan-demo video-demo test check format bench docs-tables clean env-serve env-dev

help: ## Show this list
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo "Variables: PYTHON (now $(PYTHON)), HOST ($(HOST)), PORT ($(PORT)), ARGS (passed on, for example"
	@echo "  make test ARGS='tests/engine -x', make serve ARGS='--dtype fp32')"

serve: env-serve ## Serve the default model at http://HOST:PORT/v1
	@exec $(BIN)/stille serve --host $(HOST) --port $(PORT) $(ARGS)

test: env-dev ## Run the test suite
	@exec $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

loan-demo: env-dev ## Take a batch of loan applications from paper to decision (ARGS='--model clerk': no model)
	@exec $(BIN)/python -m examples.loan_underwriting.demo $(ARGS)

video-demo: env-dev ## Watch painted warehouses and a real square, and report (ARGS='--perception truth': no model)
	@exec $(BIN)/python -m examples.warehouse.demo $(ARGS)

check: env-dev ## Lint, formatting, types, and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: env-dev ## Rewrite the sources as `make check` wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: env-dev ## Measure what this machine can measure, and print the tables
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

docs-tables: env-dev ## Rewrite the tables in README and docs from benchmarks/results
	@$(BIN)/python -m stille.ledger tables

clean: ## Remove .venv, caches and build output (downloaded models stay)
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

env-serve:
	@$(BOOTSTRAP) serve

env-dev:
	@$(BOOTSTRAP) dev
