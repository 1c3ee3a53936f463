# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Changes of the clustered attention that the study tries; none of them is part of the model.

Shapes: B images, N tokens of an h x w grid, C channels, M clusters.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clustr_hf.clustering_clustr import aggregate_tokens
from clustr_hf.modeling_clustr_attention import (
    ATTENTION_CLASSES,
    ClusTRAttention,
    ClusTRIdentityMixer,
    ClusTRSpatialReductionAttention,
)


def coordinates(size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Row and column of every token of a grid, in [0, 1] and row-major order, (h w, 2)."""
    rows, columns = (torch.linspace(0, 1, side, device=like.device, dtype=torch.float32) for side in size)
    return torch.cartesian_prod(rows, columns)


FREQUENCIES = (1, 2)
NUM_FEATURES = 2 * (1 + 2 * len(FREQUENCIES))


def position_features(size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Coordinates of every token of a grid in [-0.5, 0.5], and their sines and cosines, (h w, `NUM_FEATURES`)."""
    place = coordinates(size, like) - 0.5
    angles = [2 * math.pi * frequency * place for frequency in FREQUENCIES]
    features = torch.cat([place, *(wave for angle in angles for wave in (angle.sin(), angle.cos()))], dim=-1)
    return features.to(like.dtype)


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


class RandomClusters(ClusTRAttention):
    """Clusters of equal size drawn at random, the same for all images: neither content nor neighbourhood."""

    def _find_clusters(self, tokens, size, num_clusters):
        generator = torch.Generator().manual_seed(tokens.shape[1])
        order = torch.randperm(tokens.shape[1], generator=generator).to(tokens.device)
        return tuple((order % number).expand(tokens.shape[0], -1).contiguous() for number in num_clusters)


class PlainMeans(ClusTRAttention):
    """Means of the members, without the learned token weights of Eq. 3."""

    def _make_aggregation(self, hidden_size):
        super()._make_aggregation(hidden_size)
        self.token_weight = None


class PositionInDistance(ClusTRAttention):
    """
    Clusters of tokens with coordinates: the squared distance of Eq. 1 grows by the squared distance in the image, in
    units of its sides. (Without it, normalised tokens have squared distances of about 2.)
    """

    def _find_clusters(self, tokens, size, num_clusters):
        place = coordinates(size, tokens) * math.sqrt(tokens.shape[-1])
        place = place.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return super()._find_clusters(torch.cat([tokens, place], dim=-1), size, num_clusters)


class PositionInKeys(ClusTRAttention):
    """
    A linear function of the members' mean position features, added to the token of a cluster: clusters have no place in
    the image, the cells of a grid have one.
    """

    def _make_aggregation(self, hidden_size):
        super()._make_aggregation(hidden_size)
        self.position = nn.Linear(NUM_FEATURES, hidden_size) if self.is_clustered else None

    def _merge_tokens(self, tokens, size, cluster_index, num_clusters):
        merged = super()._merge_tokens(tokens, size, cluster_index, num_clusters)
        if self.position is None:
            return merged
        features = position_features(size, tokens).expand(tokens.shape[0], -1, -1)
        for scale, number in enumerate(num_clusters):
            is_merged = number < tokens.shape[1]
            means = aggregate_tokens(features, cluster_index[scale], number) if is_merged else features
            merged[scale] = merged[scale] + self.position(means)
        return merged


class TokensWithPosition:
    """Adds a linear function of position features to the tokens that an attention, or the control, receives."""

    def __init__(self, config, stage_index):
        super().__init__(config, stage_index)
        self.position = nn.Linear(NUM_FEATURES, config.hidden_sizes[stage_index])

    def forward(self, tokens, size=None, *args, **kwargs):
        return super().forward(tokens + self.position(position_features(size, tokens)), size, *args, **kwargs)


class ClustersWithPosition(TokensWithPosition, ClusTRAttention):
    """Position features in the tokens: in the distances of the clustering, in queries, keys and values."""


class GridWithPosition(TokensWithPosition, ClusTRSpatialReductionAttention):
    """Position features in the tokens of spatial reduction."""


class ControlWithPosition(TokensWithPosition, ClusTRIdentityMixer):
    """Position features in the tokens of blocks without attention."""


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


class PositionAndWeights(WeightsInSoftmax, PositionInKeys):
    """The position of a cluster in its key and value, and its weight in the softmax."""


def clusters_in_stage(number: int) -> Callable[..., nn.Module]:
    """Clusters in one stage, counted from 1; grids of spatial reduction in the others."""

    def make(config, stage_index):
        return (ClusTRAttention if stage_index == number - 1 else ClusTRSpatialReductionAttention)(config, stage_index)

    return make


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "grid-means": GridMeans,
    "random-clusters": RandomClusters,
    "plain-means": PlainMeans,
    "position-in-distance": PositionInDistance,
    "position-in-keys": PositionInKeys,
    "position-in-tokens": ClustersWithPosition,
    "position-and-weights": PositionAndWeights,
    "sra-with-position": GridWithPosition,
    "none-with-position": ControlWithPosition,
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
