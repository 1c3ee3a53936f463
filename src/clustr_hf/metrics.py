# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Metrics with the interface of `evaluate`, but without its download of a script: they work offline."""

import sys
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
import transformers
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from transformers import EvalPrediction

from .keypoints import CONVENTIONS, KeypointConvention
from .remote_code.annotations_clustr import run_lengths


# What all keypoints together are called, and the parts that may have scores of their own, in any convention.
WHOLE = "wholebody"
PART_NAMES = tuple(dict.fromkeys([*(part for convention in CONVENTIONS.values() for part in convention.parts), WHOLE]))
# How many absent classes a warning names.
MOST_NAMES = 20


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
    references are NaN and left out of the means; so are, for the accuracy, classes without labelled pixels: a warning
    names the classes that no pixel is labelled as. Pixels labelled `ignore_index` do not count, whatever was predicted
    there.

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
            class_areas(*(torch.as_tensor(label_map, device="cpu") for label_map in pair), num_labels, ignore_index)
            for pair in zip(predictions, references)
        ]
        labelled = torch.stack(areas).sum(dim=0)[2] if areas else torch.zeros(num_labels, device="cpu")
        _warn_of_absent("pixels", [index for index, number in enumerate(labelled.tolist()) if number == 0])
        return summarize_areas(areas)


def _warn_of_absent(what: str, absent: Sequence[Any]):
    """Say of which classes, or parts, the scores say nothing, since there are none of them in the references."""
    if absent:
        more = ", ..." if len(absent) > MOST_NAMES else ""
        warnings.warn(
            f"`references` have no {what} of {len(absent)} classes or parts, of which the scores say nothing: "
            f"{', '.join(map(str, absent[:MOST_NAMES]))}{more}",
            stacklevel=2,
        )


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


class _ImageMetric(evaluate.Metric):
    """A metric of dictionaries, one an image; [`_fit`] makes of them what Arrow keeps."""

    def add(self, *, prediction: Mapping, reference: Mapping, **kwargs):
        """As upstream; what an image's dictionary may leave out is empty."""
        record = {"prediction": _as_lists(self._fit("predictions", prediction))}
        super().add(**record, reference=_as_lists(self._fit("references", reference)))

    def add_batch(self, *, predictions: Sequence[Mapping], references: Sequence[Mapping], **kwargs):
        """As upstream; what an image's dictionary may leave out is empty."""
        predictions = [_as_lists(self._fit("predictions", record)) for record in predictions]
        references = [_as_lists(self._fit("references", record)) for record in references]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _fit(self, name: str, record: Mapping) -> dict[str, Any]:
        """The columns of a record of `predictions` or `references`."""
        raise NotImplementedError


def _as_lists(record: Mapping) -> dict[str, Any]:
    """A record without arrays: Arrow takes none of several dimensions after one without rows."""
    return {name: values.tolist() if hasattr(values, "tolist") else values for name, values in record.items()}


