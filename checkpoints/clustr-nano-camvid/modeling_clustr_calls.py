# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Checks of the images that a model receives, and the choice of the hidden states that it returns."""

import operator
from collections.abc import Sequence

import torch
from transformers.utils import is_torchdynamo_exporting

from .clustering_kernel_clustr import is_plain


def check_finite(pixel_values: torch.Tensor) -> None:
    """
    Raise a `ValueError` for NaN or infinity in images on a CPU, where the check takes less than a hundredth of the
    model's time. On accelerators it would wait for the device, and a compiled graph cannot branch on values.
    """
    if torch.compiler.is_compiling() or not (pixel_values.is_cpu and is_plain(pixel_values)):
        return
    is_finite = pixel_values.detach().isfinite().flatten(1).all(dim=1)
    if not is_finite.all():
        wrong = (~is_finite).nonzero().flatten().tolist()
        raise ValueError(
            f"`pixel_values` must be finite as {pixel_values.dtype}, got NaN or infinity in the images {wrong[:10]} of "
            f"{len(is_finite)}."
        )


def select_states(
    states: Sequence[torch.Tensor], requested: bool | int | Sequence[int]
) -> tuple[torch.Tensor | None, ...] | None:
    """All states if `requested` is True, those at the given index or indices with None for the rest, or None."""
    if not requested:
        return None
    if requested is True:
        return tuple(states)
    indices = [requested] if isinstance(requested, int) else requested
    kept = {index % len(states) for index in indices if -len(states) <= index < len(states)}
    return tuple(state if index in kept else None for index, state in enumerate(states))


def fix_exported_size(pixel_values: torch.Tensor) -> None:
    """
    Make height and width constants of an exported graph, because the numbers of tokens and clusters are constants too.

    With a dynamic height or width, torch.export then raises an error that names the dimension, instead of exporting a
    graph that is wrong for other sizes.
    """
    if is_torchdynamo_exporting():
        for extent in pixel_values.shape[2:]:
            operator.index(extent)


__all__ = ["check_finite", "fix_exported_size", "select_states"]
