# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Predictions of segmentation models, on whole images or in sliding windows, and their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from ....metrics import class_areas, summarize_areas
from ....remote_code.image_processing_clustr import IGNORE_INDEX
from ...report import warn_of_absent
from ..evaluation_report import EvaluationArguments, Table


# Advice to append to the warning if all labelled pixels belong to one class.
ONE_CLASS = ". All labelled pixels belong to one class: 255 marks pixels to ignore, whatever it was meant for"
# Areas (3, K) of the classes in an image (intersection, prediction, ground truth); sum of its cross-entropy; pixels.
Record = tuple[torch.Tensor, float, int]


@dataclass
class SegmentationEvaluationArguments(EvaluationArguments):
    """Evaluation on whole images or in overlapping windows; pictures."""

    eval_window: int | None = field(
        default=None, metadata={"help": "Side of sliding windows in pixels. Default: whole images are evaluated."}
    )
    eval_stride: int | None = field(
        default=None,
        metadata={"help": "Stride of the sliding windows in pixels. Default: two thirds of `--eval_window`."},
    )

    def __post_init__(self):
        if self.eval_window is not None and self.eval_window < 1:
            raise ValueError(f"--eval_window must be positive, got {self.eval_window}")
        if self.eval_stride is None and self.eval_window is not None:
            self.eval_stride = max(1, self.eval_window * 2 // 3)
        if self.eval_stride is not None and not 1 <= self.eval_stride <= (self.eval_window or 0):
            raise ValueError(f"--eval_stride must be from 1 to --eval_window, got {self.eval_stride}")
        super().__post_init__()


@torch.no_grad()
def predict_logits(model: nn.Module, pixel_values: torch.Tensor, args: SegmentationEvaluationArguments) -> torch.Tensor:
    """Logits (B, K, h, w) of images (B, 3, H, W), at the resolution of the model, or of the images for windows."""
    if args.eval_window is None:
        return model(pixel_values=pixel_values).logits.float()
    height, width = pixel_values.shape[-2:]
    window_size = min(args.eval_window, height), min(args.eval_window, width)
    corners = product(*(window_starts(*pair, args.eval_stride) for pair in zip((height, width), window_size)))
    total, times = None, pixel_values.new_zeros(height, width)
    for top, left in corners:
        rows, columns = slice(top, top + window_size[0]), slice(left, left + window_size[1])
        logits = model(pixel_values=pixel_values[..., rows, columns]).logits.float()
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], height, width)
        total[..., rows, columns] += interpolate(logits, size=window_size, mode="bilinear", align_corners=False)
        times[rows, columns] += 1
    return total / times


def predict_at_size(
    model: nn.Module, image: torch.Tensor, size: tuple[int, int], args: SegmentationEvaluationArguments
) -> torch.Tensor:
    """Logits (1, K, height, width) of one image (3, H, W), at the (height, width) of its label map."""
    return interpolate(predict_logits(model, image[None], args), size=size, mode="bilinear", align_corners=False)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Start positions of windows that cover a length: every `stride`, and the last one at the end."""
    return sorted({*range(0, length - window, stride), length - window})


def predict(model: nn.Module, batch: dict, args: SegmentationEvaluationArguments, num_labels: int) -> list[Record]:
    """The record of every image of a batch."""
    records = []
    # One image at a time: sizes differ, and with FSDP all processes must run equally many forward passes.
    for image, labels in zip(batch["pixel_values"], batch["labels"]):
        logits = predict_at_size(model, image, labels.shape, args)
        loss = cross_entropy(logits, labels[None], ignore_index=IGNORE_INDEX, reduction="sum").item()
        areas = class_areas(logits[0].argmax(dim=0), labels, num_labels, IGNORE_INDEX)
        records.append((areas, loss, int(areas[2].sum())))
    return records


def score(records: list[Record], labels: Sequence[str]) -> tuple[dict[str, float], Table]:
    """Metrics, and the IoU, accuracy and number of pixels of each class."""
    areas, losses, pixels = zip(*records)
    labelled = torch.stack(areas).sum(dim=0)[2].tolist()
    if not any(labelled):
        raise ValueError("the validation label maps must have labelled pixels, got none")
    result = summarize_areas(areas)
    columns = zip(labels, result["per_category_iou"], result["per_category_accuracy"], labelled)
    table = {
        label: {"iou": float(iou), "accuracy": float(accuracy), "pixels": int(number)}
        for label, iou, accuracy, number in columns
    }
    metrics = {
        "eval_loss": sum(losses) / sum(pixels),
        "eval_mean_iou": result["mean_iou"],
        "eval_mean_accuracy": result["mean_accuracy"],
        "eval_overall_accuracy": result["overall_accuracy"],
    }
    return metrics, table


def warn(table: Table) -> None:
    """Warn of classes without pixels."""
    pixels = [row["pixels"] for row in table.values()]
    is_alone = sum(map(bool, pixels)) == 1
    warn_of_absent("pixel", list(table), pixels, advice=ONE_CLASS if is_alone else "")
