# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
kNN-based density peaks clustering of vision tokens and their aggregation (Eqs. 1 to 3, section 3.1 of the paper).

The equations as written, in a few lines on N x N matrices, are in clustering_equations_clustr.py. [`find_clusters`] and
[`aggregate_tokens`] compute the same in memory linear in N. They choose an implementation for the device: a compiled
kernel for CPUs, Triton kernels for GPUs, or tensor operations.

Clustering decides which tokens belong together, without gradient; aggregation merges them, with gradient. Neither
depends on a model.

Shapes: B images, N tokens, C channels, k neighbours, M clusters, S scales.

Ties go to the lower index: of two equally dense tokens the first counts as denser, of two equally near tokens the first
counts as nearer. The same holds for decision values and for equally near centres.
"""

import functools
from collections.abc import Sequence

import torch

from .clustering_equations_clustr import WEIGHT_EPSILON
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
from .clustering_windows_clustr import check_window, count_clusters, find_clusters_in_windows


ASSIGNMENTS = ("density_parent", "nearest_center")

# The largest number of clusters or neighbours that every implementation can represent; no image has as many tokens.
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

    Tokens of at most 32 bits, with k of at most 8, are clustered by a compiled kernel on CPUs, if one was built
    (clustering_kernel_clustr.py), and by Triton kernels on CUDA and ROCm devices (clustering_triton_clustr.py, up to
    1024 channels and 2**18 tokens). Everything else is clustered by tensor operations (clustering_tensor_clustr.py).
    The implementations find the same clusters, except where two distances, densities or decision values differ only by
    float32 rounding. Squared distances must fit into float32: clusters of tokens that are more than about 1e18 apart,
    or all less than 1e-18 apart, depend on the implementation and are not meaningful.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`):
            Floating point tokens. float64 is clustered in float64, everything else in float32, under any autocast.
            (If TF32 matrix products are enabled on a GPU, tensor operations rank candidates with TF32 precision; the
            Triton kernels do not.)
        num_clusters (`Sequence[int]`):
            M for each scale, at least 1. A scale with M >= N makes every token a cluster of its own.
        num_neighbors (`int`, defaults to 5):
            k of Eq. 1, the token itself included. Values above N mean N.
        assignment (`str`, defaults to `"density_parent"`):
            `"density_parent"`: each token joins the cluster of its nearest token with higher density (the paper).
            `"nearest_center"`: each token joins the nearest centre (the authors' release).
        size (`tuple[int, int]`, *optional*):
            (height, width) of the token grid, whose tokens are in row-major order. Required with `window`.
        window (`int`, *optional*):
            Not in the paper: finds clusters within windows of the grid whose sides are at most this many tokens. Each
            window receives its share of the M clusters, rounded down but at least one; [`count_clusters`] returns the
            total. Clusters are numbered window by window.

    Returns:
        `list[torch.LongTensor]`: for each scale the cluster of every token, shape `(B, N)`, values in
        `[0, min(M, N))`. Clusters are numbered by falling decision value rho * delta of their centre, so cluster m has
        the same centre in every scale. The result for an image does not depend on the other images of the batch.

    Raises:
        ValueError: for tokens of a wrong rank, size or dtype or whose memory was freed, for a number or an assignment
            out of range, and for a `window` without the matching `size`.
    """
    _check_arguments(tokens, num_clusters, num_neighbors, assignment)
    num_clusters = [min(int(number), MAX_CLUSTERS) for number in num_clusters]
    num_neighbors = min(num_neighbors, MAX_CLUSTERS)
    if window is not None:
        check_window(tokens.shape[1], size, window)
        if window < max(size):
            cluster = functools.partial(find_clusters, num_neighbors=num_neighbors, assignment=assignment)
            return find_clusters_in_windows(cluster, tokens, num_clusters, size, window)
    if torch.compiler.is_compiling() and not is_exporting():
        # One opaque node for the compiler, which would unroll the loops over blocks into thousands of nodes.
        return list(torch.ops.clustr_hf.find_clusters(tokens, num_clusters, num_neighbors, assignment).unbind())
    return list(_find_clusters(tokens, num_clusters, num_neighbors, assignment).unbind())


def aggregate_tokens(
    tokens: torch.Tensor,
    cluster_index: torch.Tensor,
    num_clusters: int,
    token_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Merge the tokens of each cluster into one, h_m = sum_i w_i x_i / (sum_i w_i + 1e-6) over its members (Eq. 3).

    The normalisation follows the authors' release; Eq. 3 leaves the weights unnormalised. Sums are accumulated in
    float32 or wider.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`):
            Floating point tokens.
        cluster_index (`torch.LongTensor` of shape `(B, N)`):
            Cluster of each token, values in `[0, num_clusters)`. Other values are an error that is not always reported:
            tensor operations may add the token to a cluster of another image; Triton kernels return NaN for the image.
        num_clusters (`int`):
            M.
        token_weight (`torch.Tensor` of shape `(B, N, 1)` or `(B, N)`, *optional*):
            Positive weights w. Defaults to 1 for every token.

    Returns:
        `torch.Tensor` of shape `(B, M, C)` in the dtype of `tokens`; zeros for a cluster without members.

    Raises:
        ValueError: if shapes or devices do not match, or `num_clusters` is less than 1.
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
    [`aggregate_tokens`] for clusters of one token each (lambda = 1), in token order: x_i w_i / (w_i + 1e-6).

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        token_weight (`torch.Tensor` of shape `(B, N, 1)` or `(B, N)`): Positive weights.

    Returns:
        `torch.Tensor` of shape `(B, N, C)` in the dtype of `tokens`.

    Raises:
        ValueError: if shapes or devices do not match.
    """
    weight = _as_weight(token_weight, tokens)
    return (tokens * (weight / (weight + WEIGHT_EPSILON))).to(tokens.dtype)


def clustering_path(tokens: torch.Tensor, num_neighbors: int = 5) -> str:
    """
    Name of the implementation that [`find_clusters`] uses for these tokens.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        num_neighbors (`int`, defaults to 5): k of Eq. 1.

    Returns:
        `str`: `"compiled kernel"`, `"triton"` or `"tensor operations"`.
    """
    # An exported graph would store the clusters of the other implementations as constants.
    if is_exporting():
        return "tensor operations"
    if can_cluster_by_kernel(tokens, num_neighbors):
        return "compiled kernel"
    if can_cluster_by_triton(tokens, num_neighbors):
        return "triton"
    return "tensor operations"


def _find_clusters(tokens: torch.Tensor, num_clusters: list[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    """[`find_clusters`] for validated arguments and without windows; the scales stacked, (S, B, N)."""
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


def _as_weight(token_weight: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Weights of shape (B, N, 1), in float32 or wider."""
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
    """Raise a `ValueError` for freed memory, for which PyTorch's own operations crash the process."""
    try:
        is_freed = tokens.numel() > 0 and tokens.untyped_storage().nbytes() == 0
    except (RuntimeError, NotImplementedError):  # a wrapped tensor, or one of a kind without memory
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