class CocoAveragePrecision(_ImageMetric):
    """
    Average precision of boxes or masks as COCO defines it, by faster-coco-eval; see [`coco_average_precision`]. Classes
    without objects in the references are left out of the means, and a warning names them.

    ```python
    >>> from clustr_hf.metrics import CocoAveragePrecision

    >>> reference = {"labels": [0], "boxes": [[10.0, 10.0, 50.0, 50.0]]}
    >>> prediction = {"scores": [0.9], "labels": [0], "boxes": [[10.0, 10.0, 50.0, 41.0]]}
    >>> result = CocoAveragePrecision().compute(predictions=[prediction], references=[reference])
    >>> result["ap50"], result["ap"]  # an IoU of 0.775 is enough for 6 of 10 thresholds
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
            inputs_description="predictions, references: one dictionary an image.",
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )

    def _fit(self, name: str, record: Mapping) -> dict[str, Any]:
        """All columns, with masks as Arrow can keep them: run lengths that are not compressed."""
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
        predictions: Sequence[Mapping],
        references: Sequence[Mapping],
        num_labels: int | None = None,
        iou_type: str = "bbox",
        max_detections: int | None = 100,
    ) -> dict[str, Any]:
        result = coco_average_precision(predictions, references, num_labels, iou_type, max_detections)
        _warn_of_absent("objects", np.flatnonzero(np.isnan(result["per_category_ap"])).tolist())
        return result


def coco_average_precision(
    predictions: Sequence[Mapping],
    references: Sequence[Mapping],
    num_labels: int | None = None,
    iou_type: str = "bbox",
    max_detections: int | None = 100,
) -> dict[str, float | np.ndarray]:
    """
    Average precision of boxes or masks as COCO defines it.

    Args:
        predictions (`Sequence[Mapping]`): For each image its detections: `scores` `(n,)`, `labels` `(n,)`, and `boxes`
            `(n, 4)`, corners in pixels, or `masks`, n run-length encodings of COCO.
        references (`Sequence[Mapping]`): For each image its objects: `labels` `(m,)`, and `boxes` `(m, 4)` or `masks`;
            `area` `(m,)` in square pixels, by which small, medium and large are told apart, is that of the boxes or
            masks if it is left out; `iscrowd` `(m,)` is 1 for crowds, which may be found or not.
        num_labels (`int`, *optional*): Number of classes; default is one more than the largest label.
        iou_type (`str`): `"bbox"` for boxes or `"segm"` for masks.
        max_detections (`int`, *optional*, defaults to 100): Number of detections of a class in an image that count, the
            best ones. COCO's is 100, which is too few where images have more objects; None counts all.

    Returns:
        `dict`: `ap`, averaged over IoU thresholds 0.5, 0.55 ... 0.95 and classes, `ap50`, `ap75`, `ap_small` (area to
        32^2), `ap_medium`, `ap_large` (from 96^2), `ar` (recall, averaged alike), and `per_category_ap`,
        `per_category_ap50` (`np.ndarray` of shape `(num_labels,)`); all in [0, 1], or NaN where there are no objects.

    Raises:
        ValueError: for an unknown `iou_type`, a label out of range, a malformed run-length encoding, or predictions and
            references of different numbers.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"`iou_type` must be 'bbox' or 'segm', got {iou_type!r}.")
    _check_numbers(predictions, references)
    if max_detections is None:
        max_detections = max([1, *(len(record["labels"]) for record in predictions if "labels" in record)])
    if max_detections < 1:
        raise ValueError(f"`max_detections` must be positive, got {max_detections}.")
    labels = []
    for name, records in (("predictions", predictions), ("references", references)):
        for index, record in enumerate(records):
            _check_objects(record, f"`{name}[{index}]`", {"bbox": "boxes", "segm": "masks"}[iou_type], name)
            labels += map(int, record["labels"])
    num_labels = max(labels, default=0) + 1 if num_labels is None else num_labels
    if labels and not 0 <= min(labels) <= max(labels) < num_labels:
        raise ValueError(
            f"'labels' of `predictions` and `references` must be in [0, {num_labels}), got values from "
            f"{min(labels)} to {max(labels)}."
        )
    truth, found = (_coco_annotations(records, iou_type) for records in (references, predictions))
    evaluator = _run_evaluator(truth, found, len(references), range(num_labels), iou_type, max_detections)
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]  # (T, R, K, areas, 1), (T, K, areas, 1)
    areas = dict(zip(evaluator.params.areaRngLbl, range(4)))
    return {
        "ap": _mean_of_valid(precision[:, :, :, 0, -1]),
        "ap50": _mean_of_valid(precision[0, :, :, 0, -1]),
        "ap75": _mean_of_valid(precision[5, :, :, 0, -1]),
        **{f"ap_{name}": _mean_of_valid(precision[:, :, :, areas[name], -1]) for name in ("small", "medium", "large")},
        "ar": _mean_of_valid(recall[:, :, 0, -1]),
        "per_category_ap": np.array([_mean_of_valid(precision[:, :, k, 0, -1]) for k in range(num_labels)]),
        "per_category_ap50": np.array([_mean_of_valid(precision[0, :, k, 0, -1]) for k in range(num_labels)]),
    }


