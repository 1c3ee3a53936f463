# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Parameters and operations of a model, counted without running it."""

from collections.abc import Sequence
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clustr_hf.remote_code import modeling_clustr_attention


# Convolutions and linear layers; the matrix products of attention are batched and therefore not among them.
LAYER_OPERATORS = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)


def count_operations(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """
    Parameters of a model and the operations of a forward pass of one image, counted on tensors without data.

    Args:
        model (`PreTrainedModel`): Model on the meta device; it is switched to eager attention.
        height, width (`int`): Size of the image in pixels.

    Returns:
        `dict[str, int]`:
        - `flops`: floating point operations of all convolutions and matrix products, including those of attention
          and clustering; a multiply-add counts as two.
        - `clustering_flops`: the share of the clustering in `flops`. The counter cannot see the kernels of the
          clustering, so a stand-in replaces them, and each clustering of an image adds 2 N^2 C operations, those of
          the product behind all distances, or 2 N w^2 C in windows of w x w tokens. Selections, and distances that
          are computed a second time, are not counted.
        - `paper_macs`: multiply-accumulates of convolutions and linear layers only. The paper's tables also leave out
          the products of attention and the clustering; their figures for ClusTR are 3 to 4 % higher.
    """
    model.eval()
    # The counter knows plain matrix products on every device, but not every fused attention.
    model.set_attn_implementation("eager")
    window = getattr(model.config, "cluster_window", None)
    clustering_flops = 0

    def stand_in(tokens: torch.Tensor, num_clusters: Sequence[int], *args, **kwargs) -> list[torch.Tensor]:
        nonlocal clustering_flops
        batch_size, num_tokens, channels = tokens.shape
        num_compared = num_tokens if window is None else min(num_tokens, window**2)
        clustering_flops += 2 * batch_size * num_tokens * num_compared * channels
        return [tokens.new_zeros(batch_size, num_tokens, dtype=torch.long) for _ in num_clusters]

    with (
        mock.patch.object(modeling_clustr_attention, "find_clusters", stand_in),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(torch.empty(1, 3, height, width, device="meta"))
    by_operator = counter.get_flop_counts()["Global"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": counter.get_total_flops() + clustering_flops,
        "clustering_flops": clustering_flops,
        "paper_macs": sum(by_operator.get(operator, 0) for operator in LAYER_OPERATORS) // 2,
    }
