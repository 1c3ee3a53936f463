# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Clusters whose position is known to their keys and values only, for the study of the ablations."""

from clustr_hf.clustering_clustr import aggregate_tokens
from clustr_hf.modeling_clustr_attention import ClusTRAttention
from clustr_hf.modeling_clustr_embeddings import ClusTRPositionEmbeddings


class PositionInKeys(ClusTRAttention):
    """The mean of the position embeddings of its members, added to the token of a cluster."""

    def _make_aggregation(self, hidden_size):
        super()._make_aggregation(hidden_size)
        self.position_embeddings = ClusTRPositionEmbeddings(hidden_size)

    def _merge_tokens(self, tokens, size, cluster_index, num_clusters):
        merged = super()._merge_tokens(tokens, size, cluster_index, num_clusters)
        place = self.position_embeddings(size, tokens).flatten(0, 1).expand_as(tokens)
        means = [
            aggregate_tokens(place, index, number) if number < tokens.shape[1] else place
            for index, number in zip(cluster_index, num_clusters, strict=True)
        ]
        return [token + mean for token, mean in zip(merged, means, strict=True)]
