# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
kNN-based density peaks clustering of vision tokens (section 3.1 of the paper) and their aggregation.

Tensor functions that know no model: [`find_clusters`] decides which tokens belong together, without gradient;
[`aggregate_tokens`] merges them, with gradient.

Shapes: B images, N tokens, C channels, k neighbours, M clusters, R rows of a chunk.

Distances are Euclidean divided by sqrt(C), as in the authors' release. They are found in two steps: a matrix product of
centred tokens ranks candidates, and the few that are chosen (k neighbours, one denser token) are measured again from
coordinate differences, so that no value suffers from cancellation and equal tokens are exactly 0 apart. A block of
distances has at most `CHUNK_ELEMENTS` elements (N if that is more), whatever N and B are; all else is linear in N.

Densities and decision values are compared as logarithms. They order tokens as Eq. 1 and rho * delta do, but neither
underflow where tokens are far apart nor all round to 1 where they are close.

Ties go to the lower index: of two equally dense tokens the first is the denser one, of two equally near tokens the
first is the nearer one, and so for decision values and for the labels of equally near centres. Two *different* tokens
at the same distance tie up to the rounding of the matrix product.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from transformers.utils import is_torchdynamo_exporting

from .clustering_kernel_clustr import can_cluster, cluster
from .configuration_clustr import CLUSTER_ASSIGNMENTS


# Elements of one block of distances: 2 MiB in float32, so that it is still in the cache when it is searched.
CHUNK_ELEMENTS = 2**19

