# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What the scripts for object detection and for instance segmentation share: all but the model and its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....remote_code.image_processing_clustr_detection import decode_segmentation
from ....visualization import plot_detections
from ...arguments import LoopArguments, parse_arguments
from ...card import Report, TrainingCard
from ...data.samples import EvaluationSamples, TrainingData, TrainingSamples, spread_evenly
from ...loop import Task, freeze_stages, make_accelerator, train
from ...report import write_picture
from ...sources import ModelArguments, RecipeArguments, names_of_run
from .data import DataArguments, ParseObjects, head_of, load_data, load_detector
from .evaluation import EvaluationArguments, Predictor, Scores, detect
from .transforms import (
    AugmentationArguments,
    EvaluationTransform,
    ReadSample,
    TrainingTransform,
    collate,
)


@dataclass(frozen=True)
class DetectionTask:
    """
    What the two tasks differ in.

    Args:
        model_class, auto_class (`type`): To make a new model by, and to load a checkpoint by.
        kinds (`tuple[str, ...]`): What is evaluated, "box" and perhaps "mask"; the AP of the last one chooses weights.
        summary (`str`): What a trained model is, for its card.
    """

    model_class: type
    auto_class: type
    kinds: tuple[str, ...]
    summary: str

    @property
    def with_masks(self) -> bool:
        return "mask" in self.kinds


def compute_loss(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(**{name: batch[name] for name in ("pixel_values", "pixel_mask", "labels")}).loss


@dataclass(kw_only=True)
class DetectionReport(Report):
    """With pictures of truth and prediction."""

    eval_data: EvaluationSamples
    processor: Any
    args: EvaluationArguments

    def draw_predictions(self, model: nn.Module, path: Path):
        """Truth and prediction of validation images that lie evenly in the split."""
        images, references, predictions = [], [], []
        for sample in spread_evenly(self.eval_data, self.args.num_pictures):
            pixel_values = self.eval_data.transform(sample)["pixel_values"]
            size = sample.image.height, sample.image.width
            limits = self.args.picture_threshold, self.args.max_detections
            images.append(sample.image)
            references.append(_to_draw(vars(sample), size))
            predictions.append(_to_draw(detect(model, self.processor, pixel_values, size, *limits), size))
        write_picture(plot_detections(images, references, predictions, self.scores.labels), path)


def _to_draw(objects: dict[str, Any], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What [`draw_detections`] takes of a sample or of detections, with tensors for arrays and masks."""
    drawn = {
        name: torch.as_tensor(objects[name], device="cpu") for name in ("boxes", "labels", "scores") if name in objects
    }
    drawn["labels"] = drawn["labels"].long()  # also of an empty list
    masks = objects.get("masks")
    if isinstance(masks, list):
        masks = [decode_segmentation(mask, size) for mask in masks]
        masks = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool, device="cpu")
    return {**drawn, "boxes": drawn["boxes"].reshape(-1, 4), **({} if masks is None else {"masks": masks})}


def make_task(
    task: DetectionTask,
    data_args: DataArguments,
    model_args: ModelArguments,
    augmentation: AugmentationArguments,
    recipe: RecipeArguments,
    evaluation: EvaluationArguments,
    args: LoopArguments,
    accelerator,
) -> Task:
    known = names_of_run(model_args, head_of(task.model_class), args)
    with accelerator.main_process_first():
        data, labels = load_data(data_args, model_args, args.seed, task.with_masks, known)
    torch.manual_seed(args.seed)  # the weights of a new model or head
    model, processor = load_detector(model_args, labels, task.model_class, task.auto_class, **recipe.config_fields())
    evaluation.check_model(model.config, task.with_masks)
    if args.freeze_stages:
        freeze_stages(model, args.freeze_stages)
    parse = ParseObjects(data_args, labels, task.with_masks)
    read = {
        split: ReadSample(rows, parse, processor, len(labels), task.with_masks, split) for split, rows in data.items()
    }
    train_data = None
    if not args.eval_only:
        transform = TrainingTransform(processor, augmentation)
        train_data = TrainingData(samples=TrainingSamples(read["train"], transform, len(data["train"])))
    eval_data = EvaluationSamples(read["validation"], EvaluationTransform(processor), len(data["validation"]))
    scores = Scores(labels, task.kinds, evaluation)
    report = DetectionReport(
        scores=scores,
        card=TrainingCard(args, data_args, model_args, task.summary),
        model_class=task.model_class,
        num_pictures=evaluation.num_pictures,
        eval_data=eval_data,
        processor=processor,
        args=evaluation,
    )
    return Task(
        model=model,
        processor=processor,
        train_data=train_data,
        eval_data=eval_data,
        collate=collate,
        compute_loss=compute_loss,
        predict=Predictor(processor, evaluation),
        compute_metrics=scores,
        metric=f"eval_{task.kinds[-1]}_ap",
        write_card=report,
        write_evaluation=report.write_evaluation,
    )


def run(task: DetectionTask):
    """Train as the command line says."""
    *task_args, args = parse_arguments(
        DataArguments, ModelArguments, AugmentationArguments, RecipeArguments, EvaluationArguments, LoopArguments
    )
    accelerator = make_accelerator(args)
    train(make_task(task, *task_args, args, accelerator), args, accelerator)
