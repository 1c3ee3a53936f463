# The environment is made once in .venv and reused; it is renewed when the dependencies change.
PYTHON ?= python3
# Tests run in so many processes, with one thread each; those of a file in one of them.
WORKERS ?= auto
BIN := .venv/bin
SOURCES := src examples tests setup.py
INSTALLED := .venv/.installed

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo space test quality style test-transformers

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py --output_dir out

# A page in the browser with the demo's checkpoint.
space: $(INSTALLED)
	$(BIN)/python examples/space/app.py

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --durations=10

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

$(INSTALLED): setup.cfg setup.py pyproject.toml src/clustr_hf/clustering_kernel.cpp src/clustr_hf/clustering_kernel_sweeps.inc
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
