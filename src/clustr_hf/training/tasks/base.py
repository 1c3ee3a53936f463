# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Shared by all tasks of the package: from the command line to a [`Task`] of the loop.

A task of the package is a [`TaskDefinition`]: its arguments, and three functions that load its data, load its model,
and combine both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel

from ..arguments import LoopArguments, parse_arguments
from ..augmentation import check_normalization
from ..data.class_names import KnownNames
from ..data.loaders import collate
from ..data.samples import EvaluationSamples, TrainingData, TrainingSamples
from ..distillation import Teacher, load_teacher
from ..distributed import make_accelerator
from ..known_names import names_of_run
from ..loop import train
from ..models import ModelArguments, RecipeArguments, is_clustr, require_clustr, set_memory_options
from ..optimizers import freeze_stages
from ..task import Task
from ..training_card import TrainingCard
from .evaluation_report import Report, Scores


@dataclass
class Run:
    """
    The arguments of a run, by subject.

    Args:
        data: Data set; a subclass of [`FolderArguments`].
        model ([`ModelArguments`]): Model to start from.
        recipe ([`RecipeArguments`]): Regularisation and loss.
        loop ([`LoopArguments`]): Training loop.
        accelerator (`Accelerator`): Devices and processes.
        augmentation, evaluation (*optional*): Training transform; metrics and pictures.
        known ([`KnownNames`], *optional*): Classes of the weights that the run starts from; set by [`make_task`].
    """

    data: Any
    model: ModelArguments
    recipe: RecipeArguments
    loop: LoopArguments
    accelerator: Accelerator
    augmentation: Any = None
    evaluation: Any = None
    known: KnownNames | None = None


@dataclass
class TaskData:
    """
    A data set of a task.

    Args:
        splits (`Mapping[str, Any]`): Rows of `train`, if there is such a split, and of `validation`.
        labels (`list[str]`): Class names, in the order of their ids.
        num_samples (`int`, *optional*): Length of a training split that is a stream.
    """

    splits: Mapping[str, Any]
    labels: list[str]
    num_samples: int | None = None


@dataclass(kw_only=True)
class TaskParts:
    """
    The parts of a [`Task`] that depend on the task of the package.

    Args:
        train_data ([`TrainingData`], *optional*), eval_data ([`EvaluationSamples`]): Transformed samples.
        collate, compute_loss, predict: As in [`Task`].
        scores ([`Scores`]): Metrics and their table.
        metric (`str`): Metric that selects the best weights.
        summary (`str`): First sentence of the card.
        draw (`Callable[[nn.Module], Figure]`, *optional*): Draws predictions of a model on validation images.
        report (`Mapping[str, Any]`): Further settings of the [`Report`].
        to_train, to_save (`Callable[[nn.Module], nn.Module]`): Loaded model -> trained model -> model to save.
    """

    train_data: TrainingData | None
    eval_data: EvaluationSamples
    collate: Callable[[list], dict] = collate
    compute_loss: Callable[[nn.Module, dict], torch.Tensor]
    predict: Callable[[nn.Module, dict], list]
    scores: Scores
    metric: str
    summary: str
    draw: Callable[[nn.Module], Figure] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    to_train: Callable[[nn.Module], nn.Module] = lambda model: model
    to_save: Callable[[nn.Module], nn.Module] = lambda model: model


@dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """
    A task of the package.

    Args:
        arguments (`Mapping[str, type]`): Dataclasses of the command line, by the field of [`Run`] that holds them.
        heads (`tuple[str, ...]`): Parts of the class names of models with a head for the task.
        load_data (`Callable[[Run], TaskData]`): Loads the data set; called by the main process first.
        load_model (`Callable[[Run, TaskData], tuple[PreTrainedModel, Any]]`): Loads a model and its image processor.
        make_parts (`Callable[[Run, TaskData, PreTrainedModel, Any], TaskParts]`): Combines data, model and
            processor.
        check (`Callable[[Run], None]`): Raises a `ValueError` for arguments that contradict each other, before anything
            is loaded.
    """

    arguments: Mapping[str, type]
    heads: tuple[str, ...]
    load_data: Callable[[Run], TaskData]
    load_model: Callable[[Run, TaskData], tuple[PreTrainedModel, Any]]
    make_parts: Callable[[Run, TaskData, PreTrainedModel, Any], TaskParts]
    check: Callable[[Run], None] = lambda run: None


