# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Rules that choose for each image one of several numbers of clusters.

They take the centres with the largest decision values, as the paper does for its fixed number.

Shapes: B images, N tokens, C channels, R numbers to choose from.
"""

import math
from collections.abc import Callable

import torch

from clustr_hf.remote_code import clustering_tensor_clustr as tensors
from clustr_hf.remote_code.clustering_content_clustr import MergedClusters


# Numbers to choose from: each is 2^(-1/4) of the one before.
STEP = 2**0.25


def unexplained_variance(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of the tokens' variance that is within clusters; (B, N, C), (R, B, N) -> (R, B)."""
    tokens = tokens - tokens.mean(dim=1, keepdim=True)
    ones, total = torch.ones_like(tokens[..., 0]), tokens.square().sum(dim=(1, 2))
    explained = []
    for label in labels:
        means, sizes = tensors.merge_tokens(tokens, ones, label, int(label.max()) + 1, 1e-9)
        explained.append((sizes * means.square().sum(dim=-1)).sum(dim=1) / total)
    return 1 - torch.stack(explained)


def log_decision_values(tokens: torch.Tensor, num_neighbors: int = 5) -> torch.Tensor:
    """log(rho delta) of all tokens in falling order, (B, N); that of the densest token is set to the second largest."""
    nearest = tensors.nearest_tokens(tokens, num_neighbors)
    log_density = tensors.log_local_density(tokens, nearest[0])
    rank = log_density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    separation, _ = tensors.separation_and_parent(tokens, rank, nearest)
    values = (log_density + separation.log()).sort(dim=1, descending=True).values
    return values.clamp(max=values[:, 1:2])


def variance_limit(tokens, labels, counts, value):
    """The fewest clusters that leave at most the share `value` of the variance within clusters."""
    return _last_that_suffices(unexplained_variance(tokens, labels) <= value)


def variance_price(tokens, labels, counts, value):
    """As many clusters as are worth it if each must explain the share `value` of the variance."""
    return (unexplained_variance(tokens, labels) + value * counts[:, None]).argmin(dim=0)


def decision_limit(tokens, labels, counts, value):
    """The centres whose decision value is at least the share `value` of the largest."""
    values = log_decision_values(tokens)
    return _last_that_suffices(counts[:, None] >= (values >= values[:, :1] + math.log(value)).sum(dim=1))


def decision_share(tokens, labels, counts, value):
    """The fewest centres whose decision values add up to the share `value` of all of them."""
    values = log_decision_values(tokens)
    cumulated = (values - values[:, :1]).exp().cumsum(dim=1)
    return _last_that_suffices(counts[:, None] > (cumulated < value * cumulated[:, -1:]).sum(dim=1))


def _last_that_suffices(suffices: torch.Tensor) -> torch.Tensor:
    """Index of the last of the falling numbers up to which all suffice, (R, B) -> (B,); the first in any case."""
    suffices[0] = True
    return suffices.long().cumprod(dim=0).sum(dim=0) - 1


def choose_number(rule: Callable) -> Callable:
    """The attention's `_find_clusters` with one of these rules."""

    def find_clusters(attention, tokens, size, num_clusters, value):
        found, config = [], attention.config
        for number in num_clusters:
            counts = sorted({max(1, round(number / STEP**power)) for power in range(41)}, reverse=True)
            labels = torch.stack(attention.clustering(tokens, counts, config.num_neighbors, config.cluster_assignment))
            chosen = rule(tokens, labels, torch.tensor(counts, dtype=tokens.dtype, device=tokens.device), value)
            label = labels.gather(0, chosen[None, :, None].expand(1, -1, labels.shape[2]))[0]
            itself = torch.arange(number, device=label.device).expand(len(label), -1)
            present = itself <= label.amax(dim=1, keepdim=True)
            found.append(MergedClusters(present.to(tokens.dtype), label, itself))
        return tuple(found)

    return find_clusters


NUMBER_RULES: dict[str, Callable] = {
    "variance-limit": choose_number(variance_limit),
    "variance-price": choose_number(variance_price),
    "decision-limit": choose_number(decision_limit),
    "decision-share": choose_number(decision_share),
}
