# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Triton kernels that centre, rank and reorder tokens for the other kernels.

Shapes: B images, N tokens, C channels, M tokens from the start of an order. Arrays are contiguous.
"""

from .clustering_triton_tiles_clustr import INFINITY, MAX_INDEX, load_tile, locate, sized, tl


@sized
def find_origin(tokens, origin, num_tokens, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr):
    """
    The token nearest to the mean of its image: tokens (B, N, C) -> origin (B), one program per image.

    The order of the sums is the same for every batch size, which torch's reductions do not guarantee.
    """
    image = tl.program_id(0).to(tl.int64)
    tokens += image * num_tokens * CHANNELS
    channel = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, num_tokens, ROWS):
        rows = start + tl.arange(0, ROWS)
        total += tl.sum(load_tile(tokens, rows, rows < num_tokens, channel, CHANNELS).to(tl.float32), axis=0)
    mean = total / num_tokens
    nearest = 0
    smallest = INFINITY
    for start in range(0, num_tokens, ROWS):
        rows = start + tl.arange(0, ROWS)
        tile = load_tile(tokens, rows, rows < num_tokens, channel, CHANNELS).to(tl.float32)
        difference = tl.where((channel < CHANNELS)[None, :], tile - mean[None, :], 0.0)
        squared = tl.sum(difference * difference, axis=1)
        squared = tl.where((rows < num_tokens) & (squared == squared), squared, INFINITY)
        tile_smallest = tl.min(squared, axis=0)
        tile_nearest = tl.min(tl.where(squared == tile_smallest, rows, MAX_INDEX), axis=0)
        nearest = tl.where(tile_smallest < smallest, tile_nearest, nearest)
        smallest = tl.minimum(tile_smallest, smallest)
    tl.store(origin + image, nearest)


@sized
def center_tokens(
    tokens, origin, centered, squared_norm, num_tokens,
    CHANNELS: tl.constexpr, CENTER: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """
    Tokens minus the origin of their image, and the squared norms of the differences: (B, N, C) -> (B, N, C), (B, N).

    Without `CENTER`, only the norms of the tokens are stored: products of 16-bit tokens are exact without centring.
    """
    image, first = locate(num_tokens, ROWS)
    rows = first + tl.arange(0, ROWS)
    mask = rows < num_tokens
    tokens += image * num_tokens * CHANNELS
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        tile = load_tile(tokens, rows, mask, channel, CHANNELS).to(tl.float32)
        if CENTER:
            at = tl.load(origin + image) * CHANNELS + channel
            tile -= tl.load(tokens + at, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
            where = centered + image * num_tokens * CHANNELS + rows[:, None] * CHANNELS + channel[None, :]
            tl.store(where, tile, mask=mask[:, None] & (channel < CHANNELS)[None, :])
            tile = tl.where(mask[:, None], tile, 0.0)
        total += tl.sum(tile * tile, axis=1)
    tl.store(squared_norm + image * num_tokens + rows, total, mask=mask)


@sized
def rank_tokens(order, rank, num_tokens, BLOCK: tl.constexpr):
    """The place of each token in an order, (B, N) -> (B, N)."""
    image, first = locate(num_tokens, BLOCK)
    place = first + tl.arange(0, BLOCK)
    mask = place < num_tokens
    token = tl.load(order + image * num_tokens + place, mask=mask, other=0)
    tl.store(rank + image * num_tokens + token, place, mask=mask)


@sized
def permute_tokens(
    tokens, squared_norm, order, permuted, permuted_norm, num_tokens, num_taken,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The first tokens of an order and their norms: (B, N, C), (B, N), (B, N) -> (B, M, C), (B, M)."""
    image, first = locate(num_taken, ROWS)
    places = first + tl.arange(0, ROWS)
    mask = places < num_taken
    rows = tl.load(order + image * num_tokens + places, mask=mask, other=0).to(tl.int32)
    tokens += image * num_tokens * CHANNELS
    permuted += image * num_taken * CHANNELS
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        tile = load_tile(tokens, rows, mask, channel, CHANNELS)
        where = permuted + places[:, None] * CHANNELS + channel[None, :]
        tl.store(where, tile, mask=mask[:, None] & (channel < CHANNELS)[None, :])
    norm = tl.load(squared_norm + image * num_tokens + rows, mask=mask, other=0.0)
    tl.store(permuted_norm + image * num_taken + places, norm, mask=mask)


@sized
def compact(chosen, rows, count, num_tokens, BLOCK: tl.constexpr):
    """The chosen tokens by rising index, and their number: (B, N) -> (B, N), (B); one program per image."""
    image = tl.program_id(0).to(tl.int64)
    before = 0
    for start in range(0, num_tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        is_chosen = tl.load(chosen + image * num_tokens + token, mask=token < num_tokens, other=0).to(tl.int32)
        place = before + tl.cumsum(is_chosen, axis=0) - is_chosen
        tl.store(rows + image * num_tokens + place, token, mask=is_chosen != 0)
        before += tl.sum(is_chosen, axis=0)
    tl.store(count + image, before)


__all__ = ["center_tokens", "compact", "find_origin", "permute_tokens", "rank_tokens"]