def _check_numbers(predictions: Sequence[Mapping], references: Sequence[Mapping]):
    if len(predictions) != len(references):
        raise ValueError(
            f"`predictions` must be as many as `references`, {len(references)} images, got {len(predictions)}."
        )


def _run_evaluator(
    truth: list[dict],
    found: list[dict],
    num_images: int,
    categories: Iterable[int],
    iou_type: str,
    max_detections: int,
    **settings: Any,
) -> COCOeval_faster:
    """faster-coco-eval's evaluator after its work, on COCO's annotations of images 1, 2, ..."""
    dataset = {
        "info": {},
        "images": [{"id": image_id, "height": 0, "width": 0} for image_id in range(1, num_images + 1)],
        "categories": [{"id": category, "name": str(category)} for category in categories],
    }
    sides = (COCO({**dataset, "annotations": annotations}) for annotations in (truth, found))
    evaluator = COCOeval_faster(*sides, iou_type, print_function=lambda *_: None, **settings)
    evaluator.params.maxDets = [max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _check_objects(record: Mapping, name: str, column: str, kind: str):
    """Raise a `ValueError` unless all columns of an image are as long as its labels."""
    needed = ("labels", column, *(("scores",) if kind == "predictions" else ()))
    missing = [key for key in needed if key not in record]
    if missing:
        raise ValueError(f"{name} must have {list(needed)}, got {list(record)}.")
    for key in (*needed, "area", "iscrowd"):
        is_optional = key not in needed and len(record.get(key, ())) == 0
        if not is_optional and len(record[key]) != len(record["labels"]):
            raise ValueError(
                f"{name} must have one of {key!r} for each of its {len(record['labels'])} labels, got "
                f"{len(record[key])}."
            )
    for index, mask in enumerate(record["masks"] if column == "masks" else ()):
        try:  # COCO's functions read beyond broken ones
            run_lengths(mask)
        except ValueError as error:
            raise ValueError(f"{name[:-1]}['masks'][{index}]`: {error}") from error


def _coco_annotations(records: Sequence[Mapping], iou_type: str) -> list[dict[str, Any]]:
    """COCO's annotations of images 1, 2, ..., also counted from 1: 0 means "not matched" to the evaluator."""
    annotations = []
    for image_id, record in enumerate(records, start=1):
        for index, label in enumerate(record["labels"]):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(label), "iscrowd": 0}
            if iou_type == "bbox":
                x0, y0, x1, y1 = map(float, record["boxes"][index])
                annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]
                annotation["area"] = (x1 - x0) * (y1 - y0)
            else:
                mask = record["masks"][index]
                if not isinstance(mask["counts"], (str, bytes)):
                    mask = coco_mask.frPyObjects({name: list(mask[name]) for name in ("size", "counts")}, *mask["size"])
                annotation["segmentation"] = mask
                annotation["bbox"] = coco_mask.toBbox(mask).tolist()
                annotation["area"] = float(coco_mask.area(mask))
            for name, kind in (("scores", float), ("area", float), ("iscrowd", int)):
                if len(record.get(name, ())) > 0:
                    annotation[name.removesuffix("s")] = kind(record[name][index])
            annotations.append(annotation)
    return annotations


