# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Metrics with the interface of `evaluate`, for Trainer, for loops that add batches, and over several processes.

`evaluate.load` downloads a script for each metric; these classes work offline.
"""

import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
import transformers
from transformers import EvalPrediction

from ..keypoints import CONVENTIONS
from ..name_lists import join_names
from ..remote_code.annotations_clustr import run_lengths
from .coco import coco_average_precision
from .keypoints import PART_NAMES, given_part_scores, keypoint_average_precision
from .segmentation import class_areas, summarize_areas


class _WithTensorFlow(types.ModuleType):
    """transformers with the base class of TensorFlow models, which transformers 5 has removed."""

    TFPreTrainedModel = type("TFPreTrainedModel", (), {})

    def __getattr__(self, name: str):
        return getattr(transformers, name)


def _repair_evaluator():
    """Let evaluate 0.4.6 run with transformers 5: its evaluator checks every pipeline for a TensorFlow model."""
    base = sys.modules.get("evaluate.evaluator.base")  # the function `evaluate.evaluator` hides the module
    if base is not None and not hasattr(transformers, "TFPreTrainedModel"):
        base.transformers = _WithTensorFlow("transformers")


_repair_evaluator()


class Accuracy(evaluate.Metric):
    """
    Top-1 accuracy: the share of images whose predicted class is the labelled one, in [0, 1].

    Works like any metric of `evaluate`, including batch by batch and over several processes:

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
            inputs_description="predictions, references: one class index for each image.",
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
    Mean intersection over union of label maps, with the results of the metric of the same name in `evaluate`.

    Pixel counts are summed over all maps before they are divided. Classes that occur neither in predictions nor in
    references are NaN and excluded from the means; the mean accuracy also excludes classes without labelled pixels, and
    a warning names them. Pixels labelled `ignore_index` are ignored.

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
            description="Intersection over union, averaged over the classes.",
            citation="",
            inputs_description="predictions, references: maps of class indices (height, width), of any sizes.",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _compute(
        self, predictions: list, references: list, num_labels: int, ignore_index: int = 255
    ) -> dict[str, float | np.ndarray]:
        areas = [
            class_areas(*(torch.as_tensor(label_map, device="cpu") for label_map in pair), num_labels, ignore_index)
            for pair in zip(predictions, references)
        ]
        labelled = torch.stack(areas).sum(dim=0)[2] if areas else torch.zeros(num_labels, device="cpu")
        _warn_of_absent("pixels", [index for index, number in enumerate(labelled.tolist()) if number == 0])
        return summarize_areas(areas)


def _warn_of_absent(what: str, absent: Sequence[Any]):
    """Warn of classes or parts that do not occur in the references."""
    if absent:
        warnings.warn(
            f"`references` have no {what} of {len(absent)} classes or parts, which the scores therefore exclude: "
            f"{join_names(absent)}",
            stacklevel=2,
        )


