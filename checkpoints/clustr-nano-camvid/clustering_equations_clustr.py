# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Eqs. 1 to 3 of the paper (section 3.1) as written, on N x N matrices: density peaks clustering and aggregation.

Two details follow the authors' release: distances are divided by sqrt(C), and the weights of a cluster are normalised.

Tests and benchmarks compare [`~clustering_clustr.find_clusters`] and [`~clustering_clustr.aggregate_tokens`], which
compute the same in memory linear in N, against these functions.

Shapes: B images, N tokens, C channels, M clusters.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn


# Keeps the aggregation finite when a cluster is empty or its weights underflow (the value of the authors' release).
WEIGHT_EPSILON = 1e-6


@torch.no_grad()
def reference_clusters(
    tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int = 5, assignment: str = "density_parent"
) -> list[torch.Tensor]:
    """
    Density peaks clustering as the paper writes it, on N x N matrices.

    The arguments and the result are those of [`~clustering_clustr.find_clusters`] without windows. Use float64 to
    compare the two: in float32, `torch.cdist` computes large problems by a matrix product, which rounds small distances
    coarsely.
    """
    num_tokens, channels = tokens.shape[1:]
    distance = torch.cdist(tokens, tokens) / math.sqrt(channels)  # d(x_i, x_j), (B, N, N)

    # Eq. 1, local density: rho_i = exp(-mean of d(x_i, x_j)^2 over the k nearest x_j). The logarithm cannot underflow.
    to_neighbors = distance.topk(min(num_neighbors, num_tokens), largest=False).values
    log_density = -to_neighbors.square().mean(dim=-1)
    density_rank = log_density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)

    # Eq. 2, separation: delta_i = min of d(x_i, x_j) over denser x_j; for the densest token, max of d(x_i, x_j).
    is_denser = density_rank.unsqueeze(1) < density_rank.unsqueeze(2)  # [i, j]: j is denser than i
    parent = distance.masked_fill(~is_denser, torch.inf).argmin(dim=-1)
    is_densest = density_rank == 0
    to_parent = distance.gather(2, parent.unsqueeze(2)).squeeze(2)
    separation = torch.where(is_densest, distance.amax(dim=-1), to_parent)

    # Decision value: gamma_i = rho_i delta_i. The M tokens with the largest values are the centres. The densest token
    # is always the first.
    log_decision_value = (log_density + separation.log()).masked_fill(is_densest, torch.inf)
    centers = log_decision_value.argsort(dim=1, descending=True, stable=True)
    decision_rank = centers.argsort(dim=1)

    labels = []
    for number in num_clusters:
        is_center = decision_rank < number
        if assignment == "nearest_center":
            to_centers = distance.gather(2, centers[:, None, :number].expand(-1, num_tokens, -1))
            label = to_centers.argmin(dim=-1)
        else:
            # A token joins the cluster of its nearest denser token, up to a centre. Each step doubles the path.
            ancestor = torch.where(is_center, torch.arange(num_tokens, device=tokens.device), parent)
            for _ in range(num_tokens.bit_length()):
                ancestor = ancestor.gather(1, ancestor)
            label = decision_rank.gather(1, ancestor)
        labels.append(torch.where(is_center, decision_rank, label))
    return labels


def reference_aggregation(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, token_weight: torch.Tensor
) -> torch.Tensor:
    """
    Eq. 3 as a matrix product, with the normalisation of [`~clustering_clustr.aggregate_tokens`].

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        cluster_index (`torch.LongTensor` of shape `(B, N)`): Cluster of each token, values in `[0, num_clusters)`.
        num_clusters (`int`): M.
        token_weight (`torch.Tensor` of shape `(B, N, 1)`): Positive weights w.

    Returns:
        `torch.Tensor` of shape `(B, M, C)`.
    """
    membership = token_weight * nn.functional.one_hot(cluster_index, num_clusters)  # w_i in column m of i in G_m, or 0
    return membership.mT @ tokens / (membership.sum(dim=1).unsqueeze(-1) + WEIGHT_EPSILON)


__all__ = ["WEIGHT_EPSILON", "reference_aggregation", "reference_clusters"]
