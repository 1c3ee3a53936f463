# The environment is created once in .venv, and updated when the dependencies change.
PYTHON ?= python3
# Number of test processes, with one thread each. Tests of a file share a process; conftest.py sets their order.
WORKERS ?= auto
BIN := .venv/bin
SOURCES := src examples tests setup.py
INSTALLED := .venv/.installed

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo space benchmark-gpu checkpoints test sanitize quality style test-transformers

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py --output_dir out

# A page in the browser with the bundled checkpoint, its predictions and its clusters.
space: $(INSTALLED)
	$(BIN)/python examples/space/app.py

# A report on ClusTR and its baselines on the accelerator of this machine, in out/benchmark-gpu.
benchmark-gpu: $(INSTALLED)
	$(BIN)/python examples/benchmark --device accelerator \
	    --models clustr-small clustr-small+options swin-small convnext-small pvtv2-b2 \
	    --settings 224x128 512x16 --passes forward training --dtypes float32 bfloat16 autocast \
	    --modes eager compiled --throughput 224 --clustering 3136x64 16384x64 --output_dir out/benchmark-gpu

# Updates the code in the checkpoints to that in src/clustr_hf/remote_code, as a test requires.
checkpoints: $(INSTALLED)
	$(BIN)/python -m clustr_hf.publish checkpoints/* src/clustr_hf/checkpoints/*

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder --durations=10

# Tests of the compiled kernel with address, undefined-behaviour and thread sanitizers; `make test` runs fewer cases.
sanitize: $(INSTALLED)
	SANITIZER_CASES=1000 $(BIN)/python -m pytest tests/remote_code/test_kernel_sanitizers.py -rs

quality: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

style: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The model, backbone, configuration and image processor tests of the installed transformers, applied to our classes.
test-transformers: $(INSTALLED)
	$(BIN)/python tests/transformers_suite/prepare.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/transformers_suite -rs

$(INSTALLED): setup.cfg setup.py pyproject.toml $(wildcard src/clustr_hf/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
