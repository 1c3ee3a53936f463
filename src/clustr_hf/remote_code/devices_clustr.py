# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Where functions of other libraries make tensors without saying on which device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def default_device(device: torch.device) -> AbstractContextManager:
    """
    A context in which tensors are made on the given device where none is named, whatever `torch.set_default_device`
    says. It costs time at every call of an operator, so there is none where the default will do: single numbers on the
    CPU go with tensors everywhere.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    default = torch.get_default_device()
    return nullcontext() if default == device or default.type == "cpu" else device


__all__ = ["default_device"]
