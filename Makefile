# Every target does its own set-up; nothing but Python (>= 3.11) is needed. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart test coverage test-slow test-lm-eval check bench bench-serve bench-scale clean
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh
	@touch $@

quickstart: $(READY) ## train a tiny model, improve it with TraceRL, write a report (minutes on a laptop)
	$(BIN)/unmask quickstart $(ARGS)

test: $(READY) ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

coverage: $(READY) ## the same, with the lines that no test ran
	$(MAKE) test ARGS='--cov=unmask --cov-report=term-missing:skip-covered $(ARGS)'

test-slow: $(READY) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-lm-eval: $(READY) ## the adapter for lm-evaluation-harness, which is installed for it
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[lm-eval]"
	$(BIN)/python -m pytest tests/test_lm_harness.py $(ARGS)

check: $(READY) ## style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

bench: $(READY) ## speed, as ratios against stated baselines
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/padding.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/sandbox.py

bench-serve: $(READY) ## latency against throughput of the server, with the engine's ceiling beside
	$(BIN)/python benchmarks/serve.py $(ARGS)

bench-scale: $(READY) ## seconds of an RL step: with two processes here, predicted for 8 to 512 GPUs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py $(ARGS)

clean: ## remove the environment (runs/ stays)
	rm -rf $(VENV)
