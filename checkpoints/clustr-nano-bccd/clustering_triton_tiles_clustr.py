# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Constants of all Triton kernels, and the functions with which they locate, load and compare tiles of tokens.

Kernels import Triton from here, so that only one file has to handle a missing package.

Shapes: N tokens, C channels, R rows (tokens) of a tile. Arrays are contiguous.
"""

# In `try`, so that transformers does not count Triton among the packages that a repository's code requires.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The Triton kernels of clustr_hf need the package `triton`.") from error


# Decorator of all kernels: they are not recompiled when the number of tokens changes.
sized = triton.jit(do_not_specialize=["num_tokens", "num_rows", "num_columns", "num_used", "num_taken", "num_clusters"])

MAX_INDEX = tl.constexpr(2**31 - 1)
MAX_FINITE = tl.constexpr(3e38)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def locate(num_rows, ROWS: tl.constexpr):
    """Image and first row of a program, where programs are numbered image by image and tile by tile."""
    tiles = tl.cdiv(num_rows, ROWS)
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64), (program % tiles) * ROWS


@triton.jit
def load_tile(tokens, rows, row_mask, channel, CHANNELS: tl.constexpr):
    """Channels `channel` of tokens `rows`, (rows, channels); 0 outside."""
    mask = row_mask[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(tokens + rows[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0)


@triton.jit
def squared_distance(tokens, rows, other_tokens, others, mask, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Squared distance between tokens `rows` and `others`, pair by pair, from coordinate differences: (R,)."""
    total = tl.zeros((rows.shape[0],), tl.float32)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        left = load_tile(tokens, rows, mask, channel, CHANNELS).to(tl.float32)
        difference = left - load_tile(other_tokens, others, mask, channel, CHANNELS).to(tl.float32)
        total += tl.sum(difference * difference, axis=1)
    return total


__all__ = ["INFINITY", "MAX_FINITE", "MAX_INDEX", "load_tile", "locate", "sized", "squared_distance", "tl", "triton"]
