# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Predictions of detectors, and their average precision as defined by COCO."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ....metrics import coco_average_precision
from ....remote_code.modeling_clustr_dense import image_sizes
from ...augmentation import check_probabilities
from ..evaluation_report import EvaluationArguments, Table


# Minimum score of RetinaNet's detections in an evaluation, as in torchvision; Mask R-CNN's is in its configuration.
MIN_SCORE = 0.05
# Kinds of metrics in the results (eval_box_ap, eval_mask_ap50 ...), and COCO's names for them.
IOU_TYPES = {"box": "bbox", "mask": "segm"}
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


@dataclass
class DetectionEvaluationArguments(EvaluationArguments):
    """Evaluation and pictures of detections."""

    max_detections: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of detections per image in the evaluation. Default: 100 for object detection, as "
            "in COCO; for instance segmentation, `detections_per_image` of the model's configuration."
        },
    )
    picture_threshold: float = field(
        default=0.5, metadata={"help": "Minimum score of a detection drawn in predictions.png."}
    )

    def __post_init__(self):
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"--max_detections must be positive, got {self.max_detections}")
        super().__post_init__()
        check_probabilities(self, "picture_threshold")

    def check_model(self, config: Any, with_masks: bool) -> None:
        """Raise a `ValueError` if Mask R-CNN returns fewer detections than `--max_detections`."""
        limit = config.detections_per_image
        if with_masks and self.max_detections is not None and self.max_detections > limit:
            raise ValueError(
                f"--max_detections must be at most the model's detections_per_image, {limit}, got "
                f"{self.max_detections}: raise that with --config_overrides"
            )


@torch.no_grad()
def detect(
    model: nn.Module,
    processor: Any,
    pixel_values: torch.Tensor,
    size: tuple[int, int],
    threshold: float | None,
    max_detections: int | None,
) -> dict[str, Any]:
    """
    Detections in one image (3, h, w), at its (height, width): `scores`, `labels` and `boxes` as arrays, and `masks` as
    run-length encodings if the model has them. Without a threshold, all detections that an evaluation uses.
    """
    outputs = model(pixel_values=pixel_values[None])
    if threshold is None:
        threshold = 0.0 if "pred_masks" in outputs else MIN_SCORE
    limits = {"threshold": threshold, "target_sizes": [size], "max_detections": max_detections}
    if "pred_masks" not in outputs:
        found = processor.post_process_object_detection(outputs, **limits)[0]
        return {name: values.cpu().numpy() for name, values in found.items()}
    found = processor.post_process_instance_segmentation(outputs, return_coco_annotation=True, **limits)[0]
    segments = found["segments_info"]
    columns = {
        name: [segment[key] for segment in segments]
        for name, key in (("scores", "score"), ("labels", "label_id"), ("boxes", "box"))
    }
    return {**columns, "masks": found["segmentation"]}


def predict(
    model: nn.Module, batch: dict, processor: Any, args: DetectionEvaluationArguments
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Detections and ground truth of every image of a batch."""
    records = []
    # One image at a time: sizes differ, and with FSDP all processes must run equally many forward passes.
    for image, mask, reference in zip(batch["pixel_values"], batch["pixel_mask"], batch["reference"]):
        [(height, width)] = image_sizes(mask[None], image[None])
        image = image[:, :height, :width]
        records.append((detect(model, processor, image, reference["size"], None, args.max_detections), reference))
    return records


def score(
    records: list[tuple[dict, dict]], labels: Sequence[str], kinds: Sequence[str], args: DetectionEvaluationArguments
) -> tuple[dict[str, float], Table]:
    """
    Metrics, and for each class the number of objects and its average precision.

    Args:
        records (`list[tuple[dict, dict]]`): Detections and ground truth of every image, as in [`predict`].
        labels (`Sequence[str]`): Class names.
        kinds (`Sequence[str]`): Keys of `IOU_TYPES`.
        args ([`DetectionEvaluationArguments`]): Limit of the number of detections.
    """
    predictions, references = zip(*records)
    class_ids = np.concatenate([reference["labels"][reference["iscrowd"] == 0] for reference in references])
    objects = np.bincount(class_ids, minlength=len(labels))
    if not objects.any():
        raise ValueError("the validation images must have objects, got none")
    table = {label: {"objects": int(number)} for label, number in zip(labels, objects)}
    metrics = {}
    for kind in kinds:
        result = coco_average_precision(predictions, references, len(labels), IOU_TYPES[kind], args.max_detections)
        defined = [name for name in METRICS if result[name] == result[name]]  # NaN if no object has the size
        metrics.update({f"eval_{kind}_{name}": result[name] for name in defined})
        for name in ("ap", "ap50"):
            for row, value in zip(table.values(), result[f"per_category_{name}"]):
                row[f"{kind}_{name}"] = float(value)
    return metrics, table
