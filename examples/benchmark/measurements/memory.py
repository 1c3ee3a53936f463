# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Peak memory of models and clusterings."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmark.measurements.clusterings import CLUSTERINGS
from benchmark.measurements.inputs import Setting, benchmark_num_clusters, image_like_noise, random_tokens
from benchmark.measurements.steps import make_step
from benchmark.models import build_model
from clustr_hf.devices import peak_memory


def model_memory(
    name: str, speed_options: Mapping[str, Any], setting: Setting, pass_name: str, dtype: str, device: str, seed: int
) -> dict[str, int | None]:
    """Peak memory of an eager pass of a model; call it in a fresh process."""
    torch.manual_seed(seed)
    model = build_model(name, speed_options).to(device)
    step = make_step(model, image_like_noise(setting, seed).to(device), pass_name, compiled=False, dtype=dtype)
    # Two steps, since the optimizer allocates its state in the first one.
    return peak_memory(lambda: (step(), step()), device)


def clustering_memory(algorithm: str, num_tokens: int, channels: int, device: str, seed: int) -> dict[str, int | None]:
    """Peak memory of one of `CLUSTERINGS`; call it in a fresh process."""
    tokens = random_tokens(num_tokens, channels, seed).to(device)
    return peak_memory(lambda: CLUSTERINGS[algorithm](tokens, benchmark_num_clusters(num_tokens)), device)