class _ImageMetric(evaluate.Metric):
    """A metric of one dictionary for each image, which [`_to_columns`] converts to the columns of the Arrow table."""

    def add(self, *, prediction: Mapping[str, Any], reference: Mapping[str, Any], **kwargs):
        """As in `evaluate`; optional columns of an image may be left out."""
        record = {"prediction": _as_lists(self._to_columns("predictions", prediction))}
        super().add(**record, reference=_as_lists(self._to_columns("references", reference)))

    def add_batch(self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], **kwargs):
        """As in `evaluate`; optional columns of an image may be left out."""
        predictions = [_as_lists(self._to_columns("predictions", record)) for record in predictions]
        references = [_as_lists(self._to_columns("references", record)) for record in references]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _to_columns(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a record of `predictions` or `references`."""
        raise NotImplementedError


def _as_lists(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without arrays: Arrow refuses an array of several dimensions after one without rows."""
    return {name: values.tolist() if hasattr(values, "tolist") else values for name, values in record.items()}


class CocoAveragePrecision(_ImageMetric):
    """
    Average precision of boxes or masks as COCO defines it, see [`coco_average_precision`]. Classes without objects in
    the references are excluded from the means, and a warning names them.

    ```python
    >>> from clustr_hf.metrics import CocoAveragePrecision

    >>> reference = {"labels": [0], "boxes": [[10.0, 10.0, 50.0, 50.0]]}
    >>> prediction = {"scores": [0.9], "labels": [0], "boxes": [[10.0, 10.0, 50.0, 41.0]]}
    >>> result = CocoAveragePrecision().compute(predictions=[prediction], references=[reference])
    >>> result["ap50"], result["ap"]  # an IoU of 0.775 passes 6 of 10 thresholds
    (1.0, 0.6)
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        integer, real = datasets.Value("int64"), datasets.Value("float64")
        common = {
            "labels": datasets.Sequence(integer),
            "boxes": datasets.Sequence(datasets.Sequence(real)),
            "masks": [{"size": datasets.Sequence(integer), "counts": datasets.Sequence(integer)}],
        }
        prediction = {**common, "scores": datasets.Sequence(real)}
        reference = {**common, "area": datasets.Sequence(real), "iscrowd": datasets.Sequence(integer)}
        return evaluate.MetricInfo(
            description="Average precision of detections, averaged over the classes.",
            citation="",
            inputs_description="predictions, references: one dictionary for each image.",
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )

    def _to_columns(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """All columns; masks become uncompressed run lengths, which Arrow can store."""
        filled = {key: record.get(key, []) for key in self.features[name]}
        filled["masks"] = [
            {"size": mask["size"], "counts": run_lengths(mask).tolist()}
            if isinstance(mask["counts"], (str, bytes))
            else mask
            for mask in filled["masks"]
        ]
        return filled

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        num_labels: int | None = None,
        iou_type: str = "bbox",
        max_detections: int | None = 100,
    ) -> dict[str, Any]:
        result = coco_average_precision(predictions, references, num_labels, iou_type, max_detections)
        _warn_of_absent("objects", np.flatnonzero(np.isnan(result["per_category_ap"])).tolist())
        return result


class KeypointAveragePrecision(_ImageMetric):
    """
    Average precision of keypoints as COCO and COCO-WholeBody define it, see [`keypoint_average_precision`]. A warning
    names the parts that no person of the references has.

    ```python
    >>> from clustr_hf.metrics import KeypointAveragePrecision

    >>> nose = [[[50.0, 20.0, 2.0]] + 16 * [[0.0, 0.0, 0.0]]]  # one person with a single annotated keypoint
    >>> reference = {"keypoints": nose, "boxes": [[0.0, 0.0, 100.0, 200.0]], "area": [10000.0]}
    >>> prediction = {"keypoints": [[[53.0, 20.0, 0.9]] + 16 * [[10.0, 10.0, 0.1]]], "scores": [0.9]}
    >>> metric = KeypointAveragePrecision()
    >>> result = metric.compute(predictions=[prediction], references=[reference], convention="coco")
    >>> result["body_ap"]  # 3 pixels off in a person of 100 x 100: a similarity of 0.847 passes 7 of 10 thresholds
    0.7
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        integer, real = datasets.Value("int64"), datasets.Value("float64")
        rows = datasets.Sequence(datasets.Sequence(real))
        keypoints = {"keypoints": datasets.Sequence(rows)}
        scores = {name: datasets.Sequence(real) for name in ("scores", *(f"{part}_scores" for part in PART_NAMES))}
        persons = {"boxes": rows, "area": datasets.Sequence(real), "iscrowd": datasets.Sequence(integer)}
        return evaluate.MetricInfo(
            description="Average precision of keypoints by the object keypoint similarity.",
            citation="",
            inputs_description="predictions, references: one dictionary for each image.",
            features=datasets.Features(
                {"predictions": {**keypoints, **scores}, "references": {**keypoints, **persons}}
            ),
        )

    def _to_columns(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """The metric's columns; optional ones that are left out are empty."""
        if name == "predictions":
            given = given_part_scores(record, "a prediction")
            given = {f"{part}_scores": np.asarray(scores, np.float64) for part, scores in given.items()}  # None: NaN
            record = {**{f"{part}_scores": [] for part in PART_NAMES}, **record, **given}
        else:
            record = {"iscrowd": [], **record}
        return {key: record[key] for key in self.features[name] if key in record}

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        convention: str = "coco_wholebody",
    ) -> dict[str, float]:
        if convention not in CONVENTIONS:
            raise ValueError(f"`convention` must be one of {list(CONVENTIONS)}, got {convention!r}.")
        results = keypoint_average_precision(predictions, references, CONVENTIONS[convention])
        parts = CONVENTIONS[convention].parts
        _warn_of_absent("annotated keypoints", [part for part in parts if np.isnan(results[f"{part}_ap"])])
        return results
