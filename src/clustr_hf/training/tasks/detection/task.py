# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Object detection and instance segmentation as tasks of the training loop."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    PreTrainedModel,
)

from .... import ClusTRForInstanceSegmentation, ClusTRForObjectDetection
from ....remote_code.image_processing_clustr_detection import decode_segmentation
from ....visualization import plot_detections
from ...data.samples import EvaluationSamples, spread_evenly
from ...data.splits import load_data as load_rows
from ...models import ModelArguments, RecipeArguments, head_name
from ..base import Run, TaskData, TaskDefinition, TaskParts, make_samples
from ..evaluation_report import Scores, warn_of_empty_rows
from .data import DetectionDataArguments, ParseObjects, detection_format
from .evaluation import DetectionEvaluationArguments, detect, predict, score
from .model import load_detector
from .transforms import (
    DetectionAugmentationArguments,
    DetectionTransform,
    ReadSample,
    collate_objects,
    prepare_for_evaluation,
)


@dataclass(frozen=True)
class Detector:
    """
    The differences between the two tasks.

    Args:
        model_class, auto_class (`type`): Class of a new model, and the auto class that loads a checkpoint.
        kinds (`tuple[str, ...]`): Metrics, "box" and optionally "mask"; the AP of the last one selects the weights.
        summary (`str`): First sentence of the card.
    """

    model_class: type[PreTrainedModel]
    auto_class: type
    kinds: tuple[str, ...]
    summary: str

    @property
    def with_masks(self) -> bool:
        return "mask" in self.kinds


def load_data(detector: Detector, run: Run) -> TaskData:
    data_format = detection_format(run.data, detector.with_masks)
    data = load_rows(run.data, run.model.download_arguments, run.loop.seed, data_format, run.known)
    return TaskData(data, data_format.labels.chosen)


def load_model(detector: Detector, run: Run, data: TaskData) -> tuple[PreTrainedModel, Any]:
    classes = detector.model_class, detector.auto_class
    model, processor = load_detector(run.model, data.labels, *classes, **run.recipe.config_fields())
    run.evaluation.check_model(model.config, detector.with_masks)
    return model, processor


def compute_loss(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(**{name: batch[name] for name in ("pixel_values", "pixel_mask", "labels")}).loss


def draw(
    model: nn.Module,
    eval_data: EvaluationSamples,
    processor: Any,
    args: DetectionEvaluationArguments,
    labels: list[str],
) -> Figure:
    """Ground truth and predictions of validation images."""
    images, references, predictions = [], [], []
    for sample in spread_evenly(eval_data, args.num_pictures):
        pixel_values = eval_data.transform(sample)["pixel_values"]
        size = sample.image.height, sample.image.width
        found = detect(model, processor, pixel_values, size, args.picture_threshold, args.max_detections)
        images.append(sample.image)
        references.append(_to_tensors(vars(sample), size))
        predictions.append(_to_tensors(found, size))
    return plot_detections(images, references, predictions, labels)


def _to_tensors(objects: dict[str, Any], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Arguments of [`draw_detections`], with tensors for arrays and masks."""
    drawn = {
        name: torch.as_tensor(objects[name], device="cpu") for name in ("boxes", "labels", "scores") if name in objects
    }
    drawn["labels"] = drawn["labels"].long()  # an empty list becomes a float tensor
    masks = objects.get("masks")
    if isinstance(masks, list):
        masks = [decode_segmentation(mask, size) for mask in masks]
        masks = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool, device="cpu")
    return {**drawn, "boxes": drawn["boxes"].reshape(-1, 4), **({} if masks is None else {"masks": masks})}


def make_parts(detector: Detector, run: Run, data: TaskData, model: nn.Module, processor: Any) -> TaskParts:
    labels, evaluation, with_masks = data.labels, run.evaluation, detector.with_masks
    parse = ParseObjects(run.data, labels, with_masks)
    readers = {
        split: ReadSample(rows, parse, processor, len(labels), with_masks, split) for split, rows in data.splits.items()
    }
    make_transform = partial(DetectionTransform, processor, run.augmentation)
    samples = make_samples(run, readers, make_transform, partial(prepare_for_evaluation, processor=processor))
    return TaskParts(
        **samples,
        collate=collate_objects,
        compute_loss=compute_loss,
        predict=partial(predict, processor=processor, args=evaluation),
        scores=Scores(
            partial(score, labels=labels, kinds=detector.kinds, args=evaluation),
            partial(warn_of_empty_rows, column="objects", unit="object"),
        ),
        metric=f"eval_{detector.kinds[-1]}_ap",
        summary=detector.summary,
        draw=partial(draw, eval_data=samples["eval_data"], processor=processor, args=evaluation, labels=labels),
    )


def define(detector: Detector) -> TaskDefinition:
    return TaskDefinition(
        arguments={
            "data": DetectionDataArguments,
            "model": ModelArguments,
            "augmentation": DetectionAugmentationArguments,
            "recipe": RecipeArguments,
            "evaluation": DetectionEvaluationArguments,
        },
        heads=(head_name(detector.model_class),),
        load_data=partial(load_data, detector),
        load_model=partial(load_model, detector),
        make_parts=partial(make_parts, detector),
    )


OBJECT_DETECTION = define(
    Detector(
        model_class=ClusTRForObjectDetection,
        auto_class=AutoModelForObjectDetection,
        kinds=("box",),
        summary="A ClusTR model for object detection, RetinaNet.",
    )
)
INSTANCE_SEGMENTATION = define(
    Detector(
        model_class=ClusTRForInstanceSegmentation,
        auto_class=AutoModelForInstanceSegmentation,
        kinds=("box", "mask"),
        summary="A ClusTR model for instance segmentation, Mask R-CNN.",
    )
)
