# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a row of an image classification data set to a sample, and from samples to a batch."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform

from ...data.samples import decode_rgb
from .data import training_crop


class ReadRow:
    """
    A row of the data set, or its index -> an upright RGB image and its label.

    Args:
        processor: Converts images that are not RGB.
        columns (`tuple[str, str]`): Names of the image and the label column.
        num_labels (`int`): Number of classes.
        split (`str`): What to call the split in errors.
        rows (`Dataset`, *optional*): Rows by index, for a data set with random access.
    """

    def __init__(self, processor, columns: tuple[str, str], num_labels: int, split: str, rows=None):
        self.processor, self.columns, self.num_labels, self.split = processor, columns, num_labels, split
        self.rows = rows

    def __call__(self, row_or_index: dict | int) -> tuple[Image.Image, int]:
        row = self.rows[row_or_index] if isinstance(row_or_index, int) else row_or_index
        image, label = (row[column] for column in self.columns)
        name = self.name(row_or_index)
        if not isinstance(label, int) or not 0 <= label < self.num_labels:
            raise ValueError(f"the label of {name} must be in [0, {self.num_labels}), got {label!r}")
        return decode_rgb(image, name, self.processor), label

    def name(self, row_or_index: dict | int) -> str:
        """What to call a row, or its index, in errors."""
        if isinstance(row_or_index, int):
            return f"{self.split} sample {row_or_index}"
        return f"{self.split} sample {fingerprint(row_or_index[self.columns[0]])}"


def fingerprint(image: Mapping[str, Any] | None) -> str:
    """What to call an image, as bytes or path, whose index is not known."""
    image = image or {}
    encoded = image.get("bytes") or b""
    return f"of {len(encoded)} bytes with CRC-32 {zlib.crc32(encoded):08x}"


def training_transform(processor, min_crop_scale: float, rand_augment: str | None, random_erasing: float) -> Callable:
    """
    timm's: random crop and flip, RandAugment, normalisation, random erasing.

    Args:
        processor: Says size, mean and standard deviation.
        min_crop_scale (`float`): Least share of the image's area in a crop.
        rand_augment (`str`, *optional*): timm's description of a policy.
        random_erasing (`float`): Probability.
    """
    augment = create_transform(
        training_crop(processor),
        is_training=True,
        scale=(min_crop_scale, 1.0),
        color_jitter=None,
        auto_augment=rand_augment,
        interpolation="bicubic",
        re_prob=random_erasing,
        re_mode="pixel",
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )
    for transform in augment.transforms:
        for operation in getattr(transform, "ops", []):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return functools.partial(_transform, augment)


def posterize(image: Image.Image, bits: int, **settings) -> Image.Image:
    """timm's, but for 0 bits, which its strongest magnitude asks for and Pillow refuses since version 13: black."""
    return auto_augment.posterize(image, bits, **settings) if bits > 0 else Image.new(image.mode, image.size)


def evaluation_transform(processor):
    """The processor's: shorter side, centre crop, normalisation."""
    return functools.partial(_transform, functools.partial(_process, processor))


def _process(processor, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt").pixel_values[0]


def _transform(augment, image_and_label: tuple[Image.Image, int]) -> dict:
    image, label = image_and_label
    return {"pixel_values": augment(image), "labels": label}


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples], device="cpu"),
    }
