#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for semantic segmentation with Accelerate: the recipes of Table A3 of the paper.

    accelerate launch --config_file examples/accelerate/ddp.yaml \
        examples/run_semantic_segmentation_no_trainer.py --recipe examples/recipes/clustr_small_ade20k_upernet.json \
        --model_name_or_path out/clustr-small --train_dir ade20k/training --validation_dir ade20k/validation \
        --id2label_file ade20k/id2label.json --output_dir out/clustr-small-upernet --dataloader_num_workers 4

`--dry_run` says what a command would do. What the loop does, and its arguments: training_loop.py,
training_arguments.py; commands with their results: examples/README.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from torch import nn

from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.baselines import refuse_with_peer
from clustr_hf.training.card import Report, TrainingCard
from clustr_hf.training.data.class_names import choose_names
from clustr_hf.training.data.samples import EvaluationSamples, TrainingData, TrainingSamples, spread_evenly
from clustr_hf.training.loop import Task, freeze_stages, make_accelerator, train
from clustr_hf.training.report import write_picture
from clustr_hf.training.schedule import divide_batch
from clustr_hf.training.signals import run_interruptibly
from clustr_hf.training.sources import RecipeArguments, names_of_run
from clustr_hf.training.tasks.semantic_segmentation.data import (
    HEADS,
    DataArguments,
    SegmenterArguments,
    class_weights,
    label_names,
    load_data,
    load_segmenter,
)
from clustr_hf.training.tasks.semantic_segmentation.evaluation import (
    EvaluationArguments,
    Predictor,
    Scores,
    predict_at_size,
)
from clustr_hf.training.tasks.semantic_segmentation.transforms import (
    IGNORE_INDEX,
    AugmentationArguments,
    ReadLabelMap,
    ReadPair,
    TrainingTransform,
    collate,
    evaluation_transform,
)
from clustr_hf.visualization import plot_segmentation


@dataclass
class SegmentationRecipe(RecipeArguments):
    """Regularisation and balance of the loss."""

    class_weight_exponent: float = field(
        default=0.0,
        metadata={"help": "Weigh classes by (median frequency / frequency) to this power: 0 is off, 1 balances them."},
    )

    def __post_init__(self):
        if not 0 <= self.class_weight_exponent <= 1:
            raise ValueError(f"--class_weight_exponent must be in [0, 1], got {self.class_weight_exponent}")


def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss


@dataclass(kw_only=True)
class SegmentationReport(Report):
    """With pictures of image, truth and prediction."""

    eval_data: EvaluationSamples
    args: EvaluationArguments

    def draw_predictions(self, model: nn.Module, path: Path):
        """Image, truth and prediction of validation images that lie evenly in the split."""
        pairs, predictions = [], []
        for image, labels in spread_evenly(self.eval_data, self.args.num_pictures):
            pixel_values = self.eval_data.transform((image, labels))["pixel_values"]
            pairs.append((image, labels))
            predictions.append(predict_at_size(model, pixel_values, labels.shape, self.args)[0].argmax(dim=0))
        write_picture(plot_segmentation(*zip(*pairs), predictions, self.scores.labels), path)


def check_fit(
    model_args: SegmenterArguments, evaluation: EvaluationArguments, args: LoopArguments, model: nn.Module, accelerator
):
    """Raise a `ValueError` for arguments that do not go together."""
    if model_args.peer is not None:
        refuse_with_peer(push_to_hub=args.push_to_hub, freeze_stages=args.freeze_stages)
    if evaluation.eval_window is not None and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("--eval_window does not go with FSDP: processes would go forward unequally often")
    if args.eval_only:
        return
    # UPerNet's batch norm sees one value an image where it pools to 1 x 1; on several GPUs it sees all of them.
    is_alone = accelerator.num_processes == 1 or accelerator.device.type == "cpu"
    per_device_batch_size = divide_batch(args, accelerator.num_processes)[0]
    if getattr(model.config, "segmentation_head", None) == "upernet" and is_alone and per_device_batch_size < 2:
        raise ValueError("UPerNet needs at least 2 images on a device at a time: change --per_device_train_batch_size")


def config_fields(
    recipe: SegmentationRecipe, args: LoopArguments, maps: ReadLabelMap | None, show_progress: bool
) -> dict:
    """Fields of the configuration that the recipe sets; `None` clears a checkpoint's class weights."""
    fields = {"semantic_loss_ignore_index": IGNORE_INDEX, "semantic_class_weights": None, **recipe.config_fields()}
    if recipe.class_weight_exponent > 0 and not (args.dry_run or args.eval_only):
        weights = class_weights(maps, maps.num_labels, recipe.class_weight_exponent, show_progress)
        fields["semantic_class_weights"] = weights
    return fields


def make_task(
    data_args: DataArguments,
    model_args: SegmenterArguments,
    augmentation: AugmentationArguments,
    recipe: SegmentationRecipe,
    evaluation: EvaluationArguments,
    args: LoopArguments,
    accelerator,
) -> Task:
    with accelerator.main_process_first():
        data = load_data(data_args, model_args, args.seed)
    own_labels = label_names(data_args, model_args)
    labels = choose_names(dict.fromkeys(data, own_labels), names_of_run(model_args, HEADS, args))
    places = [labels.index(name) for name in own_labels]
    maps = {
        split: ReadLabelMap(rows, data_args.label_column_name, len(labels), data_args.do_reduce_labels, split, places)
        for split, rows in data.items()
    }
    fields = config_fields(recipe, args, maps.get("train"), accelerator.is_main_process)
    torch.manual_seed(args.seed)  # the weights of a new model or head
    model, processor = load_segmenter(model_args, labels, data_args.do_reduce_labels, **fields)
    check_fit(model_args, evaluation, args, model, accelerator)
    if args.freeze_stages:
        freeze_stages(model, args.freeze_stages)
    read = {split: ReadPair(split_maps, data_args.image_column_name, processor) for split, split_maps in maps.items()}
    train_data = None
    if not args.eval_only:
        transform = TrainingTransform(processor, augmentation)
        train_data = TrainingData(samples=TrainingSamples(read["train"], transform, len(maps["train"])))
    eval_data = EvaluationSamples(read["validation"], evaluation_transform(processor), len(maps["validation"]))
    scores = Scores(labels)
    report = SegmentationReport(
        scores=scores,
        card=TrainingCard(args, data_args, model_args, "A ClusTR model for semantic segmentation."),
        model_class=type(model),
        num_pictures=evaluation.num_pictures,
        has_card=model_args.peer is None,
        remark="Every image counts at its own size.",
        eval_data=eval_data,
        args=evaluation,
    )
    return Task(
        model=model,
        processor=processor,
        train_data=train_data,
        eval_data=eval_data,
        collate=collate,
        compute_loss=compute_loss,
        predict=Predictor(evaluation, len(labels), IGNORE_INDEX),
        compute_metrics=scores,
        metric="eval_mean_iou",
        write_card=report,
        write_evaluation=report.write_evaluation,
    )


def main():
    *task_args, args = parse_arguments(
        DataArguments, SegmenterArguments, AugmentationArguments, SegmentationRecipe, EvaluationArguments, LoopArguments
    )
    accelerator = make_accelerator(args)
    train(make_task(*task_args, args, accelerator), args, accelerator)


if __name__ == "__main__":
    run_interruptibly(main)
