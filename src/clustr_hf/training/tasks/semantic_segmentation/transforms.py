# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a row of a segmentation data set to a sample, and from samples to a batch. Sizes are (height, width)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ....remote_code.image_processing_clustr import IGNORE_INDEX
from ....remote_code.image_reading_clustr import read_label_map
from ...augmentation import PhotometricDistortion, uniform
from ...data.samples import decode_image, decode_rgb


# How often a crop is drawn anew where one class fills too much of it.
CROP_ATTEMPTS = 10


@dataclass
class AugmentationArguments:
    """Table A3's augmentation of training images."""

    crop_size: int = field(default=512, metadata={"help": "Side of the training crops in pixels."})
    min_scale: float = field(default=0.5, metadata={"help": "Least random scale, of image_size."})
    max_scale: float = field(default=2.0, metadata={"help": "Greatest random scale."})
    max_class_share: float = field(
        default=0.75, metadata={"help": "Draw a crop anew where one class has more of its labelled pixels; 1 is off."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of mirroring left and right."})
    photometric_distortion: bool = field(
        default=False, metadata={"help": "Change brightness, contrast, saturation and hue."}
    )

    def __post_init__(self):
        if self.crop_size < 1:
            raise ValueError(f"--crop_size must be positive, got {self.crop_size}")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"--min_scale and --max_scale must be 0 < min <= max, got {self.min_scale, self.max_scale}"
            )
        for name in ("max_class_share", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be in [0, 1], got {getattr(self, name)}")


class ReadLabelMap:
    """
    Index -> label map `(height, width)`, int64, with `IGNORE_INDEX` where a pixel does not count.

    Args:
        rows (`Dataset`): Rows by index.
        column (`str`): Of the label maps.
        num_labels (`int`): Number of classes.
        do_reduce_labels (`bool`): Whether maps count classes from 1, and 0 is what does not count.
        split (`str`): What to call the split in errors.
        places (`Sequence[int]`, *optional*): The class of each value in the maps; default: the value.
    """

    def __init__(
        self,
        rows: Dataset,
        column: str,
        num_labels: int,
        do_reduce_labels: bool,
        split: str,
        places: Sequence[int] | None = None,
    ):
        self.rows, self.column, self.num_labels = rows, column, num_labels
        self.places = torch.as_tensor(range(num_labels) if places is None else places, device="cpu")
        self.map_rows = rows.select_columns([column])  # so that images are not read with them
        self.do_reduce_labels, self.split = do_reduce_labels, split

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.map_rows[index], index)

    def name(self, index: int) -> str:
        """What to call a sample in errors."""
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
        counts, number = labels != IGNORE_INDEX, len(self.places)
        wrong = labels[((labels < 0) | (labels >= number)) & counts]
        if len(wrong):
            raise ValueError(
                f"labels of {name} must be in [0, {number}), or {IGNORE_INDEX} where they do not count, got "
                f"{wrong[0].item()}"
            )
        return torch.where(counts, self.places[labels.where(counts, torch.zeros_like(labels))], IGNORE_INDEX)


class ReadPair:
    """
    Index -> upright RGB image and its label map.

    Args:
        labels ([`ReadLabelMap`]): The label maps.
        image_column (`str`): Column of the images.
        processor: Converts images that are not RGB.
    """

    def __init__(self, labels: ReadLabelMap, image_column: str, processor):
        self.labels, self.image_column, self.processor = labels, image_column, processor

    def name(self, index: int) -> str:
        """What to call a sample in errors."""
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


class TrainingTransform:
    """
    Random scale, crop, flip and colours, as Table A3 has them: an image and its labels -> `pixel_values`
    `(3, crop, crop)` and `labels` `(crop, crop)`. What a crop has beyond the image does not count.
    """

    def __init__(self, processor, args: AugmentationArguments):
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
        pixels = F.normalize(F.to_dtype(image, torch.float32, scale=True), processor.image_mean, processor.image_std)
        padding = [0, 0, args.crop_size - box[3], args.crop_size - box[2]]
        labels = F.pad(labels, padding, fill=IGNORE_INDEX)
        return {"pixel_values": F.pad(pixels, padding).as_subclass(torch.Tensor), "labels": labels[0].to(torch.int64)}

    def _choose_crop(self, labels: torch.Tensor) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop that no class fills, if one of a few drawn ones is such."""
        height, width = (min(self.args.crop_size, extent) for extent in labels.shape[-2:])
        for _ in range(CROP_ATTEMPTS):
            top, left = (
                int(torch.randint(extent - part + 1, (), device="cpu"))
                for extent, part in zip(labels.shape[-2:], (height, width))
            )
            counts = torch.bincount(labels[0, top : top + height, left : left + width].flatten())[:IGNORE_INDEX]
            if self.args.max_class_share == 1 or counts.max() < self.args.max_class_share * counts.sum():
                break
        return top, left, height, width


def scaled_size(size: tuple[int, int], target, scale: float) -> tuple[int, int]:
    """
    An image's size with its aspect kept, so that its shorter side is `scale` times the processor's, unless its longer
    side would be more than `scale` times the longest.
    """
    factor = scale * target["shortest_edge"] / min(size)
    if target["longest_edge"]:
        factor = min(factor, scale * target["longest_edge"] / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def evaluation_transform(processor):
    """An image and its labels -> `pixel_values` of the processor and the `labels` as they are, at the image's size."""
    return functools.partial(_process, processor)


def _process(processor, pair: tuple[Image.Image, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": processor(pair[0], return_tensors="pt").pixel_values[0], "labels": pair[1]}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Tensors where all samples have the same size, as training crops do; else lists of them."""
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: torch.stack(values) if len({value.shape for value in values}) == 1 else values
        for name, values in columns.items()
    }
