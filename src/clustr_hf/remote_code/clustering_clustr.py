# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
kNN-based density peaks clustering of vision tokens (section 3.1 of the paper) and their aggregation.

Functions that know no model: [`find_clusters`] decides which tokens belong together, without gradient;
[`aggregate_tokens`] merges them, with gradient. Each has several forms, which this module chooses from: a compiled
kernel for CPUs, Triton kernels for GPUs, and tensor operations, which are the reference.

Shapes: B images, N tokens, C channels, k neighbours, M clusters.

Ties go to the lower index: of two equally dense tokens the first is the denser one, of two equally near tokens the
first is the nearer one, and so for decision values and for the labels of equally near centres.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .clustering_kernel_clustr import can_cluster as can_cluster_by_kernel
from .clustering_kernel_clustr import cluster as cluster_by_kernel
from .clustering_tensor_clustr import cluster as cluster_by_tensors
from .clustering_tensor_clustr import (
    is_exporting,
    log_local_density,
    merge_tokens,
    nearest_tokens,
    separation_and_parent,
)
from .clustering_triton_clustr import aggregate as aggregate_by_triton
from .clustering_triton_clustr import attempt, can_aggregate
from .clustering_triton_clustr import can_cluster as can_cluster_by_triton
from .clustering_triton_clustr import cluster as cluster_by_triton


ASSIGNMENTS = ("density_parent", "nearest_center")

# Keeps the aggregation finite when a cluster is empty or its weights underflow (the value of the authors' release).
WEIGHT_EPSILON = 1e-6
# No image has so many tokens; what all forms can count to.
MAX_CLUSTERS = 2**31 - 1


@torch.no_grad()
def find_clusters(
    tokens: torch.Tensor,
    num_clusters: Sequence[int],
    num_neighbors: int = 5,
    assignment: str = "density_parent",
    size: tuple[int, int] | None = None,
    window: int | None = None,
) -> list[torch.Tensor]:
    """
    Cluster the tokens of each image by density peaks, at several scales from one density pass (Eqs. 1, 2 and 7).

    Tokens of at most 32 bits are clustered by a compiled kernel on CPUs, where one was built
    (clustering_kernel_clustr.py), and by Triton kernels on CUDA and ROCm devices (clustering_triton_clustr.py); all
    others by tensor operations (clustering_tensor_clustr.py). The clusters are the same, except where two distances,
    densities or decision values differ only by the rounding of float32. Squared distances must fit into float32: where
    tokens are more than about 1e18 apart, or all less than 1e-18, the forms' clusters differ, and mean little.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`):
            Floating point tokens. float64 is clustered in float64, everything else in float32, under any autocast.
            (Where TF32 matrix products are switched on for a GPU, tensor operations rank candidates with TF32's
            precision; the Triton kernels do not.)
        num_clusters (`Sequence[int]`):
            M for each scale, at least 1, of any size. A scale with M >= N makes every token a cluster of its own.
        num_neighbors (`int`, defaults to 5):
            k of Eq. 1, the token itself included; N if that is less.
        assignment (`str`, defaults to `"density_parent"`):
            `"density_parent"`: each token joins the cluster of its nearest token with higher density (the paper).
            `"nearest_center"`: each token joins the nearest centre (the authors' release).
        size (`tuple[int, int]`, *optional*):
            (height, width) of the grid whose tokens these are, in row-major order; needed for `window`.
        window (`int`, *optional*):
            Not the paper's: clusters are found within windows of the grid, the fewest of nearly equal sides of at most
            this many tokens. A window has its share of the M clusters, rounded down, but at least one;
            [`count_clusters`] gives their sum. They are numbered window by window.

    Returns:
        `list[torch.LongTensor]`: for each scale the cluster of every token, shape `(B, N)`, values in
        `[0, min(M, N))`. Clusters are numbered by falling decision value rho * delta of their centre, so cluster m has
        the same centre in every scale. The result for an image does not depend on the other images of the batch.

    Raises:
        ValueError: for tokens of a wrong rank, size or dtype, and for numbers or an assignment out of range.
    """
    _check_arguments(tokens, num_clusters, num_neighbors, assignment)
    num_clusters = [min(int(number), MAX_CLUSTERS) for number in num_clusters]
    num_neighbors = min(num_neighbors, MAX_CLUSTERS)
    if window is not None:
        _check_window(tokens, size, window)
    if window is not None and window < max(size):
        return _find_clusters_in_windows(tokens, num_clusters, num_neighbors, assignment, size, window)
    if torch.compiler.is_compiling() and not is_exporting():
        # One opaque node for the compiler: the chunk loops would be unrolled into thousands of nodes.
        return list(torch.ops.clustr_hf.find_clusters(tokens, num_clusters, num_neighbors, assignment).unbind())
    return list(_find_clusters(tokens, num_clusters, num_neighbors, assignment).unbind())


