# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a row of a detection data set to a transformed sample and to a batch. Sizes are (height, width)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_area, box_convert
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio

from ....remote_code.image_processing_clustr_detection import clean_annotation, decode_segmentation, encode_mask
from ....remote_code.modeling_clustr_dense import pad_to
from ...augmentation import (
    AugmentationArguments,
    PhotometricDistortion,
    check_probabilities,
    normalize,
    random_corner,
    uniform,
)
from ...data.decoding import UnreadableSample, decode_rgb
from ...data.loaders import collate


# Minimum share of an object that a crop must show; other objects are dropped.
MIN_VISIBLE = 0.2
# Keys of the size of an image processor.
EDGES = ("shortest_edge", "longest_edge")


@dataclass
class DetectionAugmentationArguments(AugmentationArguments):
    """Augmentation of training images; the defaults are those of Table A4."""

    vertical_flip_probability: float = field(default=0.0, metadata={"help": "Probability of a vertical flip."})

    def __post_init__(self):
        super().__post_init__()
        check_probabilities(self, "vertical_flip_probability")


@dataclass
class Sample:
    """
    An image and its objects.

    Args:
        image (`PIL.Image.Image`): Upright, RGB.
        boxes (`torch.FloatTensor` of shape `(n, 4)`): (x0, y0, x1, y1) in pixels.
        labels (`torch.LongTensor` of shape `(n,)`): Class ids.
        area (`torch.FloatTensor` of shape `(n,)`): Area in square pixels.
        iscrowd (`torch.LongTensor` of shape `(n,)`): 1 for crowds.
        masks (`torch.BoolTensor` of shape `(n, height, width)`, *optional*): Masks of the objects.
    """

    image: Image.Image
    boxes: torch.Tensor
    labels: torch.Tensor
    area: torch.Tensor
    iscrowd: torch.Tensor
    masks: torch.Tensor | None = None


class MalformedSegmentation(UnreadableSample, ValueError):
    """An unreadable mask of an object. The sample is skipped like one with a broken image."""


class ReadSample:
    """
    Index -> [`Sample`].

    Args:
        rows (`Dataset`): Rows of the data set.
        parse ([`ParseObjects`]): Row -> annotations.
        processor: Converts images that are not RGB.
        num_labels (`int`): Number of classes.
        with_masks (`bool`): Whether the task needs masks.
        split (`str`): Name of the split in error messages.
    """

    def __init__(self, rows: Dataset, parse: Callable, processor: Any, num_labels: int, with_masks: bool, split: str):
        self.rows, self.parse, self.processor, self.num_labels = rows, parse, processor, num_labels
        self.with_masks, self.split = with_masks, split

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, index: int) -> Sample:
        row, name = self.rows[index], self.name(index)
        image = decode_rgb(row[self.parse.image_column], name, self.processor)
        try:
            return self._make_sample(image, self.parse(row))
        except (LookupError, TypeError, ValueError) as error:
            # The message of a LookupError is only the key.
            reason = repr(error) if isinstance(error, LookupError) else error
            kind = MalformedSegmentation if isinstance(error, MalformedSegmentation) else ValueError
            raise kind(f"{name}: {reason}") from error

    def name(self, index: int) -> str:
        """Name of a sample in error messages."""
        return f"{self.split} sample {index}"

    def _make_sample(self, image: Image.Image, annotations: list[Mapping[str, Any]]) -> Sample:
        annotations = [clean_annotation(annotation, index) for index, annotation in enumerate(annotations)]
        columns = {name: [row[name] for row in annotations] for name in ("bbox", "category_id", "iscrowd")}
        boxes = torch.tensor(columns["bbox"], dtype=torch.float32, device="cpu").reshape(-1, 4)
        labels = torch.tensor(columns["category_id"], dtype=torch.int64, device="cpu")
        if not ((labels >= 0) & (labels < self.num_labels)).all():
            raise ValueError(f"classes must be in [0, {self.num_labels}), got {labels.tolist()}")
        masks, size = None, (image.height, image.width)
        if self.with_masks:
            masks = [_decode_mask(annotation, size, index) for index, annotation in enumerate(annotations)]
            masks = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool, device="cpu")
        areas = boxes[:, 2] * boxes[:, 3] if masks is None else masks.sum(dim=(1, 2))
        areas = [row.get("area", area) for row, area in zip(annotations, areas.tolist())]
        return Sample(
            image=image,
            boxes=box_convert(boxes, "xywh", "xyxy"),
            labels=labels,
            area=torch.tensor(areas, dtype=torch.float32, device="cpu"),
            iscrowd=torch.tensor(columns["iscrowd"], dtype=torch.int64, device="cpu"),
            masks=masks,
        )


def _decode_mask(annotation: Mapping[str, Any], size: tuple[int, int], index: int) -> torch.Tensor:
    # Missing masks are an error of the data set; a sample with a broken mask is skipped.
    kind = MalformedSegmentation if annotation.get("segmentation") else ValueError
    try:
        return decode_segmentation(annotation.get("segmentation"), size)
    except ValueError as error:
        raise kind(f"annotation {index}: {error}") from error


