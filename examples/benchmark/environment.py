# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The hardware, versions and settings that the measurements depend on."""

import importlib
import importlib.util
import platform
from typing import Any

import torch
import transformers

import clustr_hf
from benchmark.measurements.inputs import random_tokens
from clustr_hf.devices import describe_device, is_accelerator
from clustr_hf.remote_code.clustering_clustr import clustering_path
from clustr_hf.remote_code.clustering_kernel_clustr import supported_instruction_sets


def describe_environment(device: str) -> dict[str, Any]:
    """Hardware, versions and settings; nothing that identifies the machine or its folders."""
    instruction_sets = supported_instruction_sets()
    has_triton = importlib.util.find_spec("triton") is not None
    return {
        **describe_device(device),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "clustering_path": None if is_accelerator(device) else clustering_path(random_tokens(64, 8, seed=0), 5),
        "clustering_kernel": instruction_sets[0] if instruction_sets and not is_accelerator(device) else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__ if has_triton else None,
        "transformers": transformers.__version__,
        "clustr_hf": clustr_hf.__version__,
    }
