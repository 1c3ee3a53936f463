# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The clustering and the aggregation as tensor operations, for every device and dtype: Eqs. 1 to 3 in memory linear in N.
clustering_equations_clustr.py states the equations as written.

Shapes: B images, N tokens, C channels, k neighbours, M clusters, S scales, R rows of a block.

Distances are Euclidean divided by sqrt(C), as in the authors' release. They are computed in two steps: a matrix product
of centred tokens ranks the candidates; the few that are chosen (k neighbours, one denser token) are measured again from
coordinate differences. So no value suffers from cancellation, and equal tokens are exactly 0 apart. Only a block of
distances is in memory at a time, with at most [`block_elements`] elements (B N if that is more); everything else is
linear in N.

On accelerators all images of a batch are clustered together, and nothing waits for the device.

Densities and decision values are compared as logarithms. These order tokens as Eq. 1 and rho * delta do, but neither
underflow for tokens that are far apart nor all round to 1 for tokens that are close together.

Ties go to the lower index, as clustering_clustr.py describes. Whether two *different* tokens at the same distance tie
depends on the rounding of the matrix product.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


# Elements of a block of distances on CPUs: 2 MiB in float32, which stays in the cache until it is searched.
CHUNK_ELEMENTS = 2**19

# Memory of a block of distances on accelerators in MiB, and the environment variable that overrides it.
BLOCK_MIB = 1024
BLOCK_VARIABLE = "CLUSTR_BLOCK_MIB"


def is_exporting() -> bool:
    """`bool`: Whether `torch.export` is tracing; always False for torch before 2.7, which cannot tell."""
    return getattr(torch.compiler, "is_exporting", bool)()


def is_on_accelerator(tokens: torch.Tensor) -> bool:
    """`bool`: Whether tokens are on a device where large operations are fast, and waiting for a result is slow."""
    return not tokens.is_cpu


