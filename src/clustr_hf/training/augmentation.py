# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Augmentation for dense prediction, shared by the tasks. Sizes are (height, width)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


@dataclass
class AugmentationArguments:
    """Augmentation of training images."""

    min_scale: float = field(
        default=1.0, metadata={"help": "Minimum of the random scale, relative to the image size of the processor."}
    )
    max_scale: float = field(
        default=1.0, metadata={"help": "Maximum of the random scale, relative to the image size of the processor."}
    )
    crop_size: int | None = field(
        default=None, metadata={"help": "Side of random training crops in pixels. Default: whole images."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    photometric_distortion: bool = field(
        default=False, metadata={"help": "Whether to distort brightness, contrast, saturation and hue at random."}
    )

    def __post_init__(self):
        if self.crop_size is not None and self.crop_size < 1:
            raise ValueError(f"--crop_size must be positive, got {self.crop_size}")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"--min_scale and --max_scale must be 0 < min <= max, got {self.min_scale, self.max_scale}"
            )
        check_probabilities(self, "flip_probability")


def check_probabilities(args: object, *names: str) -> None:
    """Raise a `ValueError` unless the named arguments are in [0, 1]."""
    for name in names:
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name} must be in [0, 1], got {getattr(args, name)}")


class PhotometricDistortion(v2.RandomPhotometricDistort):
    """torchvision's transform with the hue range of OpenMMLab (36 degrees) and without permuted channels."""

    def __init__(self):
        super().__init__(hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list) -> dict:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


def uniform(low: float, high: float) -> float:
    """A uniformly distributed random number."""
    return float(torch.empty((), device="cpu").uniform_(low, high))


def random_corner(size: tuple[int, int], crop: tuple[int, int]) -> list[int]:
    """[top, left] of a random crop in an image."""
    return [int(torch.randint(extent - part + 1, (), device="cpu")) for extent, part in zip(size, crop)]


def check_normalization(processor: Any) -> None:
    """
    Raise a `ValueError` if an image processor scales pixels differently from the training transforms, so that training
    and evaluation would see different pixel values.
    """
    expected = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    expected |= {"rescale_offset": False, "do_flip_channel_order": False}  # of EfficientNet and MobileViT
    for name, value in expected.items():
        found = getattr(processor, name, value)
        if found is None or abs(found - value) > 1e-9:
            raise ValueError(
                f"the image processor of a training must have `{name}={value}`, got {found} in "
                f"{type(processor).__name__}"
            )


def normalize(image: torch.Tensor, processor: Any) -> torch.Tensor:
    """An 8-bit image (3, H, W) in float32, with the mean and standard deviation of the processor."""
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), processor.image_mean, processor.image_std)
