# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""COCO's average precision of boxes and masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from ..remote_code.annotations_clustr import run_lengths
from .coco_evaluator import check_lengths, mean_of_valid, run_evaluator


# Type of IoU -> the column of the records that it compares.
_COLUMNS = {"bbox": "boxes", "segm": "masks"}


def coco_average_precision(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    num_labels: int | None = None,
    iou_type: str = "bbox",
    max_detections: int | None = 100,
) -> dict[str, float | np.ndarray]:
    """
    Average precision of boxes or masks as COCO defines it.

    Args:
        predictions (`Sequence[Mapping]`): Detections of each image: `scores` `(n,)`, `labels` `(n,)`, and `boxes`
            `(n, 4)`, corners in pixels, or `masks`, n run-length encodings of COCO.
        references (`Sequence[Mapping]`): Objects of each image: `labels` `(m,)`, and `boxes` `(m, 4)` or `masks`;
            *optionally* `area` `(m,)` in square pixels, which decides whether an object is small, medium or large
            (default: the area of the box or mask), and `iscrowd` `(m,)`, 1 for crowds, to which detections may be
            matched without affecting the scores.
        num_labels (`int`, *optional*): Number of classes; default: one more than the largest label.
        iou_type (`str`, defaults to `"bbox"`): `"bbox"` for boxes or `"segm"` for masks.
        max_detections (`int`, *optional*, defaults to 100): Number of detections of a class in an image that are
            evaluated, best first. COCO uses 100, which is too few for images with more objects; `None` evaluates all.

    Returns:
        `dict`: `ap`, averaged over IoU thresholds 0.5, 0.55 ... 0.95 and classes, `ap50`, `ap75`, `ap_small` (area up
        to 32^2), `ap_medium`, `ap_large` (area from 96^2), `ar` (recall with the same average), and
        `per_category_ap`, `per_category_ap50` (`np.ndarray` of shape `(num_labels,)`). Values are in [0, 1], or NaN
        where there are no objects.

    Raises:
        ValueError: for an unknown `iou_type`, a label out of range, a malformed run-length encoding, or predictions and
            references of different lengths.
    """
    if iou_type not in _COLUMNS:
        raise ValueError(f"`iou_type` must be 'bbox' or 'segm', got {iou_type!r}.")
    check_lengths(predictions, references)
    if max_detections is None:
        max_detections = max([1, *(len(record["labels"]) for record in predictions if "labels" in record)])
    if max_detections < 1:
        raise ValueError(f"`max_detections` must be positive, got {max_detections}.")
    for name, records in (("predictions", predictions), ("references", references)):
        for index, record in enumerate(records):
            _check_objects(record, f"`{name}[{index}]`", _COLUMNS[iou_type], name)
    num_labels = _checked_num_labels([*predictions, *references], num_labels)
    truth, found = (_annotations(records, iou_type) for records in (references, predictions))
    evaluator = run_evaluator(truth, found, len(references), range(num_labels), iou_type, max_detections)
    # (thresholds, recalls, classes, areas, 1) and (thresholds, classes, areas, 1)
    precision, recall = evaluator.eval["precision"][..., -1], evaluator.eval["recall"][..., -1]
    areas = dict(zip(evaluator.params.areaRngLbl, range(4)))
    return {
        "ap": mean_of_valid(precision[:, :, :, 0]),
        "ap50": mean_of_valid(precision[0, :, :, 0]),
        "ap75": mean_of_valid(precision[5, :, :, 0]),
        **{f"ap_{name}": mean_of_valid(precision[:, :, :, areas[name]]) for name in ("small", "medium", "large")},
        "ar": mean_of_valid(recall[:, :, 0]),
        "per_category_ap": np.array([mean_of_valid(precision[:, :, k, 0]) for k in range(num_labels)]),
        "per_category_ap50": np.array([mean_of_valid(precision[0, :, k, 0]) for k in range(num_labels)]),
    }


def _checked_num_labels(records: Sequence[Mapping[str, Any]], num_labels: int | None) -> int:
    """The number of classes, after a check that every label is one of them."""
    labels = [int(label) for record in records for label in record["labels"]]
    num_labels = max(labels, default=0) + 1 if num_labels is None else num_labels
    if labels and not 0 <= min(labels) <= max(labels) < num_labels:
        raise ValueError(
            f"'labels' of `predictions` and `references` must be in [0, {num_labels}), got values from "
            f"{min(labels)} to {max(labels)}."
        )
    return num_labels


def _check_objects(record: Mapping[str, Any], name: str, column: str, kind: str):
    """Raise a `ValueError` unless all columns of an image are as long as its labels."""
    required = ("labels", column, *(("scores",) if kind == "predictions" else ()))
    if any(key not in record for key in required):
        raise ValueError(f"{name} must have {list(required)}, got {list(record)}.")
    for key in (*required, "area", "iscrowd"):
        is_left_out = key not in required and len(record.get(key, ())) == 0
        if not is_left_out and len(record[key]) != len(record["labels"]):
            raise ValueError(
                f"{name} must have one of {key!r} for each of its {len(record['labels'])} labels, got "
                f"{len(record[key])}."
            )
    for index, mask in enumerate(record["masks"] if column == "masks" else ()):
        try:  # COCO's functions read past the end of malformed masks
            run_lengths(mask)
        except ValueError as error:
            raise ValueError(f"{name[:-1]}['masks'][{index}]`: {error}") from error


def _annotations(records: Sequence[Mapping[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    """COCO annotations of images 1, 2, ..."""
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
