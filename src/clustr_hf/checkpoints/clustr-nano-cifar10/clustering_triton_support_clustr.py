# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Which tensors the Triton kernels accept, and what happens when a kernel fails.

The kernels accept float32, float16 and bfloat16 tensors of at most 1024 channels and 2**18 tokens on CUDA and ROCm
devices, if the package `triton` is installed (PyTorch's GPU builds require it). Other tensors are left to tensor
operations; so are all tensors if the environment variable `CLUSTR_KERNEL=off` is set. After a kernel has failed on a
device, for example because it does not compile, tensor operations replace all kernels there, with a single warning.

Shapes: B images, N tokens, C channels, k neighbours.
"""

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .clustering_kernel_clustr import is_plain


Result = TypeVar("Result")


def _has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # a stand-in module without a specification
        return False


HAS_TRITON = _has_triton()

# Slots of the neighbour lists, hence the largest k.
MAX_NEIGHBORS = 8
MAX_CHANNELS = 1024
MAX_TOKENS = 2**18

# Error messages of the devices on which a kernel has failed, by device.
_FAILURES: dict[str, str] = {}


def is_importable() -> bool:
    """`bool`: Whether the package `triton` is installed and the environment does not switch the kernels off."""
    return os.environ.get("CLUSTR_KERNEL") != "off" and HAS_TRITON


def is_on_gpu(tokens: torch.Tensor) -> bool:
    """`bool`: Whether the tensor is on a CUDA or ROCm device."""
    return tokens.is_cuda


def can_cluster(tokens: torch.Tensor, num_neighbors: int) -> bool:
    """
    Whether [`~clustering_triton_clustr.cluster`] accepts these arguments: plain tensors of at most 32 bits on a GPU,
    at most 1024 channels and 2**18 tokens, and k of at most 8.
    """
    return _is_accepted(tokens) and min(num_neighbors, tokens.shape[1]) <= MAX_NEIGHBORS


def can_aggregate(tokens: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Whether [`~clustering_triton_merge_clustr.aggregate`] accepts these tokens and weights: not under forward-mode
    differentiation, which the operators do not implement.
    """
    if not _is_accepted(tokens):
        return False
    return torch.compiler.is_compiling() or (is_plain(weight) and torch.autograd.forward_ad._current_level < 0)


def _is_accepted(tokens: torch.Tensor) -> bool:
    batch_size, num_tokens, channels = tokens.shape
    is_small = tokens.dtype in (torch.float32, torch.float16, torch.bfloat16)
    is_small = is_small and channels <= MAX_CHANNELS and 0 < num_tokens <= MAX_TOKENS and batch_size > 0
    if not (is_on_gpu(tokens) and is_small and is_importable()) or str(tokens.device) in _FAILURES:
        return False
    return torch.compiler.is_compiling() or is_plain(tokens)


def attempt(function: Callable[..., Result], tokens: torch.Tensor, *arguments: Any) -> Result | None:
    """
    Call a function that launches Triton kernels.

    On failure, warn once per device and return `None`; [`can_cluster`] and [`can_aggregate`] are false for the device
    from then on. Two failures are raised instead: running out of memory, and any failure during the capture of a CUDA
    graph, which would record only part of the work.
    """
    device = str(tokens.device)
    if device in _FAILURES:
        return None
    try:
        return function(tokens, *arguments)
    except torch.OutOfMemoryError:
        raise
    # A missing C compiler, an old driver, ...: the exception types depend on the machine.
    except Exception as error:
        if tokens.is_cuda and torch.cuda.is_current_stream_capturing():
            raise
        _FAILURES[device] = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"clustr_hf clusters by tensor operations on {device}, because a Triton kernel failed: "
            f"{_FAILURES[device][:500]}",
            stacklevel=2,
        )
        return None


def on_device(tokens: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the device of the tokens current, because Triton launches on the current device."""
    return torch.cuda.device(tokens.device) if tokens.is_cuda else contextlib.nullcontext()


__all__ = ["attempt", "can_aggregate", "can_cluster", "is_importable", "is_on_gpu", "on_device"]
