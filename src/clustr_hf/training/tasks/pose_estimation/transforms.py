# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a person in an image to a crop with target heat maps, and from these to a batch. Points are (x, y)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torchvision.transforms.v2 import functional as F

from .... import ClusTRPoseImageProcessor
from ....keypoints import KeypointConvention
from ....remote_code.image_processing_clustr_pose import (
    PIXEL_SETTINGS,
    box_regions,
    crop_matrices,
    crop_persons,
    heatmap_size,
    heatmap_targets,
    image_to_crop,
)
from ....remote_code.modeling_clustr_pose import mirror_order
from ...data.coco_files import IMAGE
from ...data.samples import decode_rgb
from .data import Place, parse_persons


# As in mmpose: the crop around half a body is so much larger than the box of its keypoints, it is the upper half with
# this probability, and the upper and the lower one have at least so many keypoints.
HALF_BODY_PADDING = 1.5
UPPER_PROBABILITY = 0.7
LEAST_IN_HALF = (2, 3)


@dataclass
class AugmentationArguments:
    """How training crops are changed; the defaults are those of TCFormer, which section 4.4 of the paper follows."""

    flip_probability: float = field(default=0.5, metadata={"help": "Of mirroring left and right."})
    shift_factor: float = field(default=0.16, metadata={"help": "Greatest shift of a crop, as a share of its size."})
    shift_probability: float = field(default=0.3, metadata={"help": "Of a shift."})
    half_body_keypoints: int = field(
        default=8, metadata={"help": "Persons with more annotated keypoints than these are cut to half of them."}
    )
    half_body_probability: float = field(default=0.3, metadata={"help": "Of that."})
    rotation_factor: float = field(
        default=40.0, metadata={"help": "Standard deviation of the rotation in degrees, cut at twice that."}
    )
    rotation_probability: float = field(default=0.6, metadata={"help": "Of a rotation."})
    scale_factor: float = field(
        default=0.5, metadata={"help": "Standard deviation of the scale around 1, cut at this distance from 1."}
    )

    def __post_init__(self):
        for name in ("flip", "shift", "half_body", "rotation"):
            if not 0 <= getattr(self, f"{name}_probability") <= 1:
                raise ValueError(f"--{name}_probability must be in [0, 1], got {getattr(self, f'{name}_probability')}")
        for name in ("shift_factor", "half_body_keypoints", "rotation_factor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.scale_factor < 1:
            raise ValueError(f"--scale_factor must be in [0, 1), got {self.scale_factor}")


@dataclass
class Sample:
    """
    A person in an image.

    Args:
        image (`PIL.Image.Image`): Upright, RGB.
        place ([`Place`]): The image's row, and the person's box.
        keypoints (`torch.Tensor` of shape `(K, 3)`, *optional*): (x, y, visibility); none for boxes of a detector.
    """

    image: Image.Image
    place: Place
    keypoints: torch.Tensor | None


class ReadPerson:
    """
    Index -> [`Sample`].

    Args:
        rows (`Dataset`): Rows of images, as [`load_data`] gives them.
        places (`Sequence[Place]`): The samples.
        processor: Converts images that are not RGB.
        convention ([`KeypointConvention`]): What the keypoints are.
        split (`str`): What to call the split in errors.
    """

    def __init__(self, rows: Dataset, places: Sequence[Place], processor, convention: KeypointConvention, split: str):
        self.rows, self.places, self.processor, self.convention, self.split = rows, places, processor, convention, split

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """What to call a sample in errors."""
        place = self.places[index]
        return f"{self.split} image {place.row}, " + (f"person {place.person}" if place.person is not None else "a box")

    def __call__(self, index: int) -> Sample:
        place = self.places[index]
        row = self.rows[place.row]
        image = decode_rgb(row[IMAGE], f"{self.split} image {place.row}", self.processor)
        keypoints = None
        if place.person is not None:
            keypoints = torch.from_numpy(parse_persons(row, self.convention).keypoints[place.person]).float()
        return Sample(image, place, keypoints)


class TrainingTransform:
    """A [`Sample`] -> `pixel_values` `(3, H, W)`, `labels` `(K, h, w)` and `label_weights` `(K,)`; random."""

    def __init__(
        self, processor: ClusTRPoseImageProcessor, convention: KeypointConvention, args: AugmentationArguments
    ):
        self.processor, self.args = processor, args
        self.size = processor.size["height"], processor.size["width"]
        self.heatmap_size = heatmap_size(self.size, processor.keypoint_heatmap_downscale_factor)
        self.pixel_settings = {name: getattr(processor, name) for name in PIXEL_SETTINGS}
        self.mirrored = mirror_order(convention.flip_pairs, convention.num_keypoints)
        self.is_lower = torch.tensor(
            [index in convention.lower_body for index in range(convention.num_keypoints)], device="cpu"
        )

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        processor, keypoints = self.processor, sample.keypoints
        center, extent, rotation = self._random_region(sample)
        if torch.rand((), device="cpu") < self.args.flip_probability:
            extent, keypoints = extent * torch.tensor([-1.0, 1.0], device="cpu"), keypoints[self.mirrored]
        region = (center[None], extent[None])
        crops = crop_persons(F.pil_to_tensor(sample.image), *region, self.size, rotation[None])
        [pixels] = processor.rescale_and_normalize(crops, **self.pixel_settings)
        points = image_to_crop(keypoints[None, :, :2], crop_matrices(*region, self.heatmap_size, rotation[None]))
        heatmaps, weights = heatmap_targets(
            points, keypoints[None, :, 2] > 0, self.heatmap_size, processor.keypoint_heatmap_sigma
        )
        return {"pixel_values": pixels, "labels": heatmaps[0], "label_weights": weights[0]}

    def _random_region(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Centre (2,), extent (2,) and rotation of a crop, in the order of mmpose's transforms."""
        args = self.args
        centers, extents = box_regions(
            torch.tensor([sample.place.box], device="cpu"), self.size, self.processor.padding_factor
        )
        center, extent = centers[0], extents[0]
        if torch.rand((), device="cpu") < args.shift_probability:
            center = center + args.shift_factor * extent * (2 * torch.rand(2, device="cpu") - 1)
        is_annotated = sample.keypoints[:, 2] > 0
        if is_annotated.sum() > args.half_body_keypoints and torch.rand((), device="cpu") < args.half_body_probability:
            half = self._choose_half(sample.keypoints[is_annotated, :2], self.is_lower[is_annotated])
            center, extent = (center, extent) if half is None else half
        extent = extent * _clipped_normal(1.0, args.scale_factor, args.scale_factor)
        is_rotated = torch.rand((), device="cpu") < args.rotation_probability
        rotation = _clipped_normal(0.0, args.rotation_factor, 2 * args.rotation_factor) if is_rotated else 0.0
        return center, extent, torch.as_tensor(rotation, device="cpu")

    def _choose_half(self, points: torch.Tensor, is_lower: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Region around the upper or the lower half of a body; None if there is none."""
        halves = list(zip((points[~is_lower], points[is_lower]), LEAST_IN_HALF))
        if torch.rand((), device="cpu") >= UPPER_PROBABILITY:
            halves.reverse()
        half = next((half for half, least in halves if len(half) >= least), None)
        if half is None:
            return None
        lowest, extent = half.amin(dim=0), half.amax(dim=0) - half.amin(dim=0)
        if extent.max() == 0:
            return None
        _, extents = box_regions(torch.cat([lowest, extent])[None], self.size, HALF_BODY_PADDING)
        return half.mean(dim=0), extents[0]


def _clipped_normal(mean: float, deviation: float, most: float) -> float:
    """A normal random number, at most so far from its mean."""
    return mean + float((deviation * torch.randn((), device="cpu")).clamp(-most, most))


class EvaluationTransform:
    """A [`Sample`] -> `pixel_values` `(3, H, W)` of the processor, and its place."""

    def __init__(self, processor: ClusTRPoseImageProcessor):
        self.processor = processor

    def __call__(self, sample: Sample) -> dict[str, Any]:
        crops = self.processor(sample.image, boxes=[[sample.place.box]], return_tensors="pt")
        return {"pixel_values": crops.pixel_values[0], "place": sample.place}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of either transform -> a batch: tensors stacked, places as a list."""
    batch = {
        name: torch.stack([sample[name] for sample in samples])
        for name, value in samples[0].items()
        if isinstance(value, torch.Tensor)
    }
    if "place" in samples[0]:
        batch["places"] = [sample["place"] for sample in samples]
    return batch
