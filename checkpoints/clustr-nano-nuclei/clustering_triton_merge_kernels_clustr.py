# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Triton kernels of the aggregation (Eq. 3), forward and backward.

Shapes: B images, N tokens, C channels, M clusters. Arrays are contiguous.
"""

from .clustering_triton_tiles_clustr import load_tile, locate, sized, tl


@sized
def merge_segments(
    tokens, weight, order, starts, merged, weight_sum, num_tokens, num_clusters, epsilon,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """
    Weighted means of clusters: one program per cluster and block of channels.

    tokens (B, N, C), weight (B, N), order (B, N) of the tokens by cluster, starts (B, M + 1) of the clusters in that
    order -> merged (B, M, C), weight_sum (B, M). Members are added by rising index.

    If a cluster index of an image is outside [0, M), the whole image becomes NaN: a check on the host would wait for
    the device.
    """
    blocks = tl.cdiv(CHANNELS, BLOCK_C)
    program = tl.program_id(0)
    segment = (program // blocks).to(tl.int64)
    image = segment // num_clusters
    channel = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    bounds = starts + image * (num_clusters + 1) + segment % num_clusters
    first, last = tl.load(bounds), tl.load(bounds + 1)
    tokens += image * num_tokens * CHANNELS
    total = tl.zeros((BLOCK_C,), DTYPE)
    weights = tl.zeros((ROWS,), DTYPE)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        token = tl.load(order + image * num_tokens + place, mask=place < last, other=0)
        share = tl.load(weight + image * num_tokens + token, mask=place < last, other=0.0).to(DTYPE)
        tile = load_tile(tokens, token, place < last, channel, CHANNELS).to(DTYPE)
        total += tl.sum(share[:, None] * tile, axis=0)
        weights += share
    weights_total = tl.sum(weights, axis=0)
    image_starts = starts + image * (num_clusters + 1)
    is_valid = (tl.load(image_starts) == 0) & (tl.load(image_starts + num_clusters) == num_tokens)
    weights_total = tl.where(is_valid, weights_total, float("nan"))
    tl.store(merged + segment * CHANNELS + channel, total / (weights_total + epsilon), mask=channel < CHANNELS)
    if program % blocks == 0:
        tl.store(weight_sum + segment, weights_total)


@sized
def split_gradients(
    tokens, weight, cluster_index, merged, weight_sum, merged_gradient,
    tokens_gradient, weight_gradient,
    num_tokens, num_clusters, epsilon,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """
    Backward pass of `merge_segments`, token by token.

    Let x be a token, w its weight, h its merged cluster token, g the gradient of h, and W the sum of the cluster's
    weights. Then the gradient of x is g w / (W + e), and the gradient of w is g (x - h) / (W + e).
    """
    image, first = locate(num_tokens, ROWS)
    rows = first + tl.arange(0, ROWS)
    mask = rows < num_tokens
    offset = image * num_tokens
    cluster = tl.load(cluster_index + offset + rows, mask=mask, other=0)
    # Keeps reads in bounds. The gradients of an image with a wrong index are NaN anyway, by its `weight_sum`.
    cluster = tl.minimum(tl.maximum(cluster, 0), num_clusters - 1)
    share = tl.load(weight + offset + rows, mask=mask, other=0.0).to(DTYPE)
    total = tl.load(weight_sum + image * num_clusters + cluster, mask=mask, other=1.0) + epsilon
    merged += image * num_clusters * CHANNELS
    merged_gradient += image * num_clusters * CHANNELS
    product = tl.zeros((ROWS,), DTYPE)  # g (x - h)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        gradient = load_tile(merged_gradient, cluster, mask, channel, CHANNELS).to(DTYPE)
        mean = load_tile(merged, cluster, mask, channel, CHANNELS)
        tile = load_tile(tokens + offset * CHANNELS, rows, mask, channel, CHANNELS).to(DTYPE)
        product += tl.sum(gradient * (tile - mean), axis=1)
        where = tokens_gradient + offset * CHANNELS + rows[:, None] * CHANNELS + channel[None, :]
        is_written = mask[:, None] & (channel < CHANNELS)[None, :]
        tl.store(where, gradient * (share / total)[:, None], mask=is_written)
    tl.store(weight_gradient + offset + rows, product / total, mask=mask)


__all__ = ["merge_segments", "split_gradients"]
