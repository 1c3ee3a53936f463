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
    return float(torch.empty((), device="cpu").uniform_(low, high))
