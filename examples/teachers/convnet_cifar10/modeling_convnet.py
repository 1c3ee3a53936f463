# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A convolutional network for images of 32 pixels, which learns in few epochs, by the ideas of Jordan (2024, arXiv
2404.00498): the first layer decorrelates patches of 2 x 2 pixels, stages have two convolutions and a maximum over 2 x 2
positions after the first of them, and new convolutions pass their channels on.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_convnet import ConvNetConfig


class DecorrelatedPatches(nn.Module):
    """
    (B, 3, H, W) -> (B, 24, H - 1, W - 1): patches of 2 x 2 pixels as components of unit variance, and their negatives.

    The components are sums and differences of pixels (the Hadamard basis) of brightness and two opponent colors, which
    are nearly uncorrelated in photographs.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 2, bias=False).requires_grad_(False)
        self.norm = nn.BatchNorm2d(12, affine=False)
        device = self.conv.weight.device
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device)
        colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], device=device)
        filters = torch.einsum("cd,ay,bx->cabdyx", colors / colors.norm(dim=1, keepdim=True), signs / 2, signs)
        with torch.no_grad():
            self.conv.weight.copy_(filters.reshape(12, 3, 2, 2))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        components = self.norm(self.conv(pixel_values))
        return torch.cat([components, -components], dim=1)


class ConvNetStage(nn.Sequential):
    """(B, in, H, W) -> (B, out, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(out_channels),
            nn.GELU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.GELU(),
        )
        for conv in (self[0], self[4]):
            nn.init.dirac_(conv.weight[: conv.in_channels])


class ConvNetForImageClassification(PreTrainedModel):
    """An image classifier; pixel values `(B, C, H, W)` -> logits `(B, K)`."""

    config_class = ConvNetConfig
    base_model_prefix = "convnet"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        sizes = [24, *config.hidden_sizes]
        self.convnet = nn.Sequential(DecorrelatedPatches(), nn.GELU(), *map(ConvNetStage, sizes, sizes[1:]))
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        logits = self.classifier(self.convnet(pixel_values).amax(dim=(2, 3)))
        loss = None if labels is None else cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module):
        """Nothing: constructors set all weights."""
