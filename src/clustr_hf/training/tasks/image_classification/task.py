# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Image classification as a task of the training loop."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification

from ....metrics import Accuracy
from ...baselines import BaselineArguments, refuse_with_baseline
from ...data.samples import EvaluationSamples, TrainingData, TrainingSamples
from ...gradient_accumulation import divide_batch
from ..base import Run, TaskData, TaskDefinition, TaskParts, load_run_teacher
from ..evaluation_report import Scores, Table, warn_of_empty_rows
from .data import HEADS, ClassificationDataArguments, label_names, load_labelled_images, load_stream
from .model import load_classifier
from .recipe import ClassificationRecipe, add_adapters, make_loss, merge_adapters
from .transforms import ReadRow, evaluation_transform, training_transform


def check(run: Run) -> None:
    """Raise a `ValueError` for arguments that contradict each other."""
    if not run.loop.eval_only:
        run.recipe.check_batch(divide_batch(run.loop, run.accelerator.num_processes)[0])
    if run.model.baseline is not None:
        refuse_with_baseline(
            push_to_hub=run.loop.push_to_hub, freeze_stages=run.loop.freeze_stages, lora_rank=run.recipe.lora_rank
        )


def load_data(run: Run) -> TaskData:
    args, num_samples = run.data, None
    if run.loop.dry_run and args.dataset_name is not None and not Path(args.dataset_name).exists():
        run.recipe.streaming, args.max_eval_samples = True, 1  # a dry run must not download a large data set
    if run.recipe.streaming:
        train, num_samples, validation = load_stream(args, run.model, run.known)
        splits = {"train": train, "validation": validation}
    else:
        splits = load_labelled_images(args, run.model, run.loop.seed, run.known)
    return TaskData(splits, label_names(splits["validation"], args.label_column_name), num_samples)


def load_model(run: Run, data: TaskData) -> tuple[nn.Module, Any]:
    return load_classifier(run.model, data.labels, **run.recipe.config_fields())


def make_train_data(run: Run, data: TaskData, processor: Any) -> TrainingData | None:
    """The training images with the recipe's augmentation, with random access or as a stream; None to evaluate only."""
    if run.loop.eval_only:
        return None
    recipe, rows = run.recipe, data.splits["train"]
    augmentation = recipe.min_crop_scale, recipe.rand_augment, recipe.random_erasing, recipe.train_image_size
    transform = training_transform(processor, *augmentation)
    columns = run.data.image_column_name, run.data.label_column_name
    if not isinstance(rows, IterableDataset):
        read = ReadRow(processor, columns, len(data.labels), "training", rows)
        samples = TrainingSamples(read, transform, len(rows))
        return TrainingData(samples=samples, repeats=recipe.repeated_augmentation)
    return TrainingData(
        stream=split_dataset_by_node(rows, run.accelerator.process_index, run.accelerator.num_processes),
        read=ReadRow(processor, columns, len(data.labels), "training"),
        transform=transform,
        num_samples=data.num_samples,
        repeats=recipe.repeated_augmentation,
    )


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[tuple[int, int, float]]:
    """Predicted class, true class and cross-entropy of every image."""
    logits = model(pixel_values=batch["pixel_values"]).logits.float()
    losses = cross_entropy(logits, batch["labels"], reduction="none")
    return list(zip(logits.argmax(-1).tolist(), batch["labels"].tolist(), losses.tolist()))


def score(records: list[tuple[int, int, float]], labels: list[str]) -> tuple[dict[str, float], Table]:
    """Metrics, and the accuracy and number of images of each class."""
    predictions, references, losses = map(np.array, zip(*records))
    right = np.bincount(references[predictions == references], minlength=len(labels))
    images = np.bincount(references, minlength=len(labels))
    table = {
        label: {"accuracy": part / number if number else float("nan"), "images": number}
        for label, part, number in zip(labels, right.tolist(), images.tolist())
    }
    accuracy = Accuracy().compute(predictions=predictions, references=references)["accuracy"]
    return {"eval_loss": float(losses.mean()), "eval_accuracy": accuracy}, table


def make_parts(run: Run, data: TaskData, model: nn.Module, processor: Any) -> TaskParts:
    rows, columns = data.splits["validation"], (run.data.image_column_name, run.data.label_column_name)
    read = ReadRow(processor, columns, len(data.labels), "validation", rows)
    teacher = load_run_teacher(run, data, processor, AutoModelForImageClassification, resizes=True)
    return TaskParts(
        train_data=make_train_data(run, data, processor),
        eval_data=EvaluationSamples(read, evaluation_transform(processor), len(rows)),
        compute_loss=make_loss(run.recipe, len(data.labels), teacher),
        predict=predict,
        scores=Scores(partial(score, labels=data.labels), partial(warn_of_empty_rows, column="images", unit="image")),
        metric="eval_accuracy",
        summary="A ClusTR image classifier.",
        report={"shows_table": False},  # the table may have a thousand rows
        to_train=partial(add_adapters, rank=run.recipe.lora_rank),
        to_save=merge_adapters,
    )


IMAGE_CLASSIFICATION = TaskDefinition(
    arguments={"data": ClassificationDataArguments, "model": BaselineArguments, "recipe": ClassificationRecipe},
    heads=HEADS,
    load_data=load_data,
    load_model=load_model,
    make_parts=make_parts,
    check=check,
)
