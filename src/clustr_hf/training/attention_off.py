# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Switch the attention of a trained model off: its output projections are set to zero, so that every block adds nothing in
place of its attention. The loss of accuracy says how much the trained weights rely on the attention.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


# The output projection of an attention: that of ClusTR and SegFormer, that of PVTv2, and that of Swin.
OUTPUT_PROJECTION = re.compile(r".*\.attention\.(o_proj|proj|output\.dense)\.(weight|bias)")


@contextmanager
@torch.no_grad()
def attention_off(model: nn.Module) -> Iterator[None]:
    """
    A context in which the attention of a model is switched off.

    Raises:
        ValueError: if the model has no such projections.
    """
    parameters = [value for name, value in model.named_parameters() if OUTPUT_PROJECTION.fullmatch(name)]
    if not parameters:
        raise ValueError(f"{type(model).__name__} must have output projections of attention, but has none")
    saved = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.zero_()
        yield
    finally:
        for parameter, value in zip(parameters, saved):
            parameter.copy_(value)