class KeypointAveragePrecision(_ImageMetric):
    """
    Average precision of keypoints as COCO and COCO-WholeBody define it; see [`keypoint_average_precision`]. A warning
    names the parts that no person of the references has.

    ```python
    >>> from clustr_hf.metrics import KeypointAveragePrecision

    >>> nose = [[[50.0, 20.0, 2.0]] + 16 * [[0.0, 0.0, 0.0]]]  # of one person, whose other keypoints are not annotated
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
        reference = {"boxes": rows, "area": datasets.Sequence(real), "iscrowd": datasets.Sequence(integer)}
        keypoints = {"keypoints": datasets.Sequence(rows)}
        scores = {name: datasets.Sequence(real) for name in ("scores", *(f"{part}_scores" for part in PART_NAMES))}
        return evaluate.MetricInfo(
            description="Average precision of keypoints by their similarity to those of the persons.",
            citation="",
            inputs_description="predictions, references: one dictionary an image.",
            features=datasets.Features(
                {
                    "predictions": {**keypoints, **scores},
                    "references": {**keypoints, **reference},
                }
            ),
        )

    def _fit(self, name: str, record: Mapping) -> dict[str, Any]:
        """What may be missing is empty, and what the metric does not need is left out."""
        if name == "predictions":
            given = _given_part_scores(record, "a prediction")
            given = {f"{part}_scores": np.asarray(scores, np.float64) for part, scores in given.items()}  # None: NaN
            record = {**{f"{part}_scores": [] for part in PART_NAMES}, **record, **given}
        else:
            record = {"iscrowd": [], **record}
        return {key: record[key] for key in self.features[name] if key in record}

    def _compute(
        self, predictions: Sequence[Mapping], references: Sequence[Mapping], convention: str = "coco_wholebody"
    ) -> dict[str, float]:
        if convention not in CONVENTIONS:
            raise ValueError(f"`convention` must be one of {list(CONVENTIONS)}, got {convention!r}.")
        results = keypoint_average_precision(predictions, references, CONVENTIONS[convention])
        parts = CONVENTIONS[convention].parts
        _warn_of_absent("annotated keypoints", [part for part in parts if np.isnan(results[f"{part}_ap"])])
        return results


def keypoint_average_precision(
    predictions: Sequence[Mapping], references: Sequence[Mapping], convention: KeypointConvention
) -> dict[str, float]:
    """
    Average precision and recall of keypoints by the object keypoint similarity (OKS), for each part of the body on its
    own and for all of it, as COCO-WholeBody's evaluator computes them (Jin et al. 2020) and, for 17 keypoints, COCO's.

    For a part only its keypoints count, and its score ranks the predictions. Persons without an annotated keypoint in a
    part, and crowds, may be found or not; a prediction all of whose keypoints' scores in a part are 0 is none.

    Args:
        predictions (`Sequence[Mapping]`): For each image its persons: `keypoints` `(n, K, 3)`, (x, y, score) in pixels,
            and `scores` `(n,)`. A part may have scores of its own, `{part}_scores` `(n,)` for the parts of the
            convention and for `wholebody`, as COCO-WholeBody's results have `face_score` and others (that name is
            accepted, too); where it is missing, or NaN for a person, that of `scores` counts. At most 20 persons of an
            image count, the best ones.
        references (`Sequence[Mapping]`): For each image its persons: `keypoints` `(m, K, 3)`, (x, y, visibility),
            annotated where that is positive; `boxes` `(m, 4)`, corners in pixels; `area` `(m,)` in square pixels, that
            of the segmentation; `iscrowd` `(m,)` is 1 for crowds, and may be left out.
        convention ([`KeypointConvention`]): What the K keypoints are.

    Returns:
        `dict[str, float]`: for each part and, where there are several, `wholebody`: `{part}_ap`, averaged over
        similarities from 0.5 to 0.95, `{part}_ap50`, `{part}_ap75`, `{part}_ap_medium` (area 32^2 to 96^2),
        `{part}_ap_large`, and `{part}_ar` (recall, averaged alike), `{part}_ar50`, `{part}_ar75`; in [0, 1], or NaN
        where no person has the part. `hand_ap` and the others of it are the means of left and right hand.

    Raises:
        ValueError: for another number of keypoints or scores, predictions and references of different numbers, or
            scores of a part that the convention has not.
    """
    _check_numbers(predictions, references)
    predicted, annotated = (
        [_as_persons(record, name, index, convention) for index, record in enumerate(records)]
        for name, records in (("predictions", predictions), ("references", references))
    )
    parts = {name: list(part) for name, part in convention.parts.items()}
    if len(parts) > 1:
        parts[WHOLE] = list(range(convention.num_keypoints))
    results = {
        f"{name}_{key}": value
        for name, part in parts.items()
        for key, value in _evaluate_part(predicted, annotated, name, part, convention.sigmas).items()
    }
    if "lefthand" in parts:
        for key in KEYPOINT_SCORES:
            results[f"hand_{key}"] = (results[f"lefthand_{key}"] + results[f"righthand_{key}"]) / 2
    return results


# COCO's category of persons, and how many of them count in an image.
PERSON, MAX_PERSONS = 1, 20
# What is computed for each part: the scores' names -> precision or recall, index of the threshold, index of the areas.
KEYPOINT_SCORES = {
    "ap": ("precision", slice(None), 0),
    "ap50": ("precision", 0, 0),
    "ap75": ("precision", 5, 0),
    "ap_medium": ("precision", slice(None), 1),
    "ap_large": ("precision", slice(None), 2),
    "ar": ("recall", slice(None), 0),
    "ar50": ("recall", 0, 0),
    "ar75": ("recall", 5, 0),
}


def _as_persons(record: Mapping, kind: str, index: int, convention: KeypointConvention) -> list[dict[str, Any]]:
    """The persons of an image of predictions or references as COCO's dictionaries, without ids; keypoints (K, 3)."""
    name, needed = f"`{kind}[{index}]`", {"predictions": ["scores"], "references": ["boxes", "area"]}[kind]
    missing = [key for key in ("keypoints", *needed) if key not in record]
    if missing:
        raise ValueError(f"{name} must have {['keypoints', *needed]}, got {list(record)}.")
    number = len(record["keypoints"])
    keypoints = np.asarray(record["keypoints"], dtype=np.float64)
    if number and keypoints.shape != (number, convention.num_keypoints, 3):
        raise ValueError(
            f"'keypoints' of {name} must have shape (n, {convention.num_keypoints}, 3), got {keypoints.shape}."
        )
    if kind == "references" and len(record.get("iscrowd", ())) > 0:
        needed = [*needed, "iscrowd"]
    for key in needed:
        if len(record[key]) != number:
            raise ValueError(f"{name} must have {number} of {key!r}, as of 'keypoints', got {len(record[key])}.")
    part_scores = _part_scores(record, name, convention, number) if kind == "predictions" else {}
    persons = []
    for place, points in enumerate(keypoints):
        values = {key: record[key][place] for key in needed}
        person = {"keypoints": points, "category_id": PERSON, "iscrowd": int(values.get("iscrowd", 0))}
        if kind == "references":
            x0, y0, x1, y1 = map(float, values["boxes"])
            person |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(values["area"])}
        else:  # as COCO has it, the box of the body's keypoints
            body = points[list(convention.parts["body"]), :2]
            (x0, y0), (width, height) = body.min(axis=0).tolist(), np.ptp(body, axis=0).tolist()
            person |= {"bbox": [x0, y0, width, height], "area": width * height, "score": float(values["scores"])}
            person["part_scores"] = {part: scores[place] for part, scores in part_scores.items()}
        persons.append(person)
    return persons


