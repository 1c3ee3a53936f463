# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Attentions that know the position of tokens; the study of the ablations tries them, and none is part of the model.

Shapes: B images, N tokens of an h x w grid, C channels, M clusters.
"""

import math

import torch
from torch import nn

from clustr_hf.clustering_clustr import aggregate_tokens
from clustr_hf.modeling_clustr_attention import ClusTRAttention, ClusTRIdentityMixer, ClusTRSpatialReductionAttention


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


class KnowsPosition:
    """
    A linear function of position features, added to the tokens that an attention receives and to its output, so that
    every part of the block knows the place of its tokens: queries, keys, clusters and feed-forward network.
    """

    def __init__(self, config, stage_index):
        super().__init__(config, stage_index)
        self.position = nn.Linear(NUM_FEATURES, config.hidden_sizes[stage_index])

    def forward(self, tokens, size=None, *args, **kwargs):
        place = self.position(position_features(size, tokens))
        output, *others = super().forward(tokens + place, size, *args, **kwargs)
        return output + place, *others


class ClustersWithPosition(KnowsPosition, ClusTRAttention):
    """Clusters whose tokens know their position."""


class GridWithPosition(KnowsPosition, ClusTRSpatialReductionAttention):
    """Spatial reduction of tokens that know their position."""


class ControlWithPosition(KnowsPosition, ClusTRIdentityMixer):
    """Blocks without attention whose tokens know their position."""