class DetectionTransform:
    """
    Random scale, crop, flips and colours: a [`Sample`] -> `pixel_values` `(3, h, w)` and `labels` of the model. Crowds
    and objects outside the crop are dropped.
    """

    def __init__(self, processor: Any, args: DetectionAugmentationArguments):
        size = processor.size
        if not size["shortest_edge"] or not (processor.do_resize and processor.do_rescale and processor.do_normalize):
            raise ValueError(
                "the image processor must resize the shorter edge, rescale and normalise, got size "
                f"{dict(size)}: give --image_size"
            )
        self.processor, self.args = processor, args
        self.distort = PhotometricDistortion() if args.photometric_distortion else None

    def __call__(self, sample: Sample) -> dict[str, Any]:
        is_object = sample.iscrowd == 0
        image = tv_tensors.Image(F.pil_to_tensor(sample.image))
        parts = [image, tv_tensors.BoundingBoxes(sample.boxes[is_object], format="XYXY", canvas_size=image.shape[-2:])]
        if sample.masks is not None:
            parts.append(tv_tensors.Mask(sample.masks[is_object]))
        parts, scaled_boxes = self._change_geometry(parts)
        image, boxes = parts[:2]
        if self.distort is not None:
            image = self.distort(image)
        pixels = normalize(image, self.processor)
        boxes = F.clamp_bounding_boxes(boxes).as_subclass(torch.Tensor)
        kept = box_area(boxes) > MIN_VISIBLE * box_area(scaled_boxes.as_subclass(torch.Tensor))
        if sample.masks is not None:
            masks = parts[2].as_subclass(torch.Tensor)
            kept &= masks.flatten(1).any(dim=1)
        height, width = image.shape[-2:]
        labels = {
            "class_labels": sample.labels[is_object][kept],
            "boxes": box_convert(boxes[kept], "xyxy", "cxcywh")
            / torch.tensor([width, height, width, height], device="cpu"),
        }
        if sample.masks is not None:
            labels["masks"] = masks[kept]
        return {"pixel_values": pixels.as_subclass(torch.Tensor), "labels": labels}

    def _change_geometry(
        self, parts: list[tv_tensors.TVTensor]
    ) -> tuple[list[tv_tensors.TVTensor], tv_tensors.BoundingBoxes]:
        """
        Image, boxes and, if there are any, masks after the same random scale, crop and flips; and the scaled boxes
        before the crop.
        """
        args, scale = self.args, uniform(self.args.min_scale, self.args.max_scale)
        edges = [self.processor.size[name] and round(scale * self.processor.size[name]) for name in EDGES]
        size = [max(1, extent) for extent in get_size_with_aspect_ratio(parts[0].shape[-2:], *edges)]
        parts = [_resize(part, size) for part in parts]
        scaled_boxes = parts[1]
        if args.crop_size is not None:
            extents = [min(args.crop_size, extent) for extent in size]
            corner = random_corner(size, extents)
            parts = [F.crop(part, *corner, *extents) for part in parts]
        for probability, flip in (
            (args.flip_probability, F.horizontal_flip),
            (args.vertical_flip_probability, F.vertical_flip),
        ):
            if torch.rand((), device="cpu") < probability:
                parts = [flip(part) for part in parts]
        return parts, scaled_boxes


def _resize(part: tv_tensors.TVTensor, size: tuple[int, int]) -> tv_tensors.TVTensor:
    if not isinstance(part, tv_tensors.Mask):
        return F.resize(part, list(size), antialias=True)
    if len(part) == 0:  # torchvision cannot resize empty tensors
        return tv_tensors.Mask(part.new_zeros((0, *size)))
    # torchvision's default for masks, NEAREST, shifts them by up to half a pixel.
    masks = F.resize(part.as_subclass(torch.Tensor), list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return tv_tensors.Mask(masks)


def prepare_for_evaluation(sample: Sample, processor: Any) -> dict[str, Any]:
    """
    A [`Sample`] -> `pixel_values` `(3, h, w)` of the processor, and the `reference`: ground truth for
    [`coco_average_precision`] at the size of the image, and that size.
    """
    reference = {name: getattr(sample, name).numpy() for name in ("boxes", "labels", "area", "iscrowd")}
    if sample.masks is not None:
        reference["masks"] = [encode_mask(mask) for mask in sample.masks]
    reference["size"] = (sample.image.height, sample.image.width)
    return {"pixel_values": processor(sample.image, return_tensors="pt").pixel_values[0], "reference": reference}


def collate_objects(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """
    A batch of images, padded to the largest height and width; masks are padded with them. `pixel_mask` is 1 inside the
    images.
    """
    images = [sample["pixel_values"] for sample in samples]
    size = tuple(max(image.shape[axis] for image in images) for axis in (1, 2))
    pixel_mask = torch.zeros((len(images), *size), dtype=torch.int64, device="cpu")
    for mask, image in zip(pixel_mask, images):
        mask[: image.shape[1], : image.shape[2]] = 1
    batch = collate([{**sample, "pixel_values": pad_to(sample["pixel_values"], size)} for sample in samples])
    batch["pixel_mask"] = pixel_mask
    if "labels" in batch:
        # The processor's type of labels: FSDP casts tensors in dictionaries to half precision, too coarse for boxes.
        batch["labels"] = [BatchFeature(labels) for labels in batch["labels"]]
        for labels in batch["labels"]:
            if "masks" in labels:
                labels["masks"] = pad_to(labels["masks"], size)
    return batch
