# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
As many clusters as the content of an image needs: merges the N / lambda clusters of an image that look alike.

The paper names the choice of the number of clusters by content as future work (section A2). Here two clusters a and b
of n_a and n_b tokens are merged if that increases the sum of the tokens' squared distances to the mean of their cluster
by at most a share of the image's total, the tolerance (the criterion of Ward 1963):

    n_a n_b / (n_a + n_b) |mean_a - mean_b|^2 <= tolerance * sum_i |x_i - mean|^2

The cheapest merge comes first, until the cheapest is more expensive than that. A cluster that n of the original ones
were merged into stands for n equal keys: its token is the mean of their tokens, and log n is added to its scores.

Tensor operations do the same in rounds: each round merges all pairs of clusters that are each other's cheapest partner
(which yields the same hierarchy, because a merge never brings clusters closer). On CPUs a compiled kernel follows
chains of cheapest partners instead.

Costs of at most a block are in memory at a time, see clustering_tensor_clustr.py, or for the kernel those of one image.

Shapes: B images, N tokens, C channels, K original clusters, M merged clusters, R rows of a block.
"""

from typing import NamedTuple

import torch

from .clustering_clustr import aggregate_tokens
from .clustering_kernel_clustr import can_merge as can_merge_by_kernel
from .clustering_kernel_clustr import is_plain
from .clustering_kernel_clustr import merge as merge_by_kernel
from .clustering_tensor_clustr import (
    block_elements,
    is_exporting,
    merge_tokens,
    without_autocast,
)


# Rounds of tensor operations; what could still be merged after them is left. Photographs have needed at most 45.
MAX_ROUNDS = 64

# Elements of the kernel's matrix of costs, 256 MiB; with more clusters, tensor operations search blocks of rows.
MAX_MATRIX = 2**26

# Two costs that differ by less than this share count as equal, since rounding could order them either way; so do costs
# below the square of this share of the limit, as between equal tokens.
ROUNDING = 1e-5


class MergedClusters(NamedTuple):
    """
    Clusters of one scale of which each image has its own number.

    Args:
        num_merged (`torch.Tensor` of shape `(B, M)`):
            How many of the original clusters each cluster consists of, float32; 0 for the M - M_b clusters that image b
            lacks.
        original_index (`torch.LongTensor` of shape `(B, N)`):
            Original cluster of each token, values in `[0, K)`.
        merged_index (`torch.LongTensor` of shape `(B, K)`):
            Cluster that each original cluster is part of, values in `[0, M_b)`.
    """

    num_merged: torch.Tensor
    original_index: torch.Tensor
    merged_index: torch.Tensor

    @property
    def cluster_index(self) -> torch.Tensor:
        """`torch.LongTensor` of shape `(B, N)`: Cluster of each token, values in `[0, M_b)`."""
        return self.merged_index.gather(1, self.original_index)


@torch.no_grad()
def merge_clusters(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, tolerance: float
) -> MergedClusters:
    """
    Merge the clusters of each image that are cheap to merge, so that each image has as many as its content needs.

    The result for an image does not depend on the other images of the batch. Every device merges alike, except where
    two costs, or a cost and its limit, differ only by rounding.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens, in float32 or wider under any autocast.
        cluster_index (`torch.LongTensor` of shape `(B, N)`): Cluster of each token, values in `[0, num_clusters)`.
        num_clusters (`int`): K, at least 1.
        tolerance (`float`): Share of the tokens' total squared distance to their mean that a merge may cost, in [0, 1].
            0 merges only clusters with equal means.

    Returns:
        [`MergedClusters`]: their number is that of the image with the most clusters, or K where the host would have to
        know the result in advance (while compiling, exporting, tracing or capturing a graph). Clusters are
        numbered in the order of the first of the original clusters that they consist of.

    Raises:
        ValueError: if the tolerance is out of range or the shapes do not match.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"`tolerance` must be in [0, 1], got {tolerance}.")
    if cluster_index.shape != tokens.shape[:2]:
        raise ValueError(
            f"`cluster_index` must have shape {tuple(tokens.shape[:2])} like `tokens` {tuple(tokens.shape)}, "
            f"got {tuple(cluster_index.shape)}."
        )
    if torch.compiler.is_compiling() and not is_exporting():
        # One opaque node for the compiler, as for `find_clusters`.
        merged_index, num_merged = torch.ops.clustr_hf.merge_clusters(tokens, cluster_index, num_clusters, tolerance)
    else:
        merged_index, num_merged = _merge(tokens, cluster_index, num_clusters, tolerance)
        num_merged = _without_padding(num_merged)
    return MergedClusters(num_merged, cluster_index, merged_index)


def average_clusters(tokens: torch.Tensor, clusters: MergedClusters) -> torch.Tensor:
    """
    The mean of the tokens of the original clusters that each cluster consists of, whatever their sizes.

    Args:
        tokens (`torch.Tensor` of shape `(B, K, C)`): One floating point token for each original cluster.
        clusters ([`MergedClusters`]): The clusters.

    Returns:
        `torch.Tensor` of shape `(B, M, C)` in the dtype of `tokens`; zeros for a cluster that an image lacks.
    """
    is_present = torch.zeros(tokens.shape[:2], dtype=torch.float32, device=tokens.device)
    is_present = is_present.scatter(1, clusters.original_index, 1.0)
    return aggregate_tokens(tokens, clusters.merged_index, clusters.num_merged.shape[1], is_present)


