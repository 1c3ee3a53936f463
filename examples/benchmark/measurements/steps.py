# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The steps that are timed: forward, backward and training, in each precision, eager or compiled."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from benchmark.models import NUM_LABELS


# Precisions: weights and images in one dtype, or float32 weights under autocast to bfloat16, as with Trainer's --bf16.
DTYPES = ("float32", "bfloat16", "autocast")
# Small enough that training steps hardly change the random weights: all rounds time the same network.
LEARNING_RATE = 1e-6


def make_step(
    model: nn.Module, pixel_values: torch.Tensor, pass_name: str, compiled: bool, dtype: str = "float32"
) -> Callable[[], None]:
    """
    The function that is timed: a `"forward"` in inference mode; a `"backward"`, i.e. a forward with loss and the
    gradients of the loss; or a `"training"` step, which adds an update by AdamW. The loss of a backbone is the sum of
    the means of its feature maps.

    Args:
        model, pixel_values: Model and images on the same device, in float32; `dtype="bfloat16"` casts both.
        pass_name (`str`): `"forward"`, `"backward"` or `"training"`.
        compiled (`bool`): Whether the model is compiled.
        dtype (`str`, defaults to `"float32"`): One of `DTYPES`.
    """
    if dtype == "bfloat16":
        model, pixel_values = model.to(torch.bfloat16), pixel_values.to(torch.bfloat16)
    run = _compile(model) if compiled else model
    if pass_name == "forward":
        model.eval()

        def forward():
            with torch.inference_mode(), _autocast(pixel_values.device, dtype):
                run(pixel_values)

        return forward
    return _training_step(model, run, pixel_values, pass_name, dtype)


def _training_step(
    model: nn.Module, run: Callable, pixel_values: torch.Tensor, pass_name: str, dtype: str
) -> Callable[[], None]:
    """The step of a backward or training pass; `run` is the model or its compiled form."""
    model.train()
    labels = torch.arange(len(pixel_values), device=pixel_values.device) % NUM_LABELS
    is_backbone = hasattr(model, "out_features")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def train():
        with _autocast(pixel_values.device, dtype):
            if is_backbone:
                loss = sum(feature_map.mean() for feature_map in run(pixel_values).feature_maps)
            else:
                loss = run(pixel_values, labels=labels).loss
        loss.backward()
        if pass_name == "training":
            optimizer.step()
        optimizer.zero_grad()

    return train


def _compile(model: nn.Module) -> Callable:
    # The default allows 8 recompilations of a function, and every model recompiles transformers' shared outer function.
    torch._dynamo.config.recompile_limit = 64
    # `fullgraph`: a model compiles as a whole or fails; no part falls back to eager mode unnoticed.
    return torch.compile(model, fullgraph=True, dynamic=False)


def _autocast(device: torch.device, dtype: str):
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "autocast" else nullcontext()
