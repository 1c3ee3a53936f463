# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A default device for library functions that create tensors without naming a device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def default_device(device: torch.device) -> AbstractContextManager:
    """
    A context in which new tensors are on the given device unless another one is named, overriding
    `torch.set_default_device`.

    Such a context slows down every operator, so it is omitted if the default device is already correct, or is the CPU,
    whose scalars can be combined with tensors on any device.

    Args:
        device (`torch.device`): The device of the tensors that a function works on.

    Returns:
        A context manager.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    default = torch.get_default_device()
    return nullcontext() if default == device or default.type == "cpu" else device


__all__ = ["default_device"]
