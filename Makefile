# `make quickstart` and `make test` make the environment if it is missing, install, and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-slow lint clean tpu-compile

quickstart: $(READY)
	$(BIN)/python -m experiments.vtab --config configs/quickstart.py --workdir runs/quickstart

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compiles the training step for a v5e-8 with the real TPU compiler; needs no TPU.
tpu-compile:
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install -e ".[tpu]"
	.venv-tpu/bin/python -m benchmarks.tpu_compile --out benchmarks/results/tpu_compile.json

$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
