# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The aggregation on GPUs by Triton kernels (clustering_triton_merge_kernels_clustr.py), as operators with gradients.

Forward and backward return the same bits on every run, and do not wait for the device.

Shapes: B images, N tokens, C channels, M clusters.
"""

import torch

from .clustering_tensor_clustr import merge_gradients, merge_tokens
from .clustering_triton_launches_clustr import channel_block, load_kernels
from .clustering_triton_support_clustr import attempt, on_device


# Elements of a tile (tokens x channels) of the backward pass, and tokens of a tile of the forward pass.
GRADIENT_ELEMENTS = 1024
MERGED_TOKENS = 16


def aggregate(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> torch.Tensor:
    """
    The Triton form of [`~clustering_clustr.aggregate_tokens`].

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        weight (`torch.Tensor` of shape `(B, N)`): Their weights, in float32 (float64 for float64 tokens).
        cluster_index (`torch.LongTensor` of shape `(B, N)`): Cluster of each token.
        num_clusters (`int`): M.
        epsilon (`float`): Added to the sum of a cluster's weights.

    Returns:
        `torch.Tensor` of shape `(B, M, C)` in the dtype of `weight`.
    """
    return torch.ops.clustr_hf.merge_tokens(tokens, weight, cluster_index, num_clusters, epsilon)[0]


@torch.library.custom_op("clustr_hf::merge_tokens", mutates_args=())
def _merge_tokens(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = (tokens, weight, cluster_index, num_clusters, epsilon)
    merged = attempt(launch_merge, *arguments)
    return merge_tokens(*arguments) if merged is None else merged


def launch_merge(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`~clustering_tensor_clustr.merge_tokens`] by sorted segments instead of atomic additions."""
    batch_size, num_tokens, channels = tokens.shape
    # int32 has half as many bits to sort by.
    sorted_index, order = cluster_index.to(torch.int32).sort(dim=1, stable=True)
    clusters = torch.arange(num_clusters + 1, dtype=torch.int32, device=tokens.device)
    clusters = clusters.expand(batch_size, -1).contiguous()
    starts = torch.searchsorted(sorted_index, clusters)
    merged, weight_sum = _empty_merged(tokens, weight, num_clusters)
    block = channel_block(channels)
    with on_device(tokens):
        load_kernels().merge_segments[(batch_size * num_clusters * -(-channels // block),)](
            tokens.contiguous(),
            weight.contiguous(),
            order,
            starts,
            merged,
            weight_sum,
            num_tokens,
            num_clusters,
            epsilon,
            CHANNELS=channels,
            BLOCK_C=block,
            ROWS=MERGED_TOKENS,
            DTYPE=_accumulator(weight),
        )
    return merged, weight_sum


@_merge_tokens.register_fake
def _(tokens, weight, cluster_index, num_clusters, epsilon):
    return _empty_merged(tokens, weight, num_clusters)


def _empty_merged(tokens: torch.Tensor, weight: torch.Tensor, num_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (tokens.shape[0], num_clusters)
    return weight.new_empty(*shape, tokens.shape[2]), weight.new_empty(shape)


@torch.library.custom_op("clustr_hf::merge_tokens_backward", mutates_args=())
def _merge_tokens_backward(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    cluster_index: torch.Tensor,
    merged: torch.Tensor,
    weight_sum: torch.Tensor,
    gradient: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = (tokens, weight, cluster_index, merged, weight_sum, gradient, epsilon)
    gradients = attempt(launch_merge_gradients, *arguments)
    return merge_gradients(*arguments) if gradients is None else gradients


def launch_merge_gradients(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    cluster_index: torch.Tensor,
    merged: torch.Tensor,
    weight_sum: torch.Tensor,
    gradient: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`~clustering_tensor_clustr.merge_gradients`] in one pass over the tokens."""
    batch_size, num_tokens, channels = tokens.shape
    tokens_gradient = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    weight_gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
    block = channel_block(channels)
    rows = GRADIENT_ELEMENTS // block
    arrays = (tokens.contiguous(), weight.contiguous(), cluster_index.contiguous(), merged, weight_sum)
    with on_device(tokens):
        load_kernels().split_gradients[(batch_size * -(-num_tokens // rows),)](
            *arrays,
            gradient.contiguous(),
            tokens_gradient,
            weight_gradient,
            num_tokens,
            merged.shape[1],
            epsilon,
            CHANNELS=channels,
            BLOCK_C=block,
            ROWS=rows,
            DTYPE=_accumulator(weight),
        )
    return tokens_gradient, weight_gradient


@_merge_tokens_backward.register_fake
def _(tokens, weight, cluster_index, merged, weight_sum, gradient, epsilon):
    contiguous = torch.contiguous_format
    return torch.empty_like(tokens, memory_format=contiguous), torch.empty_like(weight, memory_format=contiguous)


def _save_for_backward(ctx, inputs, output):
    tokens, weight, cluster_index, _, ctx.epsilon = inputs
    ctx.save_for_backward(tokens, weight, cluster_index, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, gradient, _):
    return (*_merge_tokens_backward(*ctx.saved_tensors, gradient, ctx.epsilon), None, None, None)


_merge_tokens.register_autograd(_backward, setup_context=_save_for_backward)


def _accumulator(weight: torch.Tensor):
    """Triton's dtype of the sums."""
    language = load_kernels().tl
    return language.float64 if weight.dtype == torch.float64 else language.float32


__all__ = ["aggregate", "launch_merge", "launch_merge_gradients"]