def cluster(tokens: torch.Tensor, num_clusters: list[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    """
    [`~clustering_clustr.find_clusters`] by tensor operations.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point; clustered in float64 or float32.
        num_clusters, num_neighbors, assignment: As in [`~clustering_clustr.find_clusters`], already validated.

    Returns:
        `torch.LongTensor` of shape `(S, B, N)`, one entry for each of `num_clusters`.
    """
    tokens = tokens.to(torch.float64 if tokens.dtype == torch.float64 else torch.float32)
    with without_autocast(tokens.device.type):
        groups = [
            _cluster_group(images, num_clusters, num_neighbors, assignment) for images in _groups_of_images(tokens)
        ]
    return torch.cat(groups, dim=1)


def block_elements(tokens: torch.Tensor) -> int:
    """
    The largest number of elements in a block of distances between these tokens: `CHUNK_ELEMENTS` on CPUs, elsewhere
    what fits into `BLOCK_MIB` mebibytes or the number in the environment variable `CLUSTR_BLOCK_MIB`.

    Raises:
        ValueError: if the environment variable is not a whole number of at least 1.
    """
    if not is_on_accelerator(tokens):
        return CHUNK_ELEMENTS
    text = os.environ.get(BLOCK_VARIABLE, str(BLOCK_MIB))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"The environment variable `{BLOCK_VARIABLE}` must be a whole number of MiB, at least 1, got {text!r}."
        )
    return int(text) * 2**20 // tokens.element_size()


def _groups_of_images(tokens: torch.Tensor) -> Sequence[torch.Tensor]:
    """
    Images that are clustered together: on CPUs as many as fill a block of distances, at least one.

    On accelerators all images form one group, as they do in an exported graph, where a loop would fix their number.
    """
    if is_exporting() or is_on_accelerator(tokens):
        return [tokens]
    return tokens.split(max(1, CHUNK_ELEMENTS // tokens.shape[1] ** 2))


def _cluster_group(tokens: torch.Tensor, num_clusters: list[int], num_neighbors: int, assignment: str) -> torch.Tensor:
    """Clusters of a group of images, (B, N, C) -> (S, B, N)."""
    tokens = _center(tokens)
    first_duplicate = _first_duplicate(tokens)
    nearest = nearest_tokens(tokens, num_neighbors)
    log_density = log_local_density(tokens, nearest[0]).gather(1, first_duplicate)
    density_rank = _rank_descending(log_density)
    can_wait = not is_exporting() and not is_on_accelerator(tokens) and len(tokens) > 0
    separation, parent = separation_and_parent(tokens, density_rank, nearest if can_wait else None)
    # Equal tokens are equally dense, so the first of them is denser than every token that one of them is denser than.
    parent = first_duplicate.gather(1, parent)
    log_decision_value = _log_decision_value(log_density, separation)
    # Eq. 2 makes the densest token the first centre. Infinity enforces this in spite of rounding and overflow.
    log_decision_value = log_decision_value.clamp(max=torch.finfo(tokens.dtype).max)
    decision_rank = _rank_descending(log_decision_value.masked_fill(density_rank == 0, torch.inf))

    if assignment == "nearest_center":
        scales = _join_nearest_center(tokens, decision_rank, first_duplicate, num_clusters)
    else:
        scales = [_follow_parents(decision_rank, parent, number) for number in num_clusters]
    return torch.stack(scales)


def _log_decision_value(log_density: torch.Tensor, separation: torch.Tensor) -> torch.Tensor:
    """log(rho delta), (B, N)."""
    wide = _for_library_functions(log_density)
    return (log_density.to(wide) + separation.to(wide).log()).to(log_density.dtype)


def _for_library_functions(tokens: torch.Tensor) -> torch.dtype:
    """
    The dtype for logarithms and roots: float64 on CPUs. In float32 their last bit depends on the library (MKL, or the C
    library in the compiled kernel), which would decide between nearly equal values.
    """
    return tokens.dtype if is_exporting() or is_on_accelerator(tokens) else torch.float64


def _follow_parents(decision_rank: torch.Tensor, parent: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Label of the first centre on the path from each token to denser tokens; all tensors (B, N)."""
    num_tokens = parent.shape[1]
    itself = torch.arange(num_tokens, device=parent.device).expand_as(parent)
    ancestor = torch.where(decision_rank < num_clusters, itself, parent)
    for _ in range(int(num_tokens - 1).bit_length()):  # doubles the path; int: no tensor under jit.trace
        ancestor = ancestor.gather(1, ancestor)
    # The clamp matters for NaN tokens only, whose parents may form a cycle: it keeps their labels valid.
    return decision_rank.gather(1, ancestor).clamp(max=num_clusters - 1)


def _join_nearest_center(
    tokens: torch.Tensor, decision_rank: torch.Tensor, first_duplicate: torch.Tensor, num_clusters: list[int]
) -> list[torch.Tensor]:
    """Label of each token's nearest centre for every scale; centres keep their own label."""
    num_centers = min(max(num_clusters), tokens.shape[1])
    center_index = decision_rank.argsort(dim=1)[:, :num_centers]  # the first of these are the centres of coarser scales
    centers = _gather_tokens(tokens, center_index)
    half_norm = _half_norm(centers)
    labels: list[list[torch.Tensor]] = [[] for _ in num_clusters]
    for rows in tokens.split(_rows_at_once(tokens), dim=1):
        distance = _ranking_distance(rows, centers, half_norm)
        for scale, number in zip(labels, num_clusters):
            scale.append(distance[..., :number].argmin(dim=-1))

    scales = []
    for label, number in zip(labels, num_clusters):
        nearest = center_index.gather(1, torch.cat(label, dim=1))
        nearest_rank = decision_rank.gather(1, first_duplicate.gather(1, nearest))
        scales.append(torch.where(decision_rank < number, decision_rank, nearest_rank).clamp(max=number - 1))
    return scales


def _center(tokens: torch.Tensor) -> torch.Tensor:
    """
    Tokens minus the token nearest to their mean: products of tokens far from the origin would cancel.

    A token instead of the mean keeps the differences between tokens on a grid exact, and so their ties.
    """
    squared = _squared_distance(tokens, tokens.mean(dim=1, keepdim=True))
    return tokens - _gather_tokens(tokens, squared.argmin(dim=1, keepdim=True))


def _first_duplicate(tokens: torch.Tensor) -> torch.Tensor:
    """
    For each token the index of the first token of its image that equals it, often itself; (B, N, C) -> (B, N).

    A matrix product may round equal tokens differently, which would break ties between them at random.
    """
    channels = tokens.shape[-1]
    key_direction = torch.arange(1, channels + 1, device=tokens.device, dtype=tokens.dtype).cos()
    order = (tokens * key_direction).sum(dim=-1).argsort(dim=1)
    ordered = _gather_tokens(tokens, order)
    run = _number_runs((ordered[:, 1:] != ordered[:, :-1]).any(dim=-1))
    first = torch.full_like(order, tokens.shape[1]).scatter_reduce(1, run, order, "amin")
    return torch.empty_like(order).scatter(1, order, first.gather(1, run))


def _ranking_distance(rows: torch.Tensor, tokens: torch.Tensor, half_norm: torch.Tensor) -> torch.Tensor:
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


def without_autocast(device_type: str) -> AbstractContextManager:
    """Disables autocast on device types that support it (the meta device does not)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type=device_type, enabled=False)
    return nullcontext()


def _rows_at_once(tokens: torch.Tensor, width: int | None = None) -> int:
    """R, as many rows of each image as fill a block with `width` numbers a row: by default a distance to each token."""
    batch_size, num_tokens, _ = tokens.shape
    # In an exported graph the number of images is not known: blocks are those of one image.
    images = 1 if is_exporting() else max(1, batch_size)
    return max(1, block_elements(tokens) // (images * (width or num_tokens)))


def _rank_descending(values: torch.Tensor) -> torch.Tensor:
    """
    Rank of each value, 0 for the largest, ties by index; (B, N) -> (B, N).

    ONNX has no stable sort, so a second sort, of integers without ties, orders equal values by index.
    """
    ordered, order = values.sort(dim=1, descending=True)
    run = _number_runs(ordered[:, 1:] != ordered[:, :-1])
    order = order.gather(1, (run * values.shape[1] + order).argsort(dim=1))
    rank = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, rank)


def _number_runs(differs: torch.Tensor) -> torch.Tensor:
    """Number of the run that each element belongs to; `differs` (B, N - 1) is true where a new run starts -> (B, N)."""
    return nn.functional.pad(differs.cumsum(dim=1), (1, 0))


def nearest_tokens(tokens: torch.Tensor, num_neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The k nearest tokens of each token, itself included, in no particular order.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): float32 or float64.
        num_neighbors (`int`): k. Values above N mean N.

    Returns:
        `tuple[torch.LongTensor, torch.Tensor]`, each of shape `(B, N, k)`: the indices of the neighbours, and their
        ranking distances (half the squared distance minus half the token's squared norm), which order the neighbours
        of a token as their distances do.
    """
    k = min(num_neighbors, tokens.shape[1])
    half_norm = _half_norm(tokens)
    nearest = [
        _ranking_distance(rows, tokens, half_norm).topk(k, dim=-1, largest=False, sorted=False)
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
    size = _rows_at_once(tokens, neighbors.shape[2] * tokens.shape[2])
    for rows, near in zip(tokens.split(size, dim=1), neighbors.split(size, dim=1)):
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
            From [`nearest_tokens`]. If given, only tokens without a denser one among their neighbours search all
            others. Their number must then be known, for which the host would have to wait for an accelerator.

    Returns:
        `tuple[torch.Tensor, torch.LongTensor]`, each of shape `(B, N)`: delta, and the index of the nearest denser
        token, the parent. The densest token is its own parent, and its delta is the distance to the farthest token.
    """
    if nearest is None:
        parent = _nearest_denser(tokens, tokens, density_rank, density_rank)
    else:
        parent, is_found = _denser_neighbor(density_rank, *nearest)
        missing = (~is_found).sum(dim=1).max()
        # Images with fewer such tokens also search for some tokens whose parent is known.
        rows = is_found.to(torch.uint8).argsort(dim=1)[:, :missing]
        found = _nearest_denser(_gather_tokens(tokens, rows), tokens, density_rank.gather(1, rows), density_rank)
        parent = parent.scatter(1, rows, found)

    densest = density_rank.argmin(dim=1, keepdim=True)
    is_densest = density_rank == 0
    parent = torch.where(is_densest, densest, parent)
    to_parent = _squared_distance(tokens, _gather_tokens(tokens, parent))
    to_farthest = _squared_distance(tokens, _gather_tokens(tokens, densest)).amax(dim=1, keepdim=True)
    squared = torch.where(is_densest, to_farthest, to_parent)
    mean = squared / tokens.shape[-1]
    return mean.to(_for_library_functions(mean)).sqrt().to(mean.dtype), parent


def _denser_neighbor(
    density_rank: torch.Tensor, neighbors: torch.Tensor, ranking_distance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The nearest denser token among the k nearest, and whether it is certainly the nearest of all tokens; (B, N) each.

    It is uncertain if it is as far as the farthest neighbour: a token of lower index beyond these may be equally far.
    """
    near_rank = density_rank.gather(1, neighbors.flatten(1)).view_as(neighbors)
    to_denser = ranking_distance.masked_fill(near_rank >= density_rank.unsqueeze(2), torch.inf)
    smallest = to_denser.amin(dim=-1, keepdim=True)
    parent = neighbors.masked_fill(to_denser != smallest, neighbors.shape[1] - 1).amin(dim=-1)
    return parent, smallest.squeeze(2) < ranking_distance.amax(dim=-1)


def _nearest_denser(
    rows: torch.Tensor, tokens: torch.Tensor, rows_rank: torch.Tensor, density_rank: torch.Tensor
) -> torch.Tensor:
    """Index of the nearest denser token, the first of equally near ones, for R rows; (B, R, C), (B, N, C) -> (B, R)."""
    half_norm = _half_norm(tokens)
    parent = []
    size = _rows_at_once(tokens)
    for some_rows, some_rank in zip(rows.split(size, dim=1), rows_rank.split(size, dim=1)):
        distance = _ranking_distance(some_rows, tokens, half_norm)
        not_denser = density_rank.unsqueeze(1) >= some_rank.unsqueeze(2)
        parent.append(distance.masked_fill_(not_denser, torch.inf).argmin(dim=-1))
    return torch.cat(parent, dim=1)


def merge_tokens(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Weighted means of clusters (Eq. 3) and the sums of their weights.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        weight (`torch.Tensor` of shape `(B, N)`): Their weights, in float32 or wider.
        cluster_index (`torch.LongTensor` of shape `(B, N)`): Cluster of each token, values in `[0, M)`.
        num_clusters (`int`): M.
        epsilon (`float`): Added to the sum of a cluster's weights.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(B, M, C)` and `(B, M)` in the dtype of `weight`.
    """
    batch_size, _, channels = tokens.shape
    weight = weight.unsqueeze(-1)
    image_offset = torch.arange(batch_size, device=tokens.device)[:, None] * num_clusters
    slots = (cluster_index + image_offset).flatten()
    weighted_sum = weight.new_zeros(batch_size * num_clusters, channels)
    weighted_sum = weighted_sum.index_add(0, slots, (weight * tokens).flatten(0, 1))
    weight_sum = weight.new_zeros(batch_size * num_clusters, 1).index_add(0, slots, weight.flatten(0, 1))
    merged = weighted_sum / (weight_sum + epsilon)
    return merged.view(batch_size, num_clusters, channels), weight_sum.view(batch_size, num_clusters)


def merge_gradients(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    cluster_index: torch.Tensor,
    merged: torch.Tensor,
    weight_sum: torch.Tensor,
    gradient: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Backward pass of [`merge_tokens`]: gradients `(B, N, C)` of the tokens and `(B, N)` of their weights, from the
    `gradient` of `merged`, `(B, M, C)`.
    """
    share = gradient / (weight_sum + epsilon).unsqueeze(-1)
    share = _gather_tokens(share, cluster_index)
    weight_gradient = (share * (tokens - _gather_tokens(merged, cluster_index))).sum(dim=-1)
    return (share * weight.unsqueeze(-1)).to(tokens.dtype), weight_gradient
