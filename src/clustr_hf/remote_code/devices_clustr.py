# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A default device for library functions that create tensors without naming a device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def default_device(device: torch.device) -> AbstractContextManager:
    """
    A context in which tensors without an explicit device are created on the given device, regardless of
    `torch.set_default_device`. It slows down every operator call, so it does nothing if the default is the CPU, whose
    scalars combine with tensors on any device.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    default = torch.get_default_device()
    return nullcontext() if default == device or default.type == "cpu" else device


__all__ = ["default_device"]
