# The environment is made once in .venv and reused; it is renewed when the dependencies change.
PYTHON ?= python3
# Tests run in so many processes, with one thread each; those of a file in one of them, in the order of conftest.py.
WORKERS ?= auto
BIN := .venv/bin
SOURCES := src examples tests setup.py
INSTALLED := .venv/.installed

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo space benchmark-gpu checkpoints test sanitize quality style test-transformers

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py --output_dir out

# A page in the browser with the demo's checkpoint.
space: $(INSTALLED)
	$(BIN)/python examples/space/app.py

# One report about ClusTR on the accelerator of this machine, with the models it is compared with: out/benchmark-gpu.
benchmark-gpu: $(INSTALLED)
	$(BIN)/python examples/benchmark --device accelerator \
	    --models clustr-small clustr-small+options swin-small convnext-small pvtv2-b2 \
	    --settings 224x128 512x16 --passes forward training --dtypes float32 bfloat16 autocast \
	    --modes eager compiled --throughput 224 --clustering 3136x64 16384x64 --output_dir out/benchmark-gpu

# Brings the code in the checkpoints up to date with src/clustr_hf, which a test asks for.
checkpoints: $(INSTALLED)
	$(BIN)/python -m clustr_hf.publish checkpoints/* src/clustr_hf/checkpoints/*

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder --durations=10

# The compiled kernel under address, undefined-behaviour and thread sanitizers; `make test` runs fewer cases.
sanitize: $(INSTALLED)
	SANITIZER_CASES=1000 $(BIN)/python -m pytest tests/test_kernel_sanitizers.py -rs

quality: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

style: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The model, backbone, configuration and image processor tests of the installed transformers, run over our classes.
test-transformers: $(INSTALLED)
	$(BIN)/python tests/transformers_suite/prepare.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/transformers_suite -rs

$(INSTALLED): setup.cfg setup.py pyproject.toml src/clustr_hf/csrc/clustering_kernel.cpp src/clustr_hf/csrc/clustering_kernel_sweeps.inc \
    src/clustr_hf/csrc/clustering_kernel_threads.h
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
