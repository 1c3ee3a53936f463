# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Predictions of segmentation models, whole image or window by window, and what they are worth."""

from dataclasses import dataclass, field
from itertools import product

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from ....metrics import class_areas, summarize_areas
from ...report import warn_of_absent


# What to look at where all labelled pixels are of one class.
ONE_CLASS = ". All pixels that count are of one class: a label of 255 does not count, whatever it was meant for"


@dataclass
class EvaluationArguments:
    """How images are evaluated: whole, or in overlapping windows."""

    eval_window: int | None = field(
        default=None, metadata={"help": "Side of windows that slide over an image, in pixels; default: whole images."}
    )
    eval_stride: int | None = field(
        default=None, metadata={"help": "Step of the windows; default: two thirds of a window."}
    )
    num_pictures: int = field(default=4, metadata={"help": "Validation images in predictions.png; 0 draws none."})

    def __post_init__(self):
        if self.eval_window is not None and self.eval_window < 1:
            raise ValueError(f"--eval_window must be positive, got {self.eval_window}")
        if self.eval_stride is None and self.eval_window is not None:
            self.eval_stride = max(1, self.eval_window * 2 // 3)
        if self.eval_stride is not None and not 1 <= self.eval_stride <= (self.eval_window or 0):
            raise ValueError(f"--eval_stride must be from 1 to --eval_window, got {self.eval_stride}")
        if self.num_pictures < 0:
            raise ValueError(f"--num_pictures must be 0 or more, got {self.num_pictures}")


@torch.no_grad()
def predict_logits(model: nn.Module, pixel_values: torch.Tensor, args: EvaluationArguments) -> torch.Tensor:
    """Logits (B, K, h, w) of images (B, 3, H, W), at the model's resolution, or the image's if windows slide."""
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
    model: nn.Module, image: torch.Tensor, size: tuple[int, int], args: EvaluationArguments
) -> torch.Tensor:
    """Logits (1, K, height, width) of one image (3, H, W), at the (height, width) of its label map."""
    return interpolate(predict_logits(model, image[None], args), size=size, mode="bilinear", align_corners=False)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a length: every `stride`, and the last one where it just fits."""
    return sorted({*range(0, length - window, stride), length - window})


class Predictor:
    """The loop's `predict`: for each image the areas of its classes, the sum of its cross-entropy, its pixels."""

    def __init__(self, args: EvaluationArguments, num_labels: int, ignore_index: int):
        self.args, self.num_labels, self.ignore_index = args, num_labels, ignore_index

    def __call__(self, model: nn.Module, batch: dict) -> list[tuple[torch.Tensor, float, int]]:
        records = []
        # One by one: images differ in size, and with FSDP all processes must go forward equally often.
        for image, labels in zip(batch["pixel_values"], batch["labels"]):
            logits = predict_at_size(model, image, labels.shape, self.args)
            loss = cross_entropy(logits, labels[None], ignore_index=self.ignore_index, reduction="sum").item()
            areas = class_areas(logits[0].argmax(dim=0), labels, self.num_labels, self.ignore_index)
            records.append((areas, loss, int(areas[2].sum())))
        return records


class Scores:
    """The loop's `compute_metrics`; `table` is that of the last evaluation, class by class."""

    def __init__(self, labels: list[str]):
        self.labels, self.table = labels, None

    def __call__(self, records: list[tuple[torch.Tensor, float, int]]) -> dict[str, float]:
        areas, losses, pixels = zip(*records)
        labelled = torch.stack(areas).sum(dim=0)[2].tolist()
        if not any(labelled):
            raise ValueError("the validation label maps must have labelled pixels, got none")
        if self.table is None:
            is_alone = sum(map(bool, labelled)) == 1
            warn_of_absent("pixel", self.labels, labelled, advice=ONE_CLASS if is_alone else "")
        result = summarize_areas(areas)
        self.table = {
            label: {"iou": float(iou), "accuracy": float(accuracy), "pixels": int(number)}
            for label, iou, accuracy, number in zip(
                self.labels,
                result["per_category_iou"],
                result["per_category_accuracy"],
                labelled,
            )
        }
        return {
            "eval_loss": sum(losses) / sum(pixels),
            "eval_mean_iou": result["mean_iou"],
            "eval_mean_accuracy": result["mean_accuracy"],
            "eval_overall_accuracy": result["overall_accuracy"],
        }
