# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What the augmentations of the tasks for dense prediction share. Sizes are (height, width)."""

import torch
from torchvision.transforms import v2


class PhotometricDistortion(v2.RandomPhotometricDistort):
    """torchvision's, but with the hues of OpenMMLab's (+-36 degrees), and colour channels keep their places."""

    def __init__(self):
        super().__init__(hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list) -> dict:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


def uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def scaled_size(size: tuple[int, int], target, scale: float) -> tuple[int, int]:
    """
    An image's size with its aspect kept, so that its shorter side is `scale` times the processor's, unless its longer
    side would be more than `scale` times the longest.
    """
    factor = scale * target["shortest_edge"] / min(size)
    if target["longest_edge"]:
        factor = min(factor, scale * target["longest_edge"] / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
