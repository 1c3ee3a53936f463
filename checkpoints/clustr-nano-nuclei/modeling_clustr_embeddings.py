# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
From maps to tokens: the patch embeddings of the stages, and position embeddings.

Shapes: B images, C channels, an h x w grid of tokens.
"""

import math

import torch
from torch import nn

from .configuration_clustr import ClusTRConfig


class ClusTRPositionEmbeddings(nn.Module):
    """
    A linear function of each token's row and column, in (-0.5, 0.5) of the image, and of their sines and cosines with
    one and two periods. It is defined for images of any size. Not in the paper.
    """

    num_periods = (1, 2)

    def __init__(self, hidden_size: int):
        super().__init__()
        self.projection = nn.Linear(2 * (1 + 2 * len(self.num_periods)), hidden_size)

    def forward(self, size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """The embeddings of a grid of tokens, (h, w, C), in the dtype and on the device of `like`."""
        rows, columns = ((torch.arange(side, device=like.device) + 0.5) / side - 0.5 for side in size)
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        angles = [2 * math.pi * number * place for number in self.num_periods]
        features = torch.cat([place, *(wave for angle in angles for wave in (angle.sin(), angle.cos()))], dim=-1)
        return self.projection(features.to(like.dtype))


class ClusTRPatchEmbeddings(nn.Module):
    """
    Overlapping patch embedding, (B, C_in, H, W) -> (B, C, h, w): a convolution, a layer norm, and, as an option, an
    embedding of the positions.
    """

    def __init__(self, config: ClusTRConfig, stage_index: int):
        super().__init__()
        in_channels = config.hidden_sizes[stage_index - 1] if stage_index > 0 else config.num_channels
        hidden_size = config.hidden_sizes[stage_index]
        kernel_size = config.patch_sizes[stage_index]
        self.projection = nn.Conv2d(
            in_channels, hidden_size, kernel_size, stride=config.strides[stage_index], padding=kernel_size // 2
        )
        self.layer_norm = nn.LayerNorm(hidden_size, eps=config.embedding_layer_norm_eps)
        has_positions = config.use_absolute_position_embeddings
        self.position_embeddings = ClusTRPositionEmbeddings(hidden_size) if has_positions else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        embeddings = self.layer_norm(self.projection(features).permute(0, 2, 3, 1))
        if self.position_embeddings is not None:
            embeddings = embeddings + self.position_embeddings(embeddings.shape[1:3], embeddings)
        return embeddings.permute(0, 3, 1, 2)
