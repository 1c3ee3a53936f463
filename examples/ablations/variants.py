# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Changes of the clustered attention that the study of the ablations tries; none of them is part of the model.

Shapes: B images, N tokens of an h x w grid, C channels, M clusters.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ablations.positions import PositionInKeys
from clustr_hf.modeling_clustr_attention import ATTENTION_CLASSES, ClusTRAttention, ClusTRSpatialReductionAttention


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


class PlainMeans(ClusTRAttention):
    """Means of the members, without the learned token weights of Eq. 3."""

    def _make_aggregation(self, hidden_size):
        super()._make_aggregation(hidden_size)
        self.token_weight = None


class WeightsInSoftmax(ClusTRAttention):
    """
    The logarithm of a cluster's total token weight, added to its scores: a large cluster counts as many keys, and the
    token weights learn from the attention (Zeng et al. 2022; Bolya et al. 2023 with sizes).
    """

    def _merge_tokens(self, tokens, size, cluster_index, num_clusters):
        self.log_weights = []
        if self.is_clustered:
            weight = self.token_weight(tokens).float().exp().squeeze(-1)
            for scale, number in enumerate(num_clusters):
                total = weight
                if number < tokens.shape[1]:
                    total = weight.new_zeros(len(weight), number).scatter_add(1, cluster_index[scale], weight)
                self.log_weights.append((total + 1e-6).log()[:, None, None])
        return super()._merge_tokens(tokens, size, cluster_index, num_clusters)

    def _attention_mask(self, query, key):
        return self.log_weights.pop(0).to(query.dtype) if self.log_weights else None


def clusters_in_stage(number: int) -> Callable[..., nn.Module]:
    """Clusters in one stage, counted from 1; grids of spatial reduction in the others."""

    def make(config, stage_index):
        return (ClusTRAttention if stage_index == number - 1 else ClusTRSpatialReductionAttention)(config, stage_index)

    return make


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "grid-means": GridMeans,
    "plain-means": PlainMeans,
    "position-in-keys": PositionInKeys,
    "weights-in-softmax": WeightsInSoftmax,
    "clusters-in-stage-1": clusters_in_stage(1),
    "clusters-in-stage-4": clusters_in_stage(4),
}


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