# Keeps the aggregation finite when a cluster is empty or its weights underflow (the value of the authors' release).
WEIGHT_EPSILON = 1e-6


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

    Float32 tokens on CPUs are clustered by a compiled kernel where one was built (clustering_kernel_clustr.py), all
    others by tensor operations.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`):
            Floating point tokens. float64 is clustered in float64, everything else in float32, under any autocast.
            (Where TF32 matrix products are switched on for a GPU, candidates are ranked with TF32's precision.)
        num_clusters (`Sequence[int]`):
            M for each scale, at least 1. A scale with M >= N makes every token a cluster of its own.
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
    num_clusters = [int(number) for number in num_clusters]
    if window is not None:
        _check_window(tokens, size, window)
    if window is not None and window < max(size):
        return _find_clusters_in_windows(tokens, num_clusters, num_neighbors, assignment, size, window)
    if torch.compiler.is_compiling() and not is_torchdynamo_exporting():
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
            Cluster of each token, values in `[0, num_clusters)`.
        num_clusters (`int`):
            M.
        token_weight (`torch.Tensor` of shape `(B, N, 1)` or `(B, N)`, *optional*):
            Positive weights w; default is 1 for every token.

    Returns:
        `torch.Tensor` of shape `(B, M, C)` in the dtype of `tokens`; zeros for a cluster without members.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    batch_size, num_tokens, channels = tokens.shape
    if cluster_index.shape != (batch_size, num_tokens):
        raise ValueError(
            f"`cluster_index` must have shape {(batch_size, num_tokens)} like `tokens` {tuple(tokens.shape)}, "
            f"got {tuple(cluster_index.shape)}."
        )
    weight = _as_weight(token_weight, tokens)
    image_offset = torch.arange(batch_size, device=tokens.device)[:, None] * num_clusters
    slots = (cluster_index + image_offset).flatten()

    weighted_sum = weight.new_zeros(batch_size * num_clusters, channels)
    weighted_sum = weighted_sum.index_add(0, slots, (weight * tokens).flatten(0, 1))
    weight_sum = weight.new_zeros(batch_size * num_clusters, 1).index_add(0, slots, weight.flatten(0, 1))
    merged = weighted_sum / (weight_sum + WEIGHT_EPSILON)
    return merged.view(batch_size, num_clusters, channels).to(tokens.dtype)


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


def nearest_tokens(tokens: torch.Tensor, num_neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The k nearest tokens of each token, itself included, in no particular order.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): float32 or float64.
        num_neighbors (`int`): k; N if that is less.

    Returns:
        `tuple[torch.LongTensor, torch.Tensor]`, each of shape `(B, N, k)`: their indices, and a number for each that
        orders the neighbours of a token as their distances do (half the squared distance, less half the token's norm).
    """
    k = min(num_neighbors, tokens.shape[1])
    half_norm = _half_norm(tokens)
    nearest = [
        _farness(rows, tokens, half_norm).topk(k, dim=-1, largest=False, sorted=False)
        for rows in tokens.split(_rows_at_once(tokens), dim=1)
    ]
    return torch.cat([rows.indices for rows in nearest], dim=1), torch.cat([rows.values for rows in nearest], dim=1)


def log_local_density(tokens: torch.Tensor, neighbors: torch.Tensor) -> torch.Tensor:
    """
    log rho of Eq. 1: minus the mean squared distance to the k nearest tokens, the token itself included.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): float32 or float64.
        neighbors (`torch.LongTensor` of shape `(B, N, k)`): Indices from [`nearest_tokens`].

    Returns:
        `torch.Tensor` of shape `(B, N)`, values of at most 0.
    """
    squared = []
    for rows, near in zip(tokens.split(_rows_at_once(tokens), dim=1), neighbors.split(_rows_at_once(tokens), dim=1)):
        near_tokens = _gather_tokens(tokens, near.flatten(1)).unflatten(1, near.shape[1:])
        squared.append(_squared_distance(rows.unsqueeze(2), near_tokens))
    # Sorted, so that equal neighbourhoods have bitwise equal densities whatever order they were found in.
    total = torch.cat(squared, dim=1).sort(dim=-1).values.sum(dim=-1)
    return -total / (neighbors.shape[-1] * tokens.shape[-1])


def separation_and_parent(
    tokens: torch.Tensor,
    density_rank: torch.Tensor,
    nearest: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    delta of Eq. 2, the distance to the nearest denser token, and which token that is.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): float32 or float64.
        density_rank (`torch.LongTensor` of shape `(B, N)`): 0 for the densest token of an image, N - 1 for the last.
        nearest (`tuple[torch.LongTensor, torch.Tensor]`, *optional*):
            From [`nearest_tokens`]. With it, only tokens without a denser one among their neighbours search all others;
            how many they are must then be known, for which an accelerator would have to wait.

    Returns:
        `tuple[torch.Tensor, torch.LongTensor]`, each of shape `(B, N)`: delta, and the index of the nearest denser
        token. The densest token is its own parent and has the distance to its farthest token as delta.
    """
    if nearest is None:
        parent = _nearest_denser(tokens, tokens, density_rank, density_rank)
    else:
        parent, is_found = _denser_neighbor(density_rank, *nearest)
        missing = (~is_found).sum(dim=1).max()
        # The images with fewer such tokens search again for some that have found their parent.
        rows = is_found.to(torch.uint8).argsort(dim=1)[:, :missing]
        found = _nearest_denser(_gather_tokens(tokens, rows), tokens, density_rank.gather(1, rows), density_rank)
        parent = parent.scatter(1, rows, found)

    densest = density_rank.argmin(dim=1, keepdim=True)
    is_densest = density_rank == 0
    parent = torch.where(is_densest, densest, parent)
    to_parent = _squared_distance(tokens, _gather_tokens(tokens, parent))
    to_farthest = _squared_distance(tokens, _gather_tokens(tokens, densest)).amax(dim=1, keepdim=True)
    squared = torch.where(is_densest, to_farthest, to_parent)
    return (squared / tokens.shape[-1]).sqrt(), parent


def _denser_neighbor(
    density_rank: torch.Tensor, neighbors: torch.Tensor, farness: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The nearest denser token among the k nearest, and whether it is sure to be the nearest of all; (B, N) each.

    Not so if it is as far as the farthest neighbour: one of lower index may be equally far, and not among the k.
    """
    near_rank = density_rank.gather(1, neighbors.flatten(1)).view_as(neighbors)
    denser_farness = farness.masked_fill(near_rank >= density_rank.unsqueeze(2), torch.inf)
    least = denser_farness.amin(dim=-1, keepdim=True)
    parent = neighbors.masked_fill(denser_farness != least, neighbors.shape[1] - 1).amin(dim=-1)
    return parent, least.squeeze(2) < farness.amax(dim=-1)


def _nearest_denser(
    rows: torch.Tensor, tokens: torch.Tensor, rows_rank: torch.Tensor, density_rank: torch.Tensor
) -> torch.Tensor:
    """Index of the nearest denser token, the first of equally near ones; (B, R, C), (B, N, C) -> (B, R)."""
    half_norm = _half_norm(tokens)
    parent = []
    size = _rows_at_once(tokens)
    for some_rows, some_rank in zip(rows.split(size, dim=1), rows_rank.split(size, dim=1)):
        farness = _farness(some_rows, tokens, half_norm)
        not_denser = density_rank.unsqueeze(1) >= some_rank.unsqueeze(2)
        parent.append(farness.masked_fill_(not_denser, torch.inf).argmin(dim=-1))
    return torch.cat(parent, dim=1)


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


def _find_clusters(tokens: torch.Tensor, num_clusters: list[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    """[`find_clusters`] on checked arguments; the scales stacked, (S, B, N)."""
    tokens = tokens.to(torch.float64 if tokens.dtype == torch.float64 else torch.float32)
    if not is_torchdynamo_exporting() and can_cluster(tokens, num_neighbors):
        return cluster(tokens, num_clusters, num_neighbors, assignment)
    with _without_autocast(tokens.device.type):
        groups = [
            _cluster_group(images, num_clusters, num_neighbors, assignment) for images in _groups_of_images(tokens)
        ]
    return torch.cat(groups, dim=1)


def _groups_of_images(tokens: torch.Tensor) -> Sequence[torch.Tensor]:
    """
    Small images are clustered together, as many as fill a chunk; large ones one at a time, rows in chunks.

    In an exported graph all images are one group: a loop over groups would fix their number.
    """
    if is_torchdynamo_exporting():
        return [tokens]
    return tokens.split(max(1, CHUNK_ELEMENTS // tokens.shape[1] ** 2))


def _cluster_group(tokens: torch.Tensor, num_clusters: list[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    """Clusters of a few images, (B, N, C) -> (S, B, N)."""
    tokens = _center(tokens)
    twin = _first_equal_token(tokens)
    nearest = nearest_tokens(tokens, num_neighbors)
    log_density = log_local_density(tokens, nearest[0]).gather(1, twin)
    density_rank = _rank_descending(log_density)
    wait_for_counts = not is_torchdynamo_exporting() and tokens.is_cpu and len(tokens) > 0
    separation, parent = separation_and_parent(tokens, density_rank, nearest if wait_for_counts else None)
    # Equal tokens are equally dense, so the first of them is denser than all that any of them is denser than.
    parent = twin.gather(1, parent)
    log_decision_value = log_density + separation.log()
    # Eq. 2 makes the densest token the first centre; said outright, no rounding can take its place away.
    decision_rank = _rank_descending(log_decision_value.masked_fill(density_rank == 0, torch.inf))

    if assignment == "nearest_center":
        scales = _join_nearest_center(tokens, decision_rank, twin, num_clusters)
    else:
        scales = [_follow_parents(decision_rank, parent, number) for number in num_clusters]
    return torch.stack(scales)


def _follow_parents(decision_rank: torch.Tensor, parent: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Label of the first centre on each token's way to denser tokens; all tensors (B, N)."""
    num_tokens = parent.shape[1]
    itself = torch.arange(num_tokens, device=parent.device).expand_as(parent)
    ancestor = torch.where(decision_rank < num_clusters, itself, parent)
    for _ in range(int(num_tokens - 1).bit_length()):  # each step doubles the way; int: no tensor under jit.trace
        ancestor = ancestor.gather(1, ancestor)
    # The clamp matters for NaN tokens only, whose parents may run in circles: still a valid index.
    return decision_rank.gather(1, ancestor).clamp(max=num_clusters - 1)


def _join_nearest_center(
    tokens: torch.Tensor, decision_rank: torch.Tensor, twin: torch.Tensor, num_clusters: list[int]
) -> list[torch.Tensor]:
    """Label of each token's nearest centre for every scale; centres keep their own label."""
    most = min(max(num_clusters), tokens.shape[1])
    center_index = decision_rank.argsort(dim=1)[:, :most]  # the centres of a coarse scale come first among a fine one's
    centers = _gather_tokens(tokens, center_index)
    half_norm = _half_norm(centers)
    labels: list[list[torch.Tensor]] = [[] for _ in num_clusters]
    for rows in tokens.split(_rows_at_once(tokens), dim=1):
        farness = _farness(rows, centers, half_norm)
        for scale, number in zip(labels, num_clusters):
            scale.append(farness[..., :number].argmin(dim=-1))

    scales = []
    for label, number in zip(labels, num_clusters):
        nearest = center_index.gather(1, torch.cat(label, dim=1))
        nearest_rank = decision_rank.gather(1, twin.gather(1, nearest))
        scales.append(torch.where(decision_rank < number, decision_rank, nearest_rank).clamp(max=number - 1))
    return scales


def _center(tokens: torch.Tensor) -> torch.Tensor:
    """
    Tokens minus the one that is nearest to their mean: what they have in common would drown the products' differences.

    Minus a token, not the mean itself: differences on a grid stay exact, and so do ties.
    """
    squared = _squared_distance(tokens, tokens.mean(dim=1, keepdim=True))
    return tokens - _gather_tokens(tokens, squared.argmin(dim=1, keepdim=True))


def _first_equal_token(tokens: torch.Tensor) -> torch.Tensor:
    """
    For each token the index of the first token of its image that equals it, often itself; (B, N, C) -> (B, N).

    A matrix product may round equal tokens differently, which would make ties between them a matter of chance.
    """
    channels = tokens.shape[-1]
    key_direction = torch.arange(1, channels + 1, device=tokens.device, dtype=tokens.dtype).cos()
    order = (tokens * key_direction).sum(dim=-1).argsort(dim=1)
    ordered = _gather_tokens(tokens, order)
    run = _number_runs((ordered[:, 1:] != ordered[:, :-1]).any(dim=-1))
    first = torch.full_like(order, tokens.shape[1]).scatter_reduce(1, run, order, "amin")
    return torch.empty_like(order).scatter(1, order, first.gather(1, run))


def _farness(rows: torch.Tensor, tokens: torch.Tensor, half_norm: torch.Tensor) -> torch.Tensor:
    """|x_j|^2 / 2 - x_i x_j: orders tokens j as their distance to row i does; (B, R, C), (B, N, C) -> (B, R, N)."""
    return torch.baddbmm(half_norm.unsqueeze(1), rows, tokens.mT, alpha=-1)


def _half_norm(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.square().sum(dim=-1) / 2


def _squared_distance(tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distance along the last dimension, not yet divided by C."""
    return (tokens - others).square().sum(dim=-1)


def _gather_tokens(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, N, C), (B, I) -> (B, I, C)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _without_autocast(device_type: str) -> AbstractContextManager:
    """Switches autocast off where there is one (there is none for the meta device)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type=device_type, enabled=False)
    return nullcontext()


def _rows_at_once(tokens: torch.Tensor) -> int:
    """R, so many rows that their distances to all N tokens fill a chunk."""
    return max(1, CHUNK_ELEMENTS // tokens.shape[1])


def _rank_descending(values: torch.Tensor) -> torch.Tensor:
    """
    Rank of each value, 0 for the largest, ties by index; (B, N) -> (B, N).

    Two sorts, the second of whole numbers without ties: ONNX has no stable sort.
    """
    ordered, order = values.sort(dim=1, descending=True)
    run = _number_runs(ordered[:, 1:] != ordered[:, :-1])
    order = order.gather(1, (run * values.shape[1] + order).argsort(dim=1))
    rank = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, rank)


def _number_runs(differs: torch.Tensor) -> torch.Tensor:
    """Numbers runs of equal elements by whether each but the first differs from the one before; (B, N-1) -> (B, N)."""
    return nn.functional.pad(differs.cumsum(dim=1), (1, 0))


def _as_weight(token_weight: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Weights as (B, N, 1), in float32 or wider."""
    batch_size, num_tokens, _ = tokens.shape
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if token_weight is None:
        return torch.ones(batch_size, num_tokens, 1, dtype=dtype, device=tokens.device)
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
    if assignment not in CLUSTER_ASSIGNMENTS:
        raise ValueError(f"`assignment` must be one of {list(CLUSTER_ASSIGNMENTS)}, got {assignment!r}.")


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
    "count_clusters",
    "find_clusters",
    "log_local_density",
    "nearest_tokens",
    "separation_and_parent",
    "weight_tokens",
]
