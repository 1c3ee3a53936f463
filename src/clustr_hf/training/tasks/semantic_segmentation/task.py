# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation as a task of the training loop."""

from functools import partial
from typing import Any

import torch
from accelerate.utils import DistributedType
from matplotlib.figure import Figure
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from ....remote_code.image_processing_clustr import IGNORE_INDEX
from ....visualization import plot_segmentation
from ...baselines import refuse_with_baseline
from ...data.class_names import choose_names
from ...data.loaders import collate
from ...data.samples import EvaluationSamples, spread_evenly
from ...data.splits import load_data as load_rows
from ...distillation import Teacher
from ...gradient_accumulation import divide_batch
from ..base import Run, TaskData, TaskDefinition, TaskParts, load_run_teacher, make_samples
from ..evaluation_report import Scores
from .data import SegmentationDataArguments, label_names, segmentation_format
from .evaluation import SegmentationEvaluationArguments, predict, predict_at_size, score, warn
from .model import HEADS, SegmenterArguments, load_segmenter
from .recipe import SegmentationRecipe, class_weights
from .transforms import (
    ReadLabelMap,
    ReadPair,
    SegmentationAugmentationArguments,
    SegmentationTransform,
    evaluation_transform,
)


def check(run: Run) -> None:
    """Raise a `ValueError` for arguments that contradict each other."""
    if run.model.baseline is not None:
        refuse_with_baseline(push_to_hub=run.loop.push_to_hub, freeze_stages=run.loop.freeze_stages)
    if run.evaluation.eval_window is not None and run.accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "--eval_window does not work with FSDP: processes would run different numbers of forward passes"
        )


def load_data(run: Run) -> TaskData:
    """The label maps of each split, whose rows also have the images."""
    args, hub = run.data, run.model.download_arguments
    data = load_rows(args, hub, run.loop.seed, segmentation_format(args))
    own_labels = label_names(args, hub)
    labels = choose_names(dict.fromkeys(data, own_labels), run.known)
    class_ids = [labels.index(name) for name in own_labels]
    maps = {
        split: ReadLabelMap(rows, args.label_column_name, len(labels), args.do_reduce_labels, split, class_ids)
        for split, rows in data.items()
    }
    return TaskData(maps, labels)


def load_model(run: Run, data: TaskData) -> tuple[nn.Module, Any]:
    recipe, show_progress = run.recipe, run.accelerator.is_main_process
    # None clears the class weights of a checkpoint.
    fields = {"semantic_loss_ignore_index": IGNORE_INDEX, "semantic_class_weights": None, **recipe.config_fields()}
    if recipe.class_weight_exponent > 0 and not (run.loop.dry_run or run.loop.eval_only):
        maps, exponent = data.splits["train"], recipe.class_weight_exponent
        fields["semantic_class_weights"] = class_weights(maps, maps.num_labels, exponent, show_progress)
    model, processor = load_segmenter(run.model, data.labels, run.data.do_reduce_labels, **fields)
    check_batch(run, model)
    return model, processor


def check_batch(run: Run, model: nn.Module) -> None:
    """Raise a `ValueError` if UPerNet trains on one image per device: pooled to 1 x 1, batch norm sees one value."""
    if run.loop.eval_only or getattr(model.config, "segmentation_head", None) != "upernet":
        return
    # Batch norm is synchronised across GPUs.
    is_alone = run.accelerator.num_processes == 1 or run.accelerator.device.type == "cpu"
    if is_alone and divide_batch(run.loop, run.accelerator.num_processes)[0] < 2:
        raise ValueError("UPerNet needs at least 2 images on a device at a time: change --per_device_train_batch_size")


def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor], teacher: Teacher | None = None) -> torch.Tensor:
    """The loss of the model, combined with the distillation loss of a teacher, if there is one."""
    output = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
    if teacher is None:
        return output.loss
    return teacher.add_to_dense(output.loss, output.logits, batch["pixel_values"], batch["labels"] != IGNORE_INDEX)


def draw(
    model: nn.Module, eval_data: EvaluationSamples, args: SegmentationEvaluationArguments, labels: list[str]
) -> Figure:
    """Image, ground truth and prediction of validation images."""
    pairs, predictions = [], []
    for image, label_map in spread_evenly(eval_data, args.num_pictures):
        pixel_values = eval_data.transform((image, label_map))["pixel_values"]
        pairs.append((image, label_map))
        predictions.append(predict_at_size(model, pixel_values, label_map.shape, args)[0].argmax(dim=0))
    return plot_segmentation(*zip(*pairs), predictions, labels)


def make_parts(run: Run, data: TaskData, model: nn.Module, processor: Any) -> TaskParts:
    readers = {split: ReadPair(maps, run.data.image_column_name, processor) for split, maps in data.splits.items()}
    make_transform = partial(SegmentationTransform, processor, run.augmentation)
    samples = make_samples(run, readers, make_transform, evaluation_transform(processor))
    # The teacher sees crops at their own scale, not resized to the size of its processor, which is for whole images.
    teacher = load_run_teacher(run, data, processor, AutoModelForSemanticSegmentation, resizes=False)
    return TaskParts(
        **samples,
        collate=partial(collate, stack_images=False),
        compute_loss=partial(compute_loss, teacher=teacher),
        predict=partial(predict, args=run.evaluation, num_labels=len(data.labels)),
        scores=Scores(partial(score, labels=data.labels), warn),
        metric="eval_mean_iou",
        summary="A ClusTR model for semantic segmentation.",
        draw=partial(draw, eval_data=samples["eval_data"], args=run.evaluation, labels=data.labels),
        report={"remark": "Every image is evaluated at its own size."},
    )


SEMANTIC_SEGMENTATION = TaskDefinition(
    arguments={
        "data": SegmentationDataArguments,
        "model": SegmenterArguments,
        "augmentation": SegmentationAugmentationArguments,
        "recipe": SegmentationRecipe,
        "evaluation": SegmentationEvaluationArguments,
    },
    heads=HEADS,
    load_data=load_data,
    load_model=load_model,
    make_parts=make_parts,
    check=check,
)
