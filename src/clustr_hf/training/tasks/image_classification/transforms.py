# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a row of an image classification data set to a transformed sample."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform

from ...data.decoding import decode_rgb
from .model import training_crop


class ReadRow:
    """
    A row of the data set, or the index of a row -> an upright RGB image and its label.

    Args:
        processor: Converts images that are not RGB.
        columns (`tuple[str, str]`): Names of the image and the label column.
        num_labels (`int`): Number of classes.
        split (`str`): Name of the split in error messages.
        rows (`Dataset`, *optional*): The rows, for a data set with random access.
    """

    def __init__(self, processor: Any, columns: tuple[str, str], num_labels: int, split: str, rows: Any = None):
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
        """Name of a row, or of its index, in error messages."""
        if isinstance(row_or_index, int):
            return f"{self.split} sample {row_or_index}"
        return f"{self.split} sample {fingerprint(row_or_index[self.columns[0]])}"


def fingerprint(image: Mapping[str, Any] | None) -> str:
    """Name of an image, given as bytes or path, whose index is not known."""
    image = image or {}
    encoded = image.get("bytes") or b""
    return f"of {len(encoded)} bytes with CRC-32 {zlib.crc32(encoded):08x}"


def training_transform(
    processor: Any,
    min_crop_scale: float,
    rand_augment: str | None,
    random_erasing: float,
    image_size: int | None = None,
) -> Callable:
    """
    timm's transform: random crop and flip, RandAugment, normalisation, random erasing.

    Args:
        processor: Has the size, mean and standard deviation.
        min_crop_scale (`float`): Minimum share of the image's area in a crop.
        rand_augment (`str`, *optional*): Policy, in timm's notation.
        random_erasing (`float`): Probability of random erasing.
        image_size (`int`, *optional*): Side of the crops in pixels. Default: the processor's.
    """
    augment = create_transform(
        training_crop(processor) if image_size is None else image_size,
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


def posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """timm's operation, but black for 0 bits: its strongest magnitude, which Pillow refuses since version 13."""
    return auto_augment.posterize(image, bits, **settings) if bits > 0 else Image.new(image.mode, image.size)


def evaluation_transform(processor: Any) -> Callable:
    """The processor's transform: resize, centre crop, normalisation."""
    return functools.partial(_transform, functools.partial(_process, processor))


def _process(processor, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt").pixel_values[0]


def _transform(augment, image_and_label: tuple[Image.Image, int]) -> dict:
    image, label = image_and_label
    return {"pixel_values": augment(image), "labels": label}
