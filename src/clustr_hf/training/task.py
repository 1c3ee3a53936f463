# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The input of the training and evaluation loops: a model, data, a loss and metrics, as one [`Task`]."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from .data.samples import EvaluationSamples, TrainingData, TrainingSamples


def model_loss(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The loss that the model computes itself, as the models of transformers do when a batch has labels."""
    return model(**batch).loss


def mean_loss(losses: list[float]) -> dict[str, float]:
    return {"eval_loss": sum(losses) / len(losses)}


def loss_of_each_sample(
    compute_loss: Callable[[nn.Module, dict], torch.Tensor], model: nn.Module, batch: dict[str, Any]
) -> list[float]:
    """The losses of the samples of a batch, one forward pass each, so that every sample has the same weight."""
    samples = ({name: values[i : i + 1] for name, values in batch.items()} for i in range(batch_size(batch)))
    return [compute_loss(model, sample).item() for sample in samples]


def batch_tensor(batch: dict[str, Any]) -> torch.Tensor:
    """The tensor whose first dimension counts the samples: `pixel_values`, or else the first tensor of the batch."""
    tensors = (value for value in batch.values() if isinstance(value, torch.Tensor))
    return batch["pixel_values"] if "pixel_values" in batch else next(tensors)


def batch_size(batch: dict[str, Any]) -> int:
    return len(batch_tensor(batch))


@dataclass(kw_only=True)
class Task:
    """
    What to train and how to evaluate it. Only the model and the evaluation data are required. The defaults of the other
    arguments suit data of dictionaries of tensors, and models whose output has a `loss`.

    Args:
        model (`nn.Module`): On the CPU. Parameters with `requires_grad` are trained.
        train_data ([`TrainingData`] or `Sequence`, *optional*): Training data, not needed with `--eval_only`. A
            sequence, such as a list or a map-style `Dataset`, holds the samples that `collate` takes; random numbers
            that its `__getitem__` draws are reproducible.
        eval_data ([`EvaluationSamples`] or `Sequence`): Evaluation data.
        processor (*optional*): Processor with `save_pretrained`, saved beside the model.
        collate (`Callable[[list], dict]`): Transformed samples -> a batch, a dictionary with tensors. Default: torch's
            `default_collate`, which stacks the tensors of dictionaries.
        compute_loss (`Callable[[nn.Module, dict], torch.Tensor]`): Mean loss of a batch, with gradient. Default:
            `model(**batch).loss`.
        predict (`Callable[[nn.Module, dict], list]`, *optional*): For a batch, one record for each sample, of plain
            numbers, arrays or CPU tensors. Default: the loss of each sample.
        compute_metrics (`Callable[[list], dict[str, float]]`): Records of all samples, in order -> metrics, named
            `eval_...`. Default: `eval_loss`, the mean of the default records.
        metric (`str`): Name of the metric that selects the weights in the folder `best-<step>`.
        greater_is_better (`bool`, *optional*): Whether larger values of this metric are better. Default: true unless
            the name ends in `loss`.
        to_save (`Callable[[nn.Module], nn.Module]`): Trained model -> model to save; may change its argument. Default:
            the trained model.
        write_card (`Callable[[Path, dict], None]`, *optional*): Given a folder with the saved model and the results,
            completes the folder to a repository. `--push_to_hub` requires it.
        write_evaluation (`Callable[[nn.Module, Path], None]`, *optional*): Given the model on the CPU and a folder,
            writes tables and pictures of the last evaluation. Used by `--eval_only`.
    """

    model: nn.Module
    train_data: TrainingData | Dataset | Sequence[Any] | None = None
    eval_data: EvaluationSamples | Dataset | Sequence[Any]
    processor: Any = None
    collate: Callable[[list], dict] = default_collate
    compute_loss: Callable[[nn.Module, dict], torch.Tensor] = model_loss
    predict: Callable[[nn.Module, dict], list] | None = None
    compute_metrics: Callable[[list], dict[str, float]] = mean_loss
    metric: str = "eval_loss"
    greater_is_better: bool | None = None
    to_save: Callable[[nn.Module], nn.Module] = lambda model: model
    write_card: Callable[[Path, dict], None] | None = None
    write_evaluation: Callable[[nn.Module, Path], None] | None = None

    def __post_init__(self):
        if self.train_data is not None and not isinstance(self.train_data, TrainingData):
            self.train_data = TrainingData(samples=_samples(TrainingSamples, self.train_data))
        self.eval_data = _samples(EvaluationSamples, self.eval_data)
        if self.predict is None:
            self.predict = functools.partial(loss_of_each_sample, self.compute_loss)
        if self.greater_is_better is None:
            self.greater_is_better = not self.metric.endswith("loss")

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of the metric is better than the best one so far, if there is one."""
        return best is None or not (value <= best if self.greater_is_better else value >= best)  # replaces NaN


def _samples(kind: type[TrainingSamples], data: Any) -> TrainingSamples:
    """Data as samples. Items of a sequence are read in the transform, where the loader seeds the random numbers."""
    if not isinstance(data, TrainingSamples):
        return kind(_same, data.__getitem__, len(data))
    if isinstance(data, EvaluationSamples) == (kind is EvaluationSamples):
        return data
    return kind(data.read, data.transform, data.num_samples)


def _same(index: int) -> int:
    return index