def _given_part_scores(record: Mapping, name: str) -> dict[str, Sequence[float]]:
    """The scores of parts that an image's predictions have, by the name of the part."""
    given = {}
    for part in PART_NAMES:
        spellings = [key for key in (f"{part}_scores", f"{part}_score") if len(record.get(key, ())) > 0]
        if len(spellings) > 1:
            raise ValueError(f"{name} must have one of {spellings}, got both.")
        if spellings:
            given[part] = record[spellings[0]]
    return given


def _part_scores(record: Mapping, name: str, convention: KeypointConvention, number: int) -> dict[str, list[float]]:
    """The scores of each part in an image; that of the whole person where a part's is not given."""
    parts = [*convention.parts, *([WHOLE] if len(convention.parts) > 1 else [])]
    result = {}
    for part, given in _given_part_scores(record, name).items():
        if part not in parts:
            raise ValueError(f"{name} has scores of the part {part!r}, but the convention has only {parts}.")
        if len(given) != number:
            raise ValueError(f"{name} must have {number} of '{part}_scores', as of 'keypoints', got {len(given)}.")
        scores = np.asarray(given, dtype=np.float64)  # None becomes NaN
        result[part] = np.where(np.isnan(scores), record["scores"], scores).tolist()
    return result


def _evaluate_part(
    predicted: list[list[dict]], annotated: list[list[dict]], name: str, part: list[int], sigmas: Sequence[float]
) -> dict[str, float]:
    """[`KEYPOINT_SCORES`] of some of the keypoints, those of the part of this name."""
    truth = _part_annotations(annotated, name, part)
    found = [annotation for annotation in _part_annotations(predicted, name, part) if annotation["num_keypoints"] > 0]
    settings = (len(annotated), [PERSON], "keypoints", MAX_PERSONS)
    evaluator = _run_evaluator(truth, found, *settings, kpt_oks_sigmas=np.asarray(sigmas)[part])
    # precision (thresholds, recalls, categories, areas, 1), recall (thresholds, categories, areas, 1)
    return {
        name: _mean_of_valid(evaluator.eval[kind][threshold][..., areas, -1])
        for name, (kind, threshold, areas) in KEYPOINT_SCORES.items()
    }


