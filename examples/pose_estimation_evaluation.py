# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Keypoints of persons, and what they are worth by the average precision of COCO and COCO-WholeBody."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pose_estimation_data import Place, parse_persons
from torch import nn
from transformers.modeling_outputs import ModelOutput

from clustr_hf import ClusTRPoseImageProcessor
from clustr_hf.keypoints import KeypointConvention
from clustr_hf.metrics import keypoint_average_precision, suppress_similar_poses


# Keypoints of lower scores do not count in the score of a person.
LEAST_KEYPOINT_SCORE = 0.2
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
) -> np.ndarray:
    """Keypoints (n, K, 3), (x, y, score) in the images, of crops (n, 3, H, W); with `flip_pairs` by the flip test."""
    # Only what is decoded: outputs of a wrapped model have forms of their own.
    outputs = ModelOutput(heatmaps=model(pixel_values=pixel_values).heatmaps.float())
    flipped = None
    if flip_pairs is not None:
        heatmaps = model(pixel_values=pixel_values.flip(-1), flip_pairs=flip_pairs).heatmaps
        flipped = ModelOutput(heatmaps=heatmaps.float())
    found = processor.post_process_pose_estimation(outputs, [[box] for box in boxes], flipped)
    parts = [torch.cat([person["keypoints"], person["scores"][:, None]], dim=1) for [person] in found]
    return torch.stack(parts).cpu().numpy()


class Predictor:
    """The loop's `predict`: for each person its place and keypoints."""

    def __init__(self, processor: ClusTRPoseImageProcessor, convention: KeypointConvention, args: EvaluationArguments):
        self.processor = processor
        self.flip_pairs = convention.flip_pairs if args.flip_test else None

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> list[tuple[Place, np.ndarray]]:
        boxes = [place.box for place in batch["places"]]
        keypoints = estimate(model, self.processor, batch["pixel_values"], boxes, self.flip_pairs)
        return list(zip(batch["places"], keypoints))


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

    def __call__(self, records: list[tuple[Place, np.ndarray]]) -> dict[str, float]:
        predictions = group_by_image(records, len(self.references), self.convention.sigmas)
        results = keypoint_average_precision(predictions, self.references, self.convention)
        parts = {**self.convention.parts, "wholebody": range(self.convention.num_keypoints)}
        self.table = {}
        for name, part in parts.items():
            if f"{name}_ap" in results:
                persons = int(self.is_annotated[:, list(part)].any(axis=1).sum())
                self.table[name] = {**{key: results[f"{name}_{key}"] for key in COLUMNS}, "persons": persons}
        return {f"eval_{name}": value for name, value in results.items() if value == value}  # no NaN


def group_by_image(
    records: list[tuple[Place, np.ndarray]], num_images: int, sigmas: Sequence[float]
) -> list[dict[str, np.ndarray]]:
    """
    What the metric takes of each image: `keypoints` and `scores`, the box's score times the mean of those of the
    keypoints that are seen, without persons that are found twice.
    """
    found = [[] for _ in range(num_images)]
    for place, keypoints in records:
        found[place.row].append((place, keypoints))
    predictions = []
    for of_image in found:
        keypoints = np.stack([points for _, points in of_image]) if of_image else np.zeros((0, len(sigmas), 3))
        areas = np.array([place.box[2] * place.box[3] for place, _ in of_image])
        scores = np.array([place.score for place, _ in of_image]) * _person_scores(keypoints[..., 2])
        kept = suppress_similar_poses(keypoints[..., :2], scores, areas, sigmas, NMS_THRESHOLD)
        predictions.append({"keypoints": keypoints[kept], "scores": scores[kept]})
    return predictions


def _person_scores(scores: np.ndarray) -> np.ndarray:
    """Means (n,) of the scores (n, K) of keypoints that are seen; 0 where none is."""
    is_seen = scores > LEAST_KEYPOINT_SCORE
    return (scores * is_seen).sum(axis=1) / np.maximum(1, is_seen.sum(axis=1))
