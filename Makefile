# `make quickstart` and `make test` make the environment if it is missing, install, and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARITY_READY := $(VENV)/.parity-ready
DOCS_READY := $(VENV)/.docs-ready
TPU_OUT ?= benchmarks/results/tpu_compile.json
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

GPU_PACKAGES = flax==0.12.12 optax==0.2.8 orbax-checkpoint==0.12.8 ml-collections==1.1.0 absl-py \
	aiofiles etils filelock fsspec humanize importlib-resources jaxtyping markdown-it-py mdurl msgpack \
	Pillow prometheus-client protobuf psutil pygments pyyaml rich safetensors simplejson tensorstore \
	treescope typing-extensions wadler-lindig zipp

.PHONY: quickstart test test-random coverage test-slow parity parity-slow stored-parity lint docs \
	docs-serve clean tpu-compile gpu-packages

quickstart: $(READY)
	$(BIN)/python -m experiments.vtab --config configs/quickstart.py --workdir runs/quickstart

test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

# The same in another order, of the files and in each file; SEED=N makes an order again.
test-random: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow" -p randomly \
	  $(if $(SEED),--randomly-seed=$(SEED))

# The share of the package's lines that `make test` runs, by file.
coverage: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" --cov \
	  --cov-report term:skip-covered

# Every benchmark with its smallest settings is among these. They and the comparisons compile as a
# user's process does, with all of XLA's optimisations.
test-slow: $(READY)
	FACT_JAX_TESTS=optimised $(BIN)/python -m pytest -m slow

# Against PyTorch, timm and transformers; prints the measured errors.
parity: $(PARITY_READY)
	FACT_JAX_TESTS=optimised $(BIN)/python -m pytest -n 2 -m "not slow" tests/parity

parity-slow: $(PARITY_READY)
	FACT_JAX_TESTS=optimised $(BIN)/python -m pytest -m slow tests/parity

# Their outputs for `make test`, written anew.
stored-parity: $(PARITY_READY)
	PYTHONPATH=tests $(BIN)/python tests/parity/make_stored.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/; a warning is an error. `make docs-serve` shows it while one writes.
docs: $(DOCS_READY)
	$(BIN)/mkdocs build --strict

docs-serve: $(DOCS_READY)
	$(BIN)/mkdocs serve --livereload

# What benchmarks/devices/gpu.sh takes along to a machine with Python 3.12, jax, and neither network nor
# .git: wheels, and the name of the commit.
gpu-packages:
	rm -rf .gpu_packages
	$(PYTHON) -m pip download --dest .gpu_packages --python-version 3.12 --only-binary :all: \
		--platform manylinux2014_x86_64 --platform manylinux_2_27_x86_64 --no-deps $(GPU_PACKAGES)
	git describe --always --abbrev=40 --exclude='*' --dirty=+changes > .gpu_packages/commit

# Compiles the programs for v5e slices with the real TPU compiler; needs no TPU. The stored rows are
# of one jax and libtpu (Python 3.12 and newer get them): others go to a file of their own.
tpu-compile:
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install -e ".[tpu]"
	.venv-tpu/bin/python -m benchmarks.tpu_compile --out $(TPU_OUT)

$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install -e ".[docs]"
	touch $@

# PyTorch first, from the index of its CPU builds: PyPI's own brings gigabytes of CUDA. Without
# --no-deps timm and torchvision would replace it.
$(PARITY_READY): $(READY) requirements-parity.txt
	$(BIN)/python -m pip install --index-url $(TORCH_INDEX) --timeout 10 --retries 0 \
	  -c requirements-parity.txt torch \
	  || $(BIN)/python -m pip install -c requirements-parity.txt torch
	$(BIN)/python -m pip install -c requirements-parity.txt transformers
	$(BIN)/python -m pip install --no-deps -r requirements-parity.txt
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache
