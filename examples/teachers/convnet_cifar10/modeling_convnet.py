# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A convolutional network for images of 32 pixels, which learns in few epochs: two convolutions per stage and a maximum
over 2 x 2 positions after the first of them, as in networks that train on CIFAR-10 in seconds (Jordan 2024, arXiv
2404.00498).
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_convnet import ConvNetConfig


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


class ConvNetForImageClassification(PreTrainedModel):
    """An image classifier; pixel values `(B, C, H, W)` -> logits `(B, K)`."""

    config_class = ConvNetConfig
    base_model_prefix = "convnet"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        sizes = [config.embedding_size, *config.hidden_sizes]
        stem = nn.Sequential(nn.Conv2d(config.num_channels, sizes[0], 3, padding=1), nn.GELU())
        self.convnet = nn.Sequential(stem, *map(ConvNetStage, sizes, sizes[1:]))
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        logits = self.classifier(self.convnet(pixel_values).amax(dim=(2, 3)))
        loss = None if labels is None else cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