def count_clusters(num_clusters: int, size: tuple[int, int], window: int | None = None) -> int:
    """
    How many clusters [`find_clusters`] finds in a grid of (height, width) = `size`: `num_clusters`, or with windows the
    sum of their shares.
    """
    if window is None:
        return num_clusters
    return sum(
        region.num_windows * region.share(num_clusters, math.prod(size)) for region in _regions_of_windows(size, window)
    )


def aggregate_tokens(
    tokens: torch.Tensor,
    cluster_index: torch.Tensor,
    num_clusters: int,
    token_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Merge the tokens of each cluster into one, h_m = sum_i w_i x_i / (sum_i w_i + 1e-6) over its members (Eq. 3).

    The normalisation is that of the authors' release; Eq. 3 leaves the weights unnormalised. Sums are taken in float32
    or wider.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`):
            Floating point tokens.
        cluster_index (`torch.LongTensor` of shape `(B, N)`):
            Cluster of each token, values in `[0, num_clusters)`. (Others raise an error; on the Triton path, which does
            not wait for the device, they make their image NaN.)
        num_clusters (`int`):
            M.
        token_weight (`torch.Tensor` of shape `(B, N, 1)` or `(B, N)`, *optional*):
            Positive weights w; default is 1 for every token.

    Returns:
        `torch.Tensor` of shape `(B, M, C)` in the dtype of `tokens`; zeros for a cluster without members.

    Raises:
        ValueError: if the shapes or devices do not belong together, or `num_clusters` is less than 1.
    """
    batch_size, num_tokens, _ = tokens.shape
    if cluster_index.device != tokens.device:
        raise ValueError(f"`cluster_index` must be on {tokens.device} like `tokens`, got {cluster_index.device}.")
    if cluster_index.shape != (batch_size, num_tokens):
        raise ValueError(
            f"`cluster_index` must have shape {(batch_size, num_tokens)} like `tokens` {tuple(tokens.shape)}, "
            f"got {tuple(cluster_index.shape)}."
        )
    if num_clusters < 1:
        raise ValueError(f"`num_clusters` must be at least 1, got {num_clusters}.")
    weight = _as_weight(token_weight, tokens).squeeze(-1)
    if not is_exporting() and can_aggregate(tokens, weight):
        merged = aggregate_by_triton(tokens, weight, cluster_index, num_clusters, WEIGHT_EPSILON)
    else:
        merged, _ = merge_tokens(tokens, weight, cluster_index, num_clusters, WEIGHT_EPSILON)
    return merged.to(tokens.dtype)


def weight_tokens(tokens: torch.Tensor, token_weight: torch.Tensor) -> torch.Tensor:
    """
    What [`aggregate_tokens`] gives when every token is a cluster of its own (lambda = 1), in the order of the tokens:
    x_i w_i / (w_i + 1e-6).

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        token_weight (`torch.Tensor` of shape `(B, N, 1)` or `(B, N)`): Positive weights.

    Returns:
        `torch.Tensor` of shape `(B, N, C)` in the dtype of `tokens`.
    """
    weight = _as_weight(token_weight, tokens)
    return (tokens * (weight / (weight + WEIGHT_EPSILON))).to(tokens.dtype)


def clustering_path(tokens: torch.Tensor, num_neighbors: int = 5) -> str:
    """
    What [`find_clusters`] clusters these tokens by.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        num_neighbors (`int`, defaults to 5): k of Eq. 1.

    Returns:
        `str`: `"compiled kernel"`, `"triton"` or `"tensor operations"`.
    """
    # Other paths' clusters would become constants of an exported graph.
    if is_exporting():
        return "tensor operations"
    if can_cluster_by_kernel(tokens, num_neighbors):
        return "compiled kernel"
    if can_cluster_by_triton(tokens, num_neighbors):
        return "triton"
    return "tensor operations"


def _find_clusters(tokens: torch.Tensor, num_clusters: list[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    """[`find_clusters`] on checked arguments; the scales stacked, (S, B, N)."""
    arguments = (tokens, num_clusters, num_neighbors, assignment)
    if not is_exporting():
        _check_memory(tokens)
    path = clustering_path(tokens, num_neighbors)
    if path == "compiled kernel":
        return cluster_by_kernel(*arguments)
    if path == "triton":
        labels = attempt(cluster_by_triton, *arguments)
        if labels is not None:
            return labels
    return cluster_by_tensors(*arguments)


class _Region(NamedTuple):
    """A rectangle of the grid that windows of one size fill."""

    rows: slice
    columns: slice
    windows: tuple[int, int]  # how many, (down, across)
    side: tuple[int, int]  # of a window, (height, width)

    @property
    def num_windows(self) -> int:
        return math.prod(self.windows)

    def share(self, num_clusters: int, num_tokens: int) -> int:
        """Clusters of each window, in proportion to its tokens."""
        return max(1, num_clusters * math.prod(self.side) // num_tokens)


def _regions_of_windows(size: tuple[int, int], window: int) -> list[_Region]:
    """At most four: windows differ by at most one token in height and in width."""
    return [
        _Region(rows, columns, (down, across), (height, width))
        for rows, down, height in _nearly_equal_parts(size[0], window)
        for columns, across, width in _nearly_equal_parts(size[1], window)
    ]


def _nearly_equal_parts(length: int, longest: int) -> list[tuple[slice, int, int]]:
    """The fewest parts of a length: where they lie, how many, and how long; first the longer ones, if there are two."""
    parts = -(-length // longest)
    side, longer = divmod(length, parts)
    border = longer * (side + 1)
    shorter = (slice(border, length), parts - longer, side)
    return [(slice(0, border), longer, side + 1), shorter] if longer else [shorter]


def _find_clusters_in_windows(
    tokens: torch.Tensor,
    num_clusters: list[int],
    num_neighbors: int,
    assignment: str,
    size: tuple[int, int],
    window: int,
) -> list[torch.Tensor]:
    """[`find_clusters`] in each window; windows are images of a larger batch."""
    batch_size, num_tokens, _ = tokens.shape
    grid = tokens.unflatten(1, size)
    labels = [torch.empty(batch_size, *size, dtype=torch.long, device=tokens.device) for _ in num_clusters]
    taken = [0] * len(num_clusters)
    for region in _regions_of_windows(size, window):
        (down, across), (height, width) = region.windows, region.side
        parts = grid[:, region.rows, region.columns].unflatten(1, (down, height)).unflatten(3, (across, width))
        windows = parts.transpose(2, 3).flatten(3, 4).flatten(0, 2)
        shares = [region.share(number, num_tokens) for number in num_clusters]
        for scale, found in enumerate(find_clusters(windows, shares, num_neighbors, assignment)):
            offset = torch.arange(region.num_windows, device=tokens.device).view(down, across, 1, 1) * shares[scale]
            found = found.view(batch_size, down, across, height, width) + (taken[scale] + offset)
            labels[scale][:, region.rows, region.columns] = found.transpose(2, 3).flatten(3, 4).flatten(1, 2)
            taken[scale] += region.num_windows * shares[scale]
    return [label.flatten(1) for label in labels]


def _as_weight(token_weight: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Weights as (B, N, 1), in float32 or wider."""
    batch_size, num_tokens, _ = tokens.shape
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if token_weight is None:
        return torch.ones(batch_size, num_tokens, 1, dtype=dtype, device=tokens.device)
    if token_weight.device != tokens.device:
        raise ValueError(f"`token_weight` must be on {tokens.device} like `tokens`, got {token_weight.device}.")
    if token_weight.shape not in ((batch_size, num_tokens), (batch_size, num_tokens, 1)):
        raise ValueError(
            f"`token_weight` must have shape {(batch_size, num_tokens, 1)} or {(batch_size, num_tokens)}, "
            f"got {tuple(token_weight.shape)}."
        )
    return token_weight.reshape(batch_size, num_tokens, 1).to(dtype)


def _check_window(tokens: torch.Tensor, size: tuple[int, int] | None, window: int):
    if window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}.")
    if size is None or math.prod(size) != tokens.shape[1]:
        raise ValueError(f"`size` must be (height, width) of a grid of {tokens.shape[1]} tokens, got {size}.")


def _check_arguments(tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int, assignment: str):
    if tokens.ndim != 3 or 0 in tokens.shape[1:]:
        raise ValueError(f"`tokens` must have shape (B, N, C) with N, C >= 1, got {tuple(tokens.shape)}.")
    if not tokens.is_floating_point():
        raise ValueError(f"`tokens` must be floating point, got {tokens.dtype}.")
    if not isinstance(num_clusters, Sequence) or not num_clusters or min(num_clusters) < 1:
        raise ValueError(f"`num_clusters` must be a sequence of numbers of at least 1, got {num_clusters!r}.")
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1, got {num_neighbors}.")
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"`assignment` must be one of {list(ASSIGNMENTS)}, got {assignment!r}.")


def _check_memory(tokens: torch.Tensor):
    """PyTorch's own operations crash the process for freed memory."""
    try:
        is_freed = tokens.numel() > 0 and tokens.untyped_storage().nbytes() == 0
    except (RuntimeError, NotImplementedError):  # wrapped, or of a kind that has no memory
        return
    if is_freed:
        raise ValueError(
            f"`tokens` must have memory, got a tensor of shape {tuple(tokens.shape)} whose memory was freed."
        )


@torch.library.custom_op("clustr_hf::find_clusters", mutates_args=())
def _find_clusters_op(
    tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int, assignment: str
) -> torch.Tensor:
    return _find_clusters(tokens, list(num_clusters), num_neighbors, assignment)


@_find_clusters_op.register_fake
def _(tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    batch_size, num_tokens, _ = tokens.shape
    return tokens.new_empty((len(num_clusters), batch_size, num_tokens), dtype=torch.long)


__all__ = [
    "aggregate_tokens",
    "clustering_path",
    "count_clusters",
    "find_clusters",
    "log_local_density",
    "nearest_tokens",
    "separation_and_parent",
    "weight_tokens",
]
