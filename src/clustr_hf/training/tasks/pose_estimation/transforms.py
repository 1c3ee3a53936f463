# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""From a person in an image to a crop with target heatmaps. Points are (x, y)."""

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
from ...augmentation import check_probabilities
from ...data.coco_files import IMAGE
from ...data.decoding import decode_rgb
from .annotations import parse_persons
from .person_boxes import PersonBox


# As in mmpose: size of a half-body crop relative to the box of its keypoints, probability that it shows the upper body,
# and minimum numbers of keypoints of the upper and the lower body.
HALF_BODY_PADDING = 1.5
UPPER_PROBABILITY = 0.7
MIN_IN_HALF = (2, 3)


@dataclass
class PoseAugmentationArguments:
    """Augmentation of training crops; the defaults are those of TCFormer, which section 4.4 of the paper follows."""

    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    shift_factor: float = field(
        default=0.16, metadata={"help": "Maximum random shift of a crop, as a share of its size."}
    )
    shift_probability: float = field(default=0.3, metadata={"help": "Probability of a random shift."})
    half_body_keypoints: int = field(
        default=8,
        metadata={"help": "Half-body crops are made only of persons with more annotated keypoints than this number."},
    )
    half_body_probability: float = field(
        default=0.3, metadata={"help": "Probability of a half-body crop, around the upper or the lower body."}
    )
    rotation_factor: float = field(
        default=40.0,
        metadata={
            "help": "Standard deviation of the random rotation in degrees; rotations are clipped to twice this angle."
        },
    )
    rotation_probability: float = field(default=0.6, metadata={"help": "Probability of a random rotation."})
    scale_factor: float = field(
        default=0.5,
        metadata={"help": "Standard deviation of the random scale, which is clipped to 1 plus or minus this value."},
    )

    def __post_init__(self):
        check_probabilities(
            self, "flip_probability", "shift_probability", "half_body_probability", "rotation_probability"
        )
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
        person_box ([`PersonBox`]): Row of the image, and box around the person.
        keypoints (`torch.Tensor` of shape `(K, 3)`, *optional*): (x, y, visibility); None for boxes of a detector.
    """

    image: Image.Image
    person_box: PersonBox
    keypoints: torch.Tensor | None


class ReadPerson:
    """
    Index -> [`Sample`].

    Args:
        rows (`Dataset`): Rows of images, in the format of [`pose_format`].
        boxes (`Sequence[PersonBox]`): The samples.
        processor: Converts images that are not RGB.
        convention ([`KeypointConvention`]): Annotated keypoints.
        split (`str`): Name of the split in error messages.
    """

    def __init__(
        self, rows: Dataset, boxes: Sequence[PersonBox], processor: Any, convention: KeypointConvention, split: str
    ):
        self.rows, self.boxes, self.processor, self.convention, self.split = rows, boxes, processor, convention, split

    def __len__(self) -> int:
        return len(self.boxes)

    def name(self, index: int) -> str:
        """Name of a sample in error messages."""
        box = self.boxes[index]
        return f"{self.split} image {box.row}, " + (f"person {box.person}" if box.person is not None else "a box")

    def __call__(self, index: int) -> Sample:
        box = self.boxes[index]
        row = self.rows[box.row]
        image = decode_rgb(row[IMAGE], f"{self.split} image {box.row}", self.processor)
        keypoints = None
        if box.person is not None:
            keypoints = torch.from_numpy(parse_persons(row, self.convention).keypoints[box.person]).float()
        return Sample(image, box, keypoints)


class PoseTransform:
    """Random crop: a [`Sample`] -> `pixel_values` `(3, H, W)`, `labels` `(K, h, w)` and `label_weights` `(K,)`."""

    def __init__(
        self, processor: ClusTRPoseImageProcessor, convention: KeypointConvention, args: PoseAugmentationArguments
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
        """Centre (2,), extent (2,) and rotation of a random crop, drawn in the order of mmpose's transforms."""
        args = self.args
        centers, extents = box_regions(
            torch.tensor([sample.person_box.box], device="cpu"), self.size, self.processor.padding_factor
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
        """Centre and extent of a crop of the upper or the lower body; None if both have too few keypoints."""
        halves = list(zip((points[~is_lower], points[is_lower]), MIN_IN_HALF))
        if torch.rand((), device="cpu") >= UPPER_PROBABILITY:
            halves.reverse()
        half = next((half for half, minimum in halves if len(half) >= minimum), None)
        if half is None:
            return None
        lowest, extent = half.amin(dim=0), half.amax(dim=0) - half.amin(dim=0)
        if extent.max() == 0:
            return None
        _, extents = box_regions(torch.cat([lowest, extent])[None], self.size, HALF_BODY_PADDING)
        return half.mean(dim=0), extents[0]


def _clipped_normal(mean: float, deviation: float, limit: float) -> float:
    """A normally distributed random number, clipped to a maximum distance from its mean."""
    return mean + float((deviation * torch.randn((), device="cpu")).clamp(-limit, limit))


def prepare_for_evaluation(sample: Sample, processor: ClusTRPoseImageProcessor) -> dict[str, Any]:
    """A [`Sample`] -> `pixel_values` `(3, H, W)` of the processor, and the `person_box`."""
    crops = processor(sample.image, boxes=[[sample.person_box.box]], return_tensors="pt")
    return {"pixel_values": crops.pixel_values[0], "person_box": sample.person_box}
