# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pose estimation as a task of the training loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from .... import ClusTRForPoseEstimation
from ....visualization import plot_keypoints
from ...data.loaders import collate
from ...data.samples import EvaluationSamples, spread_evenly
from ...data.splits import load_data as load_rows
from ...models import ModelArguments, RecipeArguments
from ..base import Run, TaskData, TaskDefinition, TaskParts, make_samples
from ..evaluation_report import Scores
from .data import PoseDataArguments, pose_format
from .evaluation import PoseEvaluationArguments, PoseScores, group_by_image, predict
from .model import HEADS, load_pose_estimator
from .person_boxes import annotated_boxes, detected_boxes
from .transforms import PoseAugmentationArguments, PoseTransform, ReadPerson, Sample, prepare_for_evaluation


def load_data(run: Run) -> TaskData:
    data = load_rows(run.data, run.model.download_arguments, run.loop.seed, pose_format(run.data))
    return TaskData(data, list(run.data.convention.names))


def load_model(run: Run, data: TaskData) -> tuple[ClusTRForPoseEstimation, Any]:
    return load_pose_estimator(run.model, run.data.convention, run.known, **run.recipe.config_fields())


def make_readers(run: Run, data: TaskData, processor: Any) -> dict[str, ReadPerson]:
    readers, convention = {}, run.data.convention
    for split, rows in data.splits.items():
        boxes_file = run.data.validation_boxes_file if split == "validation" else None
        boxes = annotated_boxes(rows, convention) if boxes_file is None else detected_boxes(rows, boxes_file)
        if not boxes:
            raise ValueError(f"the {split} images must have persons to look at, got none")
        readers[split] = ReadPerson(rows, boxes, processor, convention, split)
    return readers


def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{name: batch[name] for name in ("pixel_values", "labels", "label_weights")}).loss


def draw(
    model: nn.Module,
    eval_data: EvaluationSamples,
    predict: Callable[[nn.Module, dict], list],
    scores: PoseScores,
    args: PoseEvaluationArguments,
) -> Figure:
    """Ground truth and predictions of all persons in validation images, without duplicates."""
    read, prepare = eval_data.read, eval_data.transform
    rows = sorted({box.row for box in read.boxes})

    def read_persons(position: int) -> list[Sample]:
        return [read(index) for index, box in enumerate(read.boxes) if box.row == rows[position]]

    convention, images, references, predictions = scores.convention, [], [], []
    for samples in spread_evenly(EvaluationSamples(read_persons, prepare, len(rows)), args.num_pictures):
        row = samples[0].person_box.row
        records = predict(model, collate([prepare(sample) for sample in samples]))
        found = group_by_image(records, row + 1, convention.sigmas)[row]
        images.append(samples[0].image)
        references.append(torch.from_numpy(scores.references[row]["keypoints"]))
        predictions.append(torch.from_numpy(found["keypoints"][found["scores"] > args.picture_threshold]))
    return plot_keypoints(images, references, predictions, convention.names, convention.edges, args.picture_threshold)


def make_parts(run: Run, data: TaskData, model: nn.Module, processor: Any) -> TaskParts:
    convention, evaluation = run.data.convention, run.evaluation
    readers = make_readers(run, data, processor)
    make_transform = partial(PoseTransform, processor, convention, run.augmentation)
    samples = make_samples(run, readers, make_transform, partial(prepare_for_evaluation, processor=processor))
    scores = PoseScores(data.splits["validation"], convention)
    flip_pairs = convention.flip_pairs if evaluation.flip_test else None
    predict_batch = partial(predict, processor=processor, flip_pairs=flip_pairs)
    return TaskParts(
        **samples,
        compute_loss=compute_loss,
        predict=predict_batch,
        scores=Scores(scores, scores.warn),
        metric=scores.metric,
        summary=f"A ClusTR model for pose estimation: {convention.num_keypoints} keypoints of each person.",
        draw=partial(draw, eval_data=samples["eval_data"], predict=predict_batch, scores=scores, args=evaluation),
        report={"row_name": "part"},
    )


POSE_ESTIMATION = TaskDefinition(
    arguments={
        "data": PoseDataArguments,
        "model": ModelArguments,
        "augmentation": PoseAugmentationArguments,
        "recipe": RecipeArguments,
        "evaluation": PoseEvaluationArguments,
    },
    heads=HEADS,
    load_data=load_data,
    load_model=load_model,
    make_parts=make_parts,
)
