# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Predictions of pose estimators, and their average precision as defined by COCO and COCO-WholeBody."""

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
from ...augmentation import check_probabilities
from ...report import warn_of_absent
from ..evaluation_report import EvaluationArguments, Table
from .annotations import parse_persons
from .person_boxes import PersonBox


# Similarity (OKS) above which a person is a duplicate of one with a higher score.
NMS_THRESHOLD = 0.9
# Columns of the tables of results.
COLUMNS = ("ap", "ap50", "ap75", "ar")
# The box of a person, and what `estimate` finds in it.
Record = tuple[PersonBox, dict[str, Any]]


@dataclass
class PoseEvaluationArguments(EvaluationArguments):
    """Evaluation and pictures of poses."""

    flip_test: bool = field(
        default=True, metadata={"help": "Whether to average the heatmaps of each crop and of its mirror image."}
    )
    picture_threshold: float = field(
        default=0.3, metadata={"help": "Minimum score of a keypoint drawn in predictions.png."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_probabilities(self, "picture_threshold")


@torch.no_grad()
def estimate(
    model: nn.Module,
    processor: ClusTRPoseImageProcessor,
    pixel_values: torch.Tensor,
    boxes: Sequence[Sequence[float]],
    flip_pairs: Sequence[Sequence[int]] | None,
) -> list[dict[str, Any]]:
    """
    Poses in crops of persons, with the flip test if `flip_pairs` are given.

    Args:
        model, processor: Pose estimator and its image processor.
        pixel_values (`torch.Tensor` of shape `(n, 3, H, W)`): Crops.
        boxes (`Sequence[Sequence[float]]`): Box (x, y, width, height) of each crop in its image.
        flip_pairs (`Sequence[Sequence[int]]`, *optional*): Pairs of keypoints that a flip exchanges.

    Returns:
        For each crop: `keypoints` (K, 3), (x, y, score) in the image, the `score` of the person and the `area` of the
        crop.
    """
    # Keep the heatmaps only: a wrapped model may return outputs of another type.
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


def predict(
    model: nn.Module,
    batch: dict[str, Any],
    processor: ClusTRPoseImageProcessor,
    flip_pairs: Sequence[Sequence[int]] | None,
) -> list[Record]:
    """The box and the estimated pose of each person of a batch."""
    boxes = [box.box for box in batch["person_box"]]
    return list(zip(batch["person_box"], estimate(model, processor, batch["pixel_values"], boxes, flip_pairs)))


class PoseScores:
    """
    Metrics of poses, and their table with a row for each part of the body.

    Args:
        rows (`Dataset`): Validation images with all their persons.
        convention ([`KeypointConvention`]): Annotated keypoints.
    """

    def __init__(self, rows: Dataset, convention: KeypointConvention):
        self.convention = convention
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
        """The metric that selects the best weights: the AP of all keypoints."""
        return f"eval_{'wholebody' if len(self.convention.parts) > 1 else 'body'}_ap"

    def __call__(self, records: list[Record]) -> tuple[dict[str, float], Table]:
        predictions = group_by_image(records, len(self.references), self.convention.sigmas)
        results = keypoint_average_precision(predictions, self.references, self.convention)
        parts = {name: list(part) for name, part in self.convention.parts.items()}
        if "lefthand" in parts:
            parts["hand"] = parts["lefthand"] + parts["righthand"]
        parts["wholebody"] = list(range(self.convention.num_keypoints))
        table = {}
        for name, part in parts.items():
            if f"{name}_ap" in results:
                persons = int(self.is_annotated[:, part].any(axis=1).sum())
                table[name] = {**{key: results[f"{name}_{key}"] for key in COLUMNS}, "persons": persons}
        return {f"eval_{name}": value for name, value in results.items() if value == value}, table  # without NaN

    def warn(self, table: Table) -> None:
        """Warn of parts of the body without annotated keypoints."""
        numbers = [int(self.is_annotated[:, list(part)].sum()) for part in self.convention.parts.values()]
        warn_of_absent("annotated keypoint", list(self.convention.parts), numbers, kind="parts")


def group_by_image(records: list[Record], num_images: int, sigmas: Sequence[float]) -> list[dict[str, np.ndarray]]:
    """
    Predictions for [`keypoint_average_precision`] of each image, without duplicates: `keypoints`, and `scores`, the
    score of the box times that of the person.
    """
    found = [[] for _ in range(num_images)]
    for box, person in records:
        found[box.row].append((box.score * person["score"], person))
    predictions = []
    for of_image in found:
        keypoints = np.array([person["keypoints"] for _, person in of_image]).reshape(-1, len(sigmas), 3)
        areas = np.array([person["area"] for _, person in of_image])
        scores = np.array([score for score, _ in of_image])
        kept = suppress_similar_poses(keypoints[..., :2], scores, areas, sigmas, NMS_THRESHOLD)
        predictions.append({"keypoints": keypoints[kept], "scores": scores[kept]})
    return predictions