def run_task(definition: TaskDefinition) -> None:
    """Train or evaluate with the arguments of the command line."""
    *parsed, loop = parse_arguments(*definition.arguments.values(), LoopArguments)
    accelerator = make_accelerator(loop)
    run = Run(**dict(zip(definition.arguments, parsed)), loop=loop, accelerator=accelerator)
    train(make_task(definition, run), loop, accelerator)


def make_task(definition: TaskDefinition, run: Run) -> Task:
    """The [`Task`] of a run: loads data and model, and makes the parts that all tasks have in common."""
    loop = run.loop
    definition.check(run)
    run.known = names_of_run(loop, run.model, definition.heads)
    with run.accelerator.main_process_first():
        data = definition.load_data(run)
    torch.manual_seed(loop.seed)  # random weights of a new model or head
    model, processor = definition.load_model(run, data)
    if not loop.eval_only:
        check_normalization(processor)
    if loop.push_to_hub:
        require_clustr(model, "push_to_hub")
    if loop.freeze_stages:
        freeze_stages(model, loop.freeze_stages)
    parts = definition.make_parts(run, data, model, processor)
    report = Report(
        scores=parts.scores,
        card=TrainingCard(loop, run.data, run.model, parts.summary),
        model_class=type(model),
        draw=parts.draw if getattr(run.evaluation, "num_pictures", 0) > 0 else None,
        has_card=is_clustr(model),
        **parts.report,
    )
    return Task(
        model=parts.to_train(model),
        processor=processor,
        train_data=parts.train_data,
        eval_data=parts.eval_data,
        collate=parts.collate,
        compute_loss=parts.compute_loss,
        predict=parts.predict,
        compute_metrics=parts.scores,
        metric=parts.metric,
        to_save=parts.to_save,
        write_card=report.write_card,
        write_evaluation=report.write_evaluation,
    )


def load_run_teacher(run: Run, data: TaskData, processor: Any, auto_class: type, resizes: bool) -> Teacher | None:
    """
    The teacher of a training; None without one, and for evaluations.

    Args:
        run, data, processor: The run, whose recipe has [`DistillationArguments`], and the student's image processor.
        auto_class, resizes: As in [`load_teacher`].
    """
    if run.loop.eval_only:
        return None
    with run.accelerator.main_process_first():
        teacher = load_teacher(
            run.recipe, run.model, auto_class, data.labels, processor, resizes, run.accelerator.autocast
        )
    if teacher is not None:
        set_memory_options(teacher.model, gradient_checkpointing=False, channels_last=run.loop.channels_last)
    return teacher


def make_samples(
    run: Run,
    readers: Mapping[str, Any],
    make_training_transform: Callable[[], Callable[[Any], dict]],
    evaluation_transform: Callable[[Any], dict],
) -> dict[str, TrainingData | EvaluationSamples | None]:
    """
    `train_data` and `eval_data` of data sets with random access.

    Args:
        run ([`Run`]): Arguments of the run; `eval_only` leaves out the training data.
        readers (`Mapping[str, Any]`): For each split, a function from an index to a decoded sample, with a length.
        make_training_transform (`Callable`): Makes the training transform; not called with `--eval_only`.
        evaluation_transform (`Callable`): Decoded sample -> input of the collate function.
    """
    train_data = None
    if not run.loop.eval_only:
        read = readers["train"]
        train_data = TrainingData(samples=TrainingSamples(read, make_training_transform(), len(read)))
    read = readers["validation"]
    return {"train_data": train_data, "eval_data": EvaluationSamples(read, evaluation_transform, len(read))}