def _part_annotations(persons: list[list[dict]], name: str, part: list[int]) -> list[dict[str, Any]]:
    """COCO's annotations of the persons of images 1, 2, ... with some of their keypoints; also counted from 1."""
    annotations = []
    for image_id, of_image in enumerate(persons, start=1):
        for person in of_image:
            points = person["keypoints"][part]
            number = int((points[:, 2] > 0).sum())
            place = {"id": len(annotations) + 1, "image_id": image_id, "num_keypoints": number}
            if name in person.get("part_scores", ()):
                place["score"] = person["part_scores"][name]
            annotations.append({**person, **place, "keypoints": points.ravel().tolist()})
    return annotations


def suppress_similar_poses(
    keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: Sequence[float], threshold: float = 0.9
) -> np.ndarray:
    """
    Non-maximum suppression of persons by the similarity of their keypoints (OKS-NMS).

    Args:
        keypoints (`np.ndarray` of shape `(n, K, 2)`): In pixels.
        scores, areas (`np.ndarray` of shape `(n,)`): Of the persons; areas in square pixels.
        sigmas (`Sequence[float]` of length K): Of the keypoints.
        threshold (`float`): Persons more similar than this to a better one are left out.

    Returns:
        `np.ndarray`: indices of those that are kept, the best first.
    """
    variances = (2 * np.asarray(sigmas)) ** 2
    order, kept = list(np.argsort(-scores, kind="stable")), []
    while order:
        best, *others = order
        kept.append(best)
        area = (areas[others] + areas[best]) / 2 + np.spacing(1)
        distances = ((keypoints[others] - keypoints[best]) ** 2).sum(axis=-1)
        similarity = np.exp(-distances / variances / area[:, None] / 2).mean(axis=-1)
        order = [index for index, value in zip(others, similarity) if value <= threshold]
    return np.array(kept, dtype=np.int64)


def _mean_of_valid(values: np.ndarray) -> float:
    """The evaluator's -1 is where there is nothing to find."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


__all__ = [
    "Accuracy",
    "CocoAveragePrecision",
    "KeypointAveragePrecision",
    "MeanIoU",
    "class_areas",
    "coco_average_precision",
    "compute_accuracy",
    "keypoint_average_precision",
    "summarize_areas",
    "suppress_similar_poses",
]
