# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Triton kernels of the density peaks: densities (Eq. 1), nearest denser tokens (Eq. 2), decision values, and labels.

Shapes: B images, N tokens, C channels, k neighbours. Arrays are contiguous.
"""

from .clustering_triton_tiles_clustr import INFINITY, MAX_FINITE, locate, sized, squared_distance, tl


@sized
def log_density(
    tokens, nearest, density, num_tokens,
    CHANNELS: tl.constexpr, NEIGHBORS: tl.constexpr, SLOTS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """
    log rho of Eq. 1, minus the mean squared distance to the k nearest tokens: (B, N, C), (B, N, k) -> (B, N).

    Distances are added from the smallest to the largest, so that equal neighbourhoods have equal densities. NaN becomes
    -inf.
    """
    image, first = locate(num_tokens, ROWS)
    rows = first + tl.arange(0, ROWS)
    mask = rows < num_tokens
    tokens += image * num_tokens * CHANNELS
    slot = tl.arange(0, SLOTS)
    distance = tl.full((ROWS, SLOTS), INFINITY, tl.float32)
    for number in range(NEIGHBORS):
        other = tl.load(nearest + (image * num_tokens + rows) * NEIGHBORS + number, mask=mask, other=0)
        squared = squared_distance(tokens, rows, tokens, other, mask, CHANNELS, BLOCK_C)
        distance = tl.where(slot[None, :] == number, squared[:, None], distance)
    total = tl.zeros((ROWS,), tl.float32)
    for _ in range(NEIGHBORS):
        smallest = tl.min(distance, axis=1)
        place = tl.argmin(distance, axis=1)
        distance = tl.where(slot[None, :] == place[:, None], INFINITY, distance)
        total += smallest
    value = -tl.div_rn(total, tl.zeros((ROWS,), tl.float32) + NEIGHBORS * CHANNELS)
    tl.store(density + image * num_tokens + rows, tl.where(value == value, value, -INFINITY), mask=mask)


@sized
def denser_neighbor(order, rank, nearest, parent, is_missing, num_tokens, NEIGHBORS: tl.constexpr, BLOCK: tl.constexpr):
    """
    The nearest denser token among the k nearest, and whether none of them is denser: order (B, N), rank (B, N), nearest
    (B, N, k) by rising (distance, index) -> parent (B, N), is_missing (B, N).

    Parents are places in the order of density, as rows are. The densest token, place 0, is its own parent.
    """
    image, first = locate(num_tokens, BLOCK)
    place = first + tl.arange(0, BLOCK)
    mask = place < num_tokens
    token = tl.load(order + image * num_tokens + place, mask=mask, other=0)
    found = tl.where(place == 0, 0, -1)
    for number in tl.static_range(NEIGHBORS):
        other = tl.load(nearest + (image * num_tokens + token) * NEIGHBORS + number, mask=mask, other=0)
        other_place = tl.load(rank + image * num_tokens + other, mask=mask, other=0)
        found = tl.where((found < 0) & (other_place < place), other_place, found)
    tl.store(parent + image * num_tokens + place, tl.maximum(found, 0), mask=mask)
    tl.store(is_missing + image * num_tokens + place, (found < 0).to(tl.int8), mask=mask)


@sized
def log_decision(
    tokens, density, order, parent, decision, parent_token, num_tokens,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """
    log(rho delta) and the nearest denser token of each token.

    Tokens (B, N, C) and their parents (B, N) are in the order of density; density, decision and parent_token (B, N) are
    in the order of the tokens. The densest token gets infinity: Eq. 2 makes it the first centre. NaN becomes -inf.
    """
    image, first = locate(num_tokens, ROWS)
    place = first + tl.arange(0, ROWS)
    mask = place < num_tokens
    tokens += image * num_tokens * CHANNELS
    order += image * num_tokens
    above = tl.load(parent + image * num_tokens + place, mask=mask, other=0)
    squared = squared_distance(tokens, place, tokens, above, mask, CHANNELS, BLOCK_C)
    token = tl.load(order + place, mask=mask, other=0)
    value = tl.load(density + image * num_tokens + token, mask=mask, other=0.0)
    value += tl.log(tl.sqrt_rn(tl.div_rn(squared, tl.zeros((ROWS,), tl.float32) + CHANNELS)))
    # An infinite distance must not tie with the densest token.
    value = tl.where(value == value, tl.minimum(value, MAX_FINITE), -INFINITY)
    tl.store(decision + image * num_tokens + token, tl.where(place == 0, INFINITY, value), mask=mask)
    above_token = tl.load(order + above, mask=mask, other=0).to(tl.int32)
    tl.store(parent_token + image * num_tokens + token, above_token, mask=mask)


@sized
def follow_parents(rank, parent, labels, num_clusters, num_tokens, BLOCK: tl.constexpr):
    """
    Label of the first centre on the path from each token to denser tokens, for one scale: rank by decision value,
    parent, labels (B, N).

    A parent is strictly denser than its token, and the densest token is the first centre, so every path ends. The limit
    on the number of steps ensures that a fault elsewhere cannot hang the device.
    """
    image, first = locate(num_tokens, BLOCK)
    rank += image * num_tokens
    parent += image * num_tokens
    places = first + tl.arange(0, BLOCK)
    mask = places < num_tokens
    token = places
    label = tl.load(rank + token, mask=mask, other=0)
    steps = 0
    while (tl.max(label, axis=0) >= num_clusters) & (steps < num_tokens):
        is_underway = label >= num_clusters
        token = tl.load(parent + token, mask=is_underway, other=0)
        label = tl.load(rank + token, mask=is_underway, other=0) + tl.where(is_underway, 0, label)
        steps += 1
    label = tl.minimum(label, num_clusters - 1)
    tl.store(labels + image * num_tokens + places, label.to(tl.int64), mask=mask)


@sized
def join_centers(rank, nearest, labels, num_clusters, num_tokens, BLOCK: tl.constexpr):
    """Labels of one scale: centres keep their own, other tokens take the nearest centre's; (B, N), (B, N) -> (B, N)."""
    image, first = locate(num_tokens, BLOCK)
    token = first + tl.arange(0, BLOCK)
    mask = token < num_tokens
    own = tl.load(rank + image * num_tokens + token, mask=mask, other=0)
    joined = tl.load(nearest + image * num_tokens + token, mask=mask, other=0)
    label = tl.where(own < num_clusters, own, joined)
    tl.store(labels + image * num_tokens + token, label.to(tl.int64), mask=mask)


__all__ = ["denser_neighbor", "follow_parents", "join_centers", "log_decision", "log_density"]
