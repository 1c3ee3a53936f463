# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Predictions of detectors, and what they are worth by COCO's average precision."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ....metrics import coco_average_precision
from ....remote_code.modeling_clustr_dense import image_sizes
from ...report import warn_of_absent


# Least score of RetinaNet's detections that are looked at, as in torchvision; Mask R-CNN's is in its configuration.
SCORE_THRESHOLD = 0.05
# The metrics of boxes and of masks in the results: eval_box_ap, eval_mask_ap50 ...
IOU_TYPES = {"box": "bbox", "mask": "segm"}
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


@dataclass
class EvaluationArguments:
    """How detections are evaluated, and drawn."""

    max_detections: int | None = field(
        default=None,
        metadata={
            "help": "Number of detections of an image that count. Default: 100 for object detection, as in COCO; for "
            "instance segmentation all that the model returns, `detections_per_image` of its configuration."
        },
    )
    num_pictures: int = field(default=4, metadata={"help": "Validation images in predictions.png; 0 draws none."})
    picture_threshold: float = field(default=0.5, metadata={"help": "Least score of a detection in the pictures."})

    def __post_init__(self):
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"--max_detections must be positive, got {self.max_detections}")
        if self.num_pictures < 0:
            raise ValueError(f"--num_pictures must be 0 or more, got {self.num_pictures}")
        if not 0 <= self.picture_threshold <= 1:
            raise ValueError(f"--picture_threshold must be in [0, 1], got {self.picture_threshold}")

    def check_model(self, config, with_masks: bool):
        """Raise a `ValueError` if more detections shall count than Mask R-CNN returns by its configuration."""
        most = config.detections_per_image
        if with_masks and self.max_detections is not None and self.max_detections > most:
            raise ValueError(
                f"--max_detections must be at most the model's detections_per_image, {most}, got "
                f"{self.max_detections}: raise that with --config_overrides"
            )


@torch.no_grad()
def detect(
    model: nn.Module,
    processor,
    pixel_values: torch.Tensor,
    size: tuple[int, int],
    threshold: float | None,
    most: int | None,
) -> dict[str, Any]:
    """
    Detections in one image (3, h, w), at its (height, width): `scores`, `labels`, `boxes` as arrays, and `masks` as
    run-length encodings if the model has them. Without a threshold, all that the evaluation looks at.
    """
    outputs = model(pixel_values=pixel_values[None])
    if threshold is None:
        threshold = 0.0 if "pred_masks" in outputs else SCORE_THRESHOLD
    limits = {"threshold": threshold, "target_sizes": [size], "max_detections": most}
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


class Predictor:
    """The loop's `predict`: for each image its detections and what there is to detect."""

    def __init__(self, processor, args: EvaluationArguments):
        self.processor, self.args = processor, args

    def __call__(self, model: nn.Module, batch: dict) -> list[tuple[dict, dict]]:
        records = []
        # One by one: images differ in size, and with FSDP all processes must go forward equally often.
        for image, mask, reference in zip(batch["pixel_values"], batch["pixel_mask"], batch["references"]):
            [(height, width)] = image_sizes(mask[None], image[None])
            image = image[:, :height, :width]
            found = detect(model, self.processor, image, reference["size"], None, self.args.max_detections)
            records.append((found, reference))
        return records


class Scores:
    """The loop's `compute_metrics`; `table` is that of the last evaluation, class by class."""

    def __init__(self, labels: list[str], kinds: tuple[str, ...], args: EvaluationArguments):
        self.labels, self.kinds, self.args, self.table = labels, kinds, args, None

    def __call__(self, records: list[tuple[dict, dict]]) -> dict[str, float]:
        predictions, references = zip(*records)
        is_first = self.table is None
        labels = np.concatenate([reference["labels"][reference["iscrowd"] == 0] for reference in references])
        counts = np.bincount(labels, minlength=len(self.labels))
        self.table = {label: {"objects": int(count)} for label, count in zip(self.labels, counts)}
        if not counts.any():
            raise ValueError("the validation images must have objects, got none")
        if is_first:
            warn_of_absent("object", self.labels, counts)
        metrics = {}
        for kind in self.kinds:
            settings = (len(self.labels), IOU_TYPES[kind], self.args.max_detections)
            result = coco_average_precision(predictions, references, *settings)
            valid = [name for name in METRICS if result[name] == result[name]]  # no NaN, where no object is of a size
            metrics.update({f"eval_{kind}_{name}": result[name] for name in valid})
            for name in ("ap", "ap50"):
                for row, value in zip(self.table.values(), result[f"per_category_{name}"]):
                    row[f"{kind}_{name}"] = float(value)
        return metrics
