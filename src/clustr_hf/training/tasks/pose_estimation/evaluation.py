# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Keypoints of persons, and what they are worth by the average precision of COCO and COCO-WholeBody."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .... import ClusTRPoseImageProcessor
from ....keypoints import KeypointConvention
from ....metrics import keypoint_average_precision, suppress_similar_poses
from ....remote_code.image_processing_clustr_pose import box_regions
from ...report import warn_of_absent
from .data import Place, parse_persons


# Persons more similar than this to a better one are taken for the same.
NMS_THRESHOLD = 0.9
# What the tables of results show of each part.
COLUMNS = ("ap", "ap50", "ap75", "ar")


@dataclass
class EvaluationArguments:
    """How poses are evaluated, and drawn."""

    flip_test: bool = field(default=True, metadata={"help": "Average the heat maps with those of mirrored crops."})
    num_pictures: int = field(default=4, metadata={"help": "Validation images in predictions.png; 0 draws none."})
    picture_threshold: float = field(default=0.3, metadata={"help": "Least score of a keypoint in the pictures."})

    def __post_init__(self):
        if self.num_pictures < 0:
            raise ValueError(f"--num_pictures must be 0 or more, got {self.num_pictures}")
        if not 0 <= self.picture_threshold <= 1:
            raise ValueError(f"--picture_threshold must be in [0, 1], got {self.picture_threshold}")


@torch.no_grad()
def estimate(
    model: nn.Module,
    processor: ClusTRPoseImageProcessor,
    pixel_values: torch.Tensor,
    boxes: Sequence[Sequence[float]],
    flip_pairs: Sequence[Sequence[int]] | None,
) -> list[dict[str, Any]]:
    """
    Of crops (n, 3, H, W) of persons: `keypoints` (K, 3), (x, y, score) in the image, the person's `score`, and the
    `area` of its crop; with `flip_pairs` by the flip test.
    """
    # Only what is decoded: outputs of a wrapped model have forms of their own.
    outputs = ModelOutput(heatmaps=model(pixel_values=pixel_values).heatmaps.float())
    flipped = None
    if flip_pairs is not None:
        heatmaps = model(pixel_values=pixel_values.flip(-1), flip_pairs=flip_pairs).heatmaps
        flipped = ModelOutput(heatmaps=heatmaps.float())
    found = processor.post_process_pose_estimation(outputs, [[box] for box in boxes], flipped)
    size = processor.size["height"], processor.size["width"]
    _, extents = box_regions(torch.tensor(boxes, dtype=torch.float32, device="cpu"), size, processor.padding_factor)
    return [
        {
            "keypoints": torch.cat([person["keypoints"], person["scores"][:, None]], dim=1).cpu().numpy(),
            "score": person["score"].item(),
            "area": area,
        }
        for [person], area in zip(found, extents.prod(dim=1).tolist())
    ]


class Predictor:
    """The loop's `predict`: for each person its place and what [`estimate`] finds."""

    def __init__(self, processor: ClusTRPoseImageProcessor, convention: KeypointConvention, args: EvaluationArguments):
        self.processor = processor
        self.flip_pairs = convention.flip_pairs if args.flip_test else None

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> list[tuple[Place, dict[str, Any]]]:
        boxes = [place.box for place in batch["places"]]
        found = estimate(model, self.processor, batch["pixel_values"], boxes, self.flip_pairs)
        return list(zip(batch["places"], found))


class Scores:
    """
    The loop's `compute_metrics`; `table` is that of the last evaluation, part by part.

    Args:
        rows (`Dataset`): The validation images, with all their persons.
        convention ([`KeypointConvention`]): What their keypoints are.
    """

    def __init__(self, rows: Dataset, convention: KeypointConvention):
        self.convention, self.table = convention, None
        self.references = []
        for row in rows:
            persons = parse_persons(row, convention)
            corners = np.concatenate([persons.boxes[:, :2], persons.boxes[:, :2] + persons.boxes[:, 2:]], axis=1)
            self.references.append({**vars(persons), "boxes": corners})
        visible = [reference["keypoints"][reference["iscrowd"] == 0, :, 2] > 0 for reference in self.references]
        self.is_annotated = np.concatenate(visible)
        if not self.is_annotated.any():
            raise ValueError("the validation images must have persons with annotated keypoints, got none")

    @property
    def metric(self) -> str:
        """The one that chooses the best weights: the AP of all keypoints."""
        return f"eval_{'wholebody' if len(self.convention.parts) > 1 else 'body'}_ap"

    def __call__(self, records: list[tuple[Place, dict[str, Any]]]) -> dict[str, float]:
        predictions = group_by_image(records, len(self.references), self.convention.sigmas)
        results = keypoint_average_precision(predictions, self.references, self.convention)
        parts = {name: list(part) for name, part in self.convention.parts.items()}
        if "lefthand" in parts:
            parts["hand"] = parts["lefthand"] + parts["righthand"]
        parts["wholebody"] = list(range(self.convention.num_keypoints))
        if self.table is None:
            counts = [int(self.is_annotated[:, list(part)].sum()) for part in self.convention.parts.values()]
            warn_of_absent("annotated keypoint", list(self.convention.parts), counts, kind="parts")
        self.table = {}
        for name, part in parts.items():
            if f"{name}_ap" in results:
                persons = int(self.is_annotated[:, part].any(axis=1).sum())
                self.table[name] = {**{key: results[f"{name}_{key}"] for key in COLUMNS}, "persons": persons}
        return {f"eval_{name}": value for name, value in results.items() if value == value}  # no NaN


def group_by_image(
    records: list[tuple[Place, dict[str, Any]]], num_images: int, sigmas: Sequence[float]
) -> list[dict[str, np.ndarray]]:
    """
    What the metric takes of each image: `keypoints` and `scores`, the box's score times the person's, without persons
    that are found twice.
    """
    found = [[] for _ in range(num_images)]
    for place, person in records:
        found[place.row].append((place.score * person["score"], person))
    predictions = []
    for of_image in found:
        keypoints = np.array([person["keypoints"] for _, person in of_image]).reshape(-1, len(sigmas), 3)
        areas = np.array([person["area"] for _, person in of_image])
        scores = np.array([score for score, _ in of_image])
        kept = suppress_similar_poses(keypoints[..., :2], scores, areas, sigmas, NMS_THRESHOLD)
        predictions.append({"keypoints": keypoints[kept], "scores": scores[kept]})
    return predictions
