# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Layers that `kernels.kernelize` can substitute for a model's own.

As `kernels` requires, they have no state, no constructor, and no method except `forward`. [`FindClusters`] has the
signature of ClusTR's layer `ClusTRClustering`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .clustering_clustr import aggregate_tokens, find_clusters


class FindClusters(nn.Module):
    """[`~clustering_clustr.find_clusters`] as a layer."""

    can_torch_compile = True

    def forward(
        self,
        tokens: torch.Tensor,
        num_clusters: Sequence[int],
        num_neighbors: int = 5,
        assignment: str = "density_parent",
        size: tuple[int, int] | None = None,
        window: int | None = None,
    ) -> list[torch.Tensor]:
        """Tokens (B, N, C) -> the cluster of each token for every scale, (B, N) each."""
        return find_clusters(tokens, num_clusters, num_neighbors, assignment, size, window)


class AggregateTokens(nn.Module):
    """[`~clustering_clustr.aggregate_tokens`] as a layer."""

    can_torch_compile = True

    def forward(
        self,
        tokens: torch.Tensor,
        cluster_index: torch.Tensor,
        num_clusters: int,
        token_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens (B, N, C), clusters (B, N), weights (B, N, 1) or (B, N) -> cluster tokens (B, M, C)."""
        return aggregate_tokens(tokens, cluster_index, num_clusters, token_weight)


__all__ = ["AggregateTokens", "FindClusters"]
