# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a row of a segmentation data set to a transformed sample. Sizes are (height, width)."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ....remote_code.image_processing_clustr import IGNORE_INDEX
from ....remote_code.image_reading_clustr import read_label_map
from ...augmentation import (
    AugmentationArguments,
    PhotometricDistortion,
    check_probabilities,
    normalize,
    random_corner,
    uniform,
)
from ...data.decoding import decode_image, decode_rgb


# Maximum number of crops to draw until no class fills too much of one.
MAX_CROP_ATTEMPTS = 10


@dataclass
class SegmentationAugmentationArguments(AugmentationArguments):
    """Augmentation of training images; the defaults are those of Table A3."""

    crop_size: int = field(default=512, metadata={"help": "Side of random training crops in pixels."})
    min_scale: float = field(default=0.5, metadata=AugmentationArguments.__dataclass_fields__["min_scale"].metadata)
    max_scale: float = field(default=2.0, metadata=AugmentationArguments.__dataclass_fields__["max_scale"].metadata)
    max_class_share: float = field(
        default=0.75,
        metadata={
            "help": "Maximum share of one class among the labelled pixels of a crop; crops above it are drawn again. 1 "
            "turns this off."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_probabilities(self, "max_class_share")


class ReadLabelMap:
    """
    Sequence of label maps `(height, width)`, int64, with `IGNORE_INDEX` for pixels to ignore.

    Args:
        rows (`Dataset`): Rows of the data set.
        column (`str`): Column with the label maps.
        num_labels (`int`): Number of classes.
        do_reduce_labels (`bool`): Whether maps count classes from 1, and 0 marks pixels to ignore.
        split (`str`): Name of the split in error messages.
        class_ids (`Sequence[int]`, *optional*): Class id for each value in the maps; default: the value.
    """

    def __init__(
        self,
        rows: Dataset,
        column: str,
        num_labels: int,
        do_reduce_labels: bool,
        split: str,
        class_ids: Sequence[int] | None = None,
    ):
        self.rows, self.column, self.num_labels = rows, column, num_labels
        self.class_ids = torch.as_tensor(range(num_labels) if class_ids is None else class_ids, device="cpu")
        self.map_rows = rows.select_columns([column])  # does not read the images
        self.do_reduce_labels, self.split = do_reduce_labels, split

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.map_rows[index], index)

    def name(self, index: int) -> str:
        """Name of a sample in error messages."""
        return f"{self.split} sample {index}"

    def read(self, row: dict, index: int) -> torch.Tensor:
        name = self.name(index)
        values = np.asarray(decode_image(row[self.column], f"label map of {name}"))
        if values.ndim != 2:
            raise ValueError(f"the label map of {name} must hold one label a pixel, got shape {values.shape}")
        try:
            labels = read_label_map(values)
        except ValueError as error:
            raise ValueError(f"the label map of {name}: {error}") from error
        if self.do_reduce_labels:
            labels = torch.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)
        valid, number = labels != IGNORE_INDEX, len(self.class_ids)
        wrong = labels[((labels < 0) | (labels >= number)) & valid]
        if len(wrong):
            raise ValueError(
                f"labels of {name} must be in [0, {number}), or {IGNORE_INDEX} to ignore a pixel, got {wrong[0].item()}"
            )
        return torch.where(valid, self.class_ids[labels.where(valid, torch.zeros_like(labels))], IGNORE_INDEX)


class ReadPair:
    """
    Index -> an upright RGB image and its label map.

    Args:
        labels ([`ReadLabelMap`]): The label maps.
        image_column (`str`): Column with the images.
        processor: Converts images that are not RGB.
    """

    def __init__(self, labels: ReadLabelMap, image_column: str, processor: Any):
        self.labels, self.image_column, self.processor = labels, image_column, processor

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Name of a sample in error messages."""
        return self.labels.name(index)

    def __call__(self, index: int) -> tuple[Image.Image, torch.Tensor]:
        row, name = self.labels.rows[index], self.name(index)
        image = decode_rgb(row[self.image_column], name, self.processor)
        labels = self.labels.read(row, index)
        if labels.shape != (image.height, image.width):
            raise ValueError(
                f"the label map of {name} must have the size of its image, {(image.height, image.width)}, got "
                f"{tuple(labels.shape)}"
            )
        return image, labels


class SegmentationTransform:
    """
    Random scale, crop, colours and flip, as in Table A3: an image and its labels -> `pixel_values` `(3, crop, crop)`
    and `labels` `(crop, crop)`. Padded pixels are labelled `IGNORE_INDEX`.
    """

    def __init__(self, processor: Any, args: SegmentationAugmentationArguments):
        self.processor, self.args = processor, args
        self.distort = PhotometricDistortion() if args.photometric_distortion else None

    def __call__(self, pair: tuple[Image.Image, torch.Tensor]) -> dict[str, torch.Tensor]:
        args, processor = self.args, self.processor
        image = tv_tensors.Image(F.pil_to_tensor(pair[0]))
        labels = pair[1].to(torch.int32)[None]
        size = scaled_size(image.shape[-2:], processor.size, uniform(args.min_scale, args.max_scale))
        image = F.resize(image, size, antialias=True)
        labels = F.resize(labels, size, interpolation=v2.InterpolationMode.NEAREST_EXACT)
        box = self._choose_crop(labels)
        image, labels = F.crop(image, *box), F.crop(labels, *box)
        if self.distort is not None:
            image = self.distort(image)
        if torch.rand((), device="cpu") < args.flip_probability:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        pixels = normalize(image, processor)
        padding = [0, 0, args.crop_size - box[3], args.crop_size - box[2]]
        labels = F.pad(labels, padding, fill=IGNORE_INDEX)
        return {"pixel_values": F.pad(pixels, padding).as_subclass(torch.Tensor), "labels": labels[0].to(torch.int64)}

    def _choose_crop(self, labels: torch.Tensor) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a random crop that no class fills, or of the last one that was drawn."""
        height, width = (min(self.args.crop_size, extent) for extent in labels.shape[-2:])
        for _ in range(MAX_CROP_ATTEMPTS):
            top, left = random_corner(labels.shape[-2:], (height, width))
            pixels = torch.bincount(labels[0, top : top + height, left : left + width].flatten())[:IGNORE_INDEX]
            if self.args.max_class_share == 1 or pixels.max() < self.args.max_class_share * pixels.sum():
                break
        return top, left, height, width


def scaled_size(size: tuple[int, int], target: Any, scale: float) -> tuple[int, int]:
    """
    Size of an image, with its aspect ratio kept, whose shorter side is `scale` times the processor's, unless its longer
    side would exceed `scale` times the processor's longest side.
    """
    factor = scale * target["shortest_edge"] / min(size)
    if target["longest_edge"]:
        factor = min(factor, scale * target["longest_edge"] / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def evaluation_transform(processor: Any) -> Callable:
    """An image and its labels -> `pixel_values` of the processor, and the `labels`, unchanged."""
    return functools.partial(_process, processor)


def _process(processor, pair: tuple[Image.Image, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": processor(pair[0], return_tensors="pt").pixel_values[0], "labels": pair[1]}
