# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Metrics with the interface of `evaluate`, but without its download of a script: they work offline."""

import sys
import types
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
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


class MeanIoU(evaluate.Metric):
    """
    Mean intersection over union of label maps, with the results of `evaluate`'s metric of the same name.

    Counts are added up over all maps before they are divided. Classes that occur neither in predictions nor in
    references are NaN and left out of the means; so are, for the accuracy, classes without labelled pixels. Pixels
    labelled `ignore_index` do not count, whatever was predicted there.

    ```python
    >>> from clustr_hf.metrics import MeanIoU

    >>> result = MeanIoU().compute(predictions=[[[0, 1], [1, 1]]], references=[[[0, 0], [1, 255]]], num_labels=2)
    >>> result["mean_iou"], result["overall_accuracy"]
    (0.5, 0.6666666666666666)
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean over the classes of intersection over union.",
            citation="",
            inputs_description="predictions, references: maps of class indices (height, width), of any sizes.",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _compute(
        self, predictions: list, references: list, num_labels: int, ignore_index: int = 255
    ) -> dict[str, float | np.ndarray]:
        areas = [
            class_areas(torch.as_tensor(prediction), torch.as_tensor(reference), num_labels, ignore_index)
            for prediction, reference in zip(predictions, references)
        ]
        return summarize_areas(areas)


def class_areas(
    prediction: torch.Tensor, reference: torch.Tensor, num_labels: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    What the mean IoU needs to know of an image.

    Args:
        prediction, reference (`torch.LongTensor` of shape `(H, W)`): Predicted and true class of each pixel.
        num_labels (`int`): Number of classes K.
        ignore_index (`int`): Label in `reference` of pixels that do not count.

    Returns:
        `torch.LongTensor` of shape `(3, K)`, on the CPU: for each class the number of pixels predicted rightly, of
        pixels predicted as it, and of pixels that are it.

    Raises:
        ValueError: if the maps differ in size, or a value is no class.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"`prediction` must have the size of `reference`, {tuple(reference.shape)}, got {tuple(prediction.shape)}."
        )
    counts = reference != ignore_index
    predicted, labelled = prediction[counts], reference[counts]
    for name, values in (("prediction", predicted), ("reference", labelled)):
        if len(values) and not (values.min() >= 0 and values.max() < num_labels):
            raise ValueError(
                f"`{name}` must be in [0, {num_labels}), got values from {values.min()} to {values.max()}."
            )
    right = labelled[predicted == labelled]
    return torch.stack([torch.bincount(values, minlength=num_labels) for values in (right, predicted, labelled)]).cpu()


def summarize_areas(areas: Sequence[torch.Tensor]) -> dict[str, float | np.ndarray]:
    """
    Mean IoU and what belongs to it from the [`class_areas`] of all images.

    Returns:
        `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats in [0, 1]), and `per_category_iou`,
        `per_category_accuracy` (`np.ndarray` of shape `(K,)`, NaN for classes that do not occur).
    """
    right, predicted, labelled = torch.stack(list(areas)).sum(dim=0).numpy().astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is the NaN of an absent class
        iou = right / (predicted + labelled - right)
        accuracy = right / labelled
        overall = right.sum() / labelled.sum()
    return {
        "mean_iou": _mean_of_present(iou),
        "mean_accuracy": _mean_of_present(accuracy),
        "overall_accuracy": float(overall),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _mean_of_present(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


__all__ = ["Accuracy", "MeanIoU", "class_areas", "compute_accuracy", "summarize_areas"]
