#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for whole-body pose estimation with Accelerate: the recipe of section 4.4 of the paper.

    accelerate launch --config_file examples/accelerate/ddp.yaml \
        examples/run_pose_estimation_no_trainer.py --recipe examples/recipes/clustr_small_coco_wholebody.json \
        --model_name_or_path out/clustr-small --output_dir out/clustr-small-pose --dataloader_num_workers 8 \
        --train_dir coco/train2017 --train_annotation_file coco/annotations/coco_wholebody_train_v1.0.json \
        --validation_dir coco/val2017 --validation_annotation_file coco/annotations/coco_wholebody_val_v1.0.json \
        --validation_boxes_file coco/COCO_val2017_detections_AP_H_56_person.json

`--dry_run` says what a command would do. What the loop does, and its arguments: training_loop.py,
training_arguments.py; commands with their results: examples/README.md.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clustr_hf import ClusTRForPoseEstimation
from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.card import Report, TrainingCard
from clustr_hf.training.data.samples import EvaluationSamples, TrainingData, TrainingSamples, spread_evenly
from clustr_hf.training.loop import Task, freeze_stages, make_accelerator, train
from clustr_hf.training.report import write_picture
from clustr_hf.training.signals import run_interruptibly
from clustr_hf.training.sources import ModelArguments, RecipeArguments, names_of_run
from clustr_hf.training.tasks.pose_estimation.data import (
    HEADS,
    DataArguments,
    annotated_places,
    detected_places,
    load_data,
    load_pose_estimator,
)
from clustr_hf.training.tasks.pose_estimation.evaluation import EvaluationArguments, Predictor, Scores, group_by_image
from clustr_hf.training.tasks.pose_estimation.transforms import (
    AugmentationArguments,
    EvaluationTransform,
    ReadPerson,
    Sample,
    TrainingTransform,
    collate,
)
from clustr_hf.visualization import plot_keypoints


def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{name: batch[name] for name in ("pixel_values", "labels", "label_weights")}).loss


@dataclass(kw_only=True)
class PoseReport(Report):
    """With pictures of true and predicted persons."""

    eval_data: EvaluationSamples
    predict: Predictor
    args: EvaluationArguments

    def draw_predictions(self, model: nn.Module, path: Path):
        """True and predicted persons of validation images that lie evenly in the split; those found twice once."""
        rows = sorted({place.row for place in self.eval_data.read.places})
        convention, threshold = self.scores.convention, self.args.picture_threshold
        images, references, predictions = [], [], []
        whole_images = EvaluationSamples(
            lambda place: self._read_persons(rows[place]), self.eval_data.transform, len(rows)
        )
        for samples in spread_evenly(whole_images, self.args.num_pictures):
            row = samples[0].place.row
            records = self.predict(model, collate([self.eval_data.transform(sample) for sample in samples]))
            found = group_by_image(records, row + 1, convention.sigmas)[row]
            images.append(samples[0].image)
            references.append(torch.from_numpy(self.scores.references[row]["keypoints"]))
            predictions.append(torch.from_numpy(found["keypoints"][found["scores"] > threshold]))
        drawn = (images, references, predictions, convention.names, convention.edges, threshold)
        write_picture(plot_keypoints(*drawn), path)

    def _read_persons(self, row: int) -> list[Sample]:
        """The persons of a validation image."""
        read = self.eval_data.read
        return [read(index) for index, place in enumerate(read.places) if place.row == row]


def make_task(
    data_args: DataArguments,
    model_args: ModelArguments,
    augmentation: AugmentationArguments,
    recipe: RecipeArguments,
    evaluation: EvaluationArguments,
    args: LoopArguments,
    accelerator,
) -> Task:
    convention = data_args.convention
    with accelerator.main_process_first():
        data = load_data(data_args, args.seed)
    torch.manual_seed(args.seed)  # the weights of a new model or head
    known = names_of_run(model_args, HEADS, args)
    model, processor = load_pose_estimator(model_args, convention, known, **recipe.config_fields())
    if args.freeze_stages:
        freeze_stages(model, args.freeze_stages)
    read = {}
    for split, rows in data.items():
        boxes_file = data_args.validation_boxes_file if split == "validation" else None
        places = annotated_places(rows, convention) if boxes_file is None else detected_places(rows, boxes_file)
        if not places:
            raise ValueError(f"the {split} images must have persons to look at, got none")
        read[split] = ReadPerson(rows, places, processor, convention, split)
    train_data = None
    if not args.eval_only:
        transform = TrainingTransform(processor, convention, augmentation)
        train_data = TrainingData(samples=TrainingSamples(read["train"], transform, len(read["train"])))
    eval_data = EvaluationSamples(read["validation"], EvaluationTransform(processor), len(read["validation"]))
    scores, predict = Scores(data["validation"], convention), Predictor(processor, convention, evaluation)
    summary = f"A ClusTR model for pose estimation: {convention.num_keypoints} keypoints of each person."
    report = PoseReport(
        scores=scores,
        card=TrainingCard(args, data_args, model_args, summary),
        model_class=ClusTRForPoseEstimation,
        num_pictures=evaluation.num_pictures,
        kind="part",
        eval_data=eval_data,
        predict=predict,
        args=evaluation,
    )
    return Task(
        model=model,
        processor=processor,
        train_data=train_data,
        eval_data=eval_data,
        collate=collate,
        compute_loss=compute_loss,
        predict=predict,
        compute_metrics=scores,
        metric=scores.metric,
        write_card=report,
        write_evaluation=report.write_evaluation,
    )


def main():
    *task_args, args = parse_arguments(
        DataArguments, ModelArguments, AugmentationArguments, RecipeArguments, EvaluationArguments, LoopArguments
    )
    accelerator = make_accelerator(args)
    train(make_task(*task_args, args, accelerator), args, accelerator)


if __name__ == "__main__":
    run_interruptibly(main)
