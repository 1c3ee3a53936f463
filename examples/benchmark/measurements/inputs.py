# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Images and tokens that the benchmark runs on. Shapes: B images, N tokens, C channels."""

import math
from typing import NamedTuple

import torch
from torch import nn


class Setting(NamedTuple):
    """Image size in pixels and number of images in a batch."""

    height: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.batch}"


def image_like_noise(setting: Setting, seed: int) -> torch.Tensor:
    """
    Noise with the spectrum of photographs, (B, 3, height, width): equal variance in every octave, total variance 1.

    White noise would look the same everywhere, so its tokens would form no clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width, batch = setting
    cells = [2**octave for octave in range(int(math.log2(min(height, width))))]
    noise = torch.zeros(batch, 3, height, width, device="cpu")
    for cell in cells:
        octave = torch.randn(batch, 3, -(-height // cell), -(-width // cell), generator=generator, device="cpu")
        noise += nn.functional.interpolate(octave, size=(height, width), mode="bilinear")
    return noise / noise.std()


def random_tokens(num_tokens: int, channels: int, seed: int) -> torch.Tensor:
    """Normally distributed tokens of one image, (1, N, C)."""
    return torch.randn(1, num_tokens, channels, generator=torch.Generator().manual_seed(seed), device="cpu")


def image_like_tokens(seed: int) -> torch.Tensor:
    """Patches of 4 x 4 pixels of image-like noise of 224 x 224 pixels, (1, 3136, 48)."""
    return nn.functional.pixel_unshuffle(image_like_noise(Setting(224, 224, 1), seed), 4).flatten(2).mT


def benchmark_num_clusters(num_tokens: int) -> list[int]:
    """Number of clusters M at both scales of the paper's first stage."""
    return [max(1, num_tokens // ratio) for ratio in (64, 16)]
