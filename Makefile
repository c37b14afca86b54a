# The commands of the project. Each makes the environment it needs on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
OLD_FORMAT := .cache/compressed-tensors-0.17.1
DEMO := demo-out

.PHONY: demo test test-slow test-gpu check kernels clean

## Quantize the demo model and let it answer.
demo: $(READY)
	@BIN=$(BIN) OUT=$(DEMO) sh examples/demo.sh

## The CPU test suite.
test: $(READY) $(OLD_FORMAT)
	$(BIN)/python -m pytest

## Storms, fuzzing and fault injection.
test-slow: $(READY) $(OLD_FORMAT)
	$(BIN)/python -m pip install --quiet "ray[serve]>=2.50"
	$(BIN)/python -m pytest -m slow --timeout 1800

## What needs a CUDA device; uses the Python that has the GPU build of torch. No server is among it,
## whose tests want more packages.
test-gpu:
	$(PYTHON) -m pytest -m gpu --ignore tests/serve --ignore tests/webui

## Style, types and import arrows.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy awqkit awqkit_runtime
	$(BIN)/python -m pytest tests/architecture

## Compile every CUDA source for every architecture that we name, without a GPU.
kernels: $(READY)
	$(BIN)/python csrc/compile_all.py

# Without a package index the compressed-tensors release that the tests compare with stays away,
# and the one test that needs it is skipped, visibly.
$(OLD_FORMAT): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --target $@ compressed-tensors==0.17.1

$(READY): pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[dev,serve,webui]"
	touch $@

clean:
	rm -rf $(VENV) .cache $(DEMO) build awqkit_runtime/_csrc
