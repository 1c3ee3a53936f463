# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Changes of the clustered attention that the study of the ablations tries; none of them is part of the model."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clustr_hf.modeling_clustr_attention import ATTENTION_CLASSES, ClusTRAttention


class GridMeans(ClusTRAttention):
    """Cells of a grid in place of clusters, aggregated as clusters are: what does the content of the image add?"""

    def _find_clusters(self, tokens, size, num_clusters):
        return tuple(self._cells(size, number, tokens) for number in num_clusters)

    def _cells(self, size: tuple[int, int], number: int, tokens: torch.Tensor) -> torch.Tensor:
        """The cell of each token, (B, N), of as many square cells as there are clusters."""
        side = math.isqrt(size[0] * size[1] // number)
        if number * side * side != size[0] * size[1] or size[0] % side or size[1] % side:
            raise ValueError(f"{size} tokens must divide into {number} square cells, but do not")
        row = torch.arange(size[0], device=tokens.device) // side
        column = torch.arange(size[1], device=tokens.device) // side
        cell = row[:, None] * (size[1] // side) + column
        return cell.flatten().expand(tokens.shape[0], -1).contiguous()


VARIANTS: dict[str, Callable[..., nn.Module]] = {"grid-means": GridMeans}


@contextmanager
def attention_of(variant: str | None) -> Iterator[None]:
    """Within this context, new models of any `attention_type` have the changed attention; `None` changes nothing."""
    original = dict(ATTENTION_CLASSES)
    if variant is not None:
        ATTENTION_CLASSES.update(dict.fromkeys(original, VARIANTS[variant]))
    try:
        yield
    finally:
        ATTENTION_CLASSES.update(original)