def _merge(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `merged_index` and `num_merged` of [`MergedClusters`] for valid arguments; M = K."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    with without_autocast(tokens.device.type):
        tokens = tokens - tokens.mean(dim=1, keepdim=True)
        groups = [
            _merge_group(*group, num_clusters, tolerance)
            for group in _groups_of_images(tokens, cluster_index, num_clusters)
        ]
    merged_index, num_merged = zip(*groups)
    return torch.cat(merged_index), torch.cat(num_merged)


def _groups_of_images(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images that are handled together: as many as fill a block of costs, at least one."""
    if is_exporting() or len(tokens) == 0:  # a loop would make their number a constant of an exported graph
        return [(tokens, cluster_index)]
    size = max(1, block_elements(tokens) // num_clusters**2)
    return list(zip(tokens.split(size), cluster_index.split(size)))


def _merge_group(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`_merge`] for the images of a group, whose tokens have the mean 0."""
    max_cost = tolerance * tokens.square().sum(dim=(1, 2)).unsqueeze(1)
    means, sizes = _merge_means(tokens, torch.ones_like(tokens[..., 0]), cluster_index, num_clusters)
    if num_clusters**2 <= MAX_MATRIX and can_merge_by_kernel(means):
        owner = merge_by_kernel(means, sizes, max_cost.squeeze(1))
    else:
        owner = _merge_in_rounds(means, sizes, max_cost)
    is_left = (owner == torch.arange(num_clusters, device=owner.device)) & (sizes > 0)
    number = (is_left.cumsum(dim=1) - 1).clamp(min=0).gather(1, owner)
    num_merged = torch.zeros_like(sizes).scatter_add(1, number, (sizes > 0).to(sizes.dtype))
    return number, num_merged


def _merge_in_rounds(means: torch.Tensor, sizes: torch.Tensor, max_cost: torch.Tensor) -> torch.Tensor:
    """
    The cluster that each cluster ends in, (B, M): the first of those that end in it.

    Means are (B, M, C), sizes (B, M) and maximum costs (B, 1).
    """
    itself = torch.arange(means.shape[1], device=means.device).expand_as(sizes)
    owner, can_wait = itself, _can_wait(means)
    for _ in range(MAX_ROUNDS):
        target = _choose_targets(means, sizes, max_cost)
        if can_wait and bool((target == itself).all()):
            break
        owner = target.gather(1, owner)
        means, sizes = _merge_means(means, sizes, target, itself.shape[1])
    return owner


def _choose_targets(means: torch.Tensor, sizes: torch.Tensor, max_cost: torch.Tensor) -> torch.Tensor:
    """The cluster that each cluster joins in this round, (B, M): itself if it joins none."""
    num_rows = max(1, block_elements(means) // means.shape[1])
    blocks = [slice(start, start + num_rows) for start in range(0, means.shape[1], num_rows)]
    found = [_merge_costs(means, sizes, rows).min(dim=2) for rows in blocks]
    cost, partner = (torch.cat(parts, dim=1) for parts in zip(*found))
    cost = cost.clamp(min=0.0)  # that of equal clusters is rounded to either side of 0
    itself = torch.arange(partner.shape[1], device=partner.device).expand_as(partner)
    is_cheapest_of_partner = cost <= cost.gather(1, partner) * (1 + ROUNDING) + ROUNDING**2 * max_cost
    joins = (cost <= max_cost) & is_cheapest_of_partner & (partner < itself)
    joins = joins & ~joins.gather(1, partner)
    return torch.where(joins, partner, itself)


def _merge_costs(means: torch.Tensor, sizes: torch.Tensor, rows: slice) -> torch.Tensor:
    """
    The cost of merging each cluster in `rows` with each cluster, (B, R, M): infinite for itself and for clusters that
    are not left.
    """
    is_left = sizes > 0
    half_norm = (means.square().sum(dim=-1) / 2).masked_fill(~is_left, torch.inf)
    half_inverse = 0.5 / torch.where(is_left, sizes, 1.0)
    # Sums before products, so that two clusters agree about the cost of their merge in spite of rounding.
    half_squared = half_norm[:, rows].unsqueeze(2) + half_norm.unsqueeze(1) - means[:, rows] @ means.mT
    cost = half_squared / (half_inverse[:, rows].unsqueeze(2) + half_inverse.unsqueeze(1))
    itself = torch.arange(means.shape[1], device=means.device)
    return cost.masked_fill(itself[rows].unsqueeze(1) == itself, torch.inf)


def _merge_means(
    means: torch.Tensor, sizes: torch.Tensor, target: torch.Tensor, num_clusters: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (B, M, C) and sizes (B, M) of the clusters that tokens or clusters join; 0 for clusters without any."""
    means, sizes = merge_tokens(means, sizes, target, num_clusters, 0.0)
    return means.masked_fill((sizes == 0).unsqueeze(-1), 0.0), sizes


def _without_padding(num_merged: torch.Tensor) -> torch.Tensor:
    """Leave out the clusters that no image has, if the host can wait for their number."""
    if not _can_wait(num_merged):
        return num_merged
    num_clusters = int((num_merged > 0).sum(dim=1).amax()) if len(num_merged) else 1
    return num_merged[:, :num_clusters]


def _can_wait(tokens: torch.Tensor) -> bool:
    """Whether the host can wait for a result: not while a graph is recorded, and not for tensors without values."""
    if is_exporting() or torch.compiler.is_compiling() or tokens.is_meta or not is_plain(tokens):
        return False
    return not (tokens.is_cuda and torch.cuda.is_current_stream_capturing())


@torch.library.custom_op("clustr_hf::merge_clusters", mutates_args=())
def _merge_clusters_op(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _merge(tokens, cluster_index, num_clusters, tolerance)


@_merge_clusters_op.register_fake
def _(
    tokens: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    shape, dtype = (tokens.shape[0], num_clusters), torch.promote_types(tokens.dtype, torch.float32)
    return cluster_index.new_empty(shape), tokens.new_empty(shape, dtype=dtype)


__all__ = ["MergedClusters", "average_clusters", "merge_clusters"]
