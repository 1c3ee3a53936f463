# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Attentions of tokens that know their position; the study of the ablations tries them, and none is in the model."""

from clustr_hf.modeling_clustr_attention import (
    ClusTRAttention,
    ClusTRIdentityMixer,
    ClusTRPositionEmbedding,
    ClusTRSpatialReductionAttention,
)


class KnowsPosition:
    """
    Position embeddings, added to the tokens that an attention receives and to its output, so that every part of the
    block knows the place of its tokens: queries, keys, clusters and feed-forward network.
    """

    def __init__(self, config, stage_index):
        super().__init__(config, stage_index)
        self.position = ClusTRPositionEmbedding(config.hidden_sizes[stage_index])

    def forward(self, tokens, size=None, *args, **kwargs):
        place = self.position(size, tokens)
        output, *others = super().forward(tokens + place, size, *args, **kwargs)
        return output + place, *others


class ClustersWithPosition(KnowsPosition, ClusTRAttention):
    """Clusters whose tokens know their position."""


class GridWithPosition(KnowsPosition, ClusTRSpatialReductionAttention):
    """Spatial reduction of tokens that know their position."""


class ControlWithPosition(KnowsPosition, ClusTRIdentityMixer):
    """Blocks without attention whose tokens know their position."""
