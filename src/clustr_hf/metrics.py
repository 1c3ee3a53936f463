# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Metrics with the interface of `evaluate`, but without its download of a script: they work offline."""

import sys
import types

import datasets
import evaluate
import numpy as np
import transformers
from transformers import EvalPrediction


class _WithTensorFlow(types.ModuleType):
    """transformers, and the base class of TensorFlow models, which no object has since version 5."""

    TFPreTrainedModel = type("TFPreTrainedModel", (), {})

    def __getattr__(self, name: str):
        return getattr(transformers, name)


def _repair_evaluator():
    """evaluate 0.4.6 asks every pipeline whether it is a TensorFlow model, and fails where there is no such class."""
    base = sys.modules.get("evaluate.evaluator.base")  # `evaluate.evaluator` is a function that hides the module
    if base is not None and not hasattr(transformers, "TFPreTrainedModel"):
        base.transformers = _WithTensorFlow("transformers")


_repair_evaluator()


class Accuracy(evaluate.Metric):
    """
    Top-1 accuracy, the share of images whose predicted class is the labelled one, in [0, 1].

    Used like any metric of `evaluate`, batch by batch too, and gathered over processes:

    ```python
    >>> from clustr_hf.metrics import Accuracy

    >>> Accuracy().compute(predictions=[0, 1, 2, 2], references=[0, 1, 2, 3])
    {'accuracy': 0.75}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        class_index = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference.",
            citation="",
            inputs_description="predictions, references: class indices, one an image.",
            features=datasets.Features({"predictions": class_index, "references": class_index}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """
    Top-1 accuracy in the form of Trainer's `compute_metrics`.

    Args:
        prediction (`EvalPrediction`): `predictions` are logits `(B, num_labels)`, `label_ids` class indices `(B,)`.

    Returns:
        `dict[str, float]`: `accuracy` in [0, 1].
    """
    return Accuracy().compute(predictions=prediction.predictions.argmax(-1), references=prediction.label_ids)


__all__ = ["Accuracy", "compute_accuracy"]
