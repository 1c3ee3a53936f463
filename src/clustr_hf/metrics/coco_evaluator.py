# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""faster-coco-eval's evaluator, shared by the metrics of boxes, masks and keypoints."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster


def check_lengths(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> None:
    """Raise a `ValueError` unless there are predictions for every image of the references."""
    if len(predictions) != len(references):
        raise ValueError(
            f"`predictions` must have one entry for each of the {len(references)} images of `references`, "
            f"got {len(predictions)}."
        )


def run_evaluator(
    truth: list[dict],
    found: list[dict],
    num_images: int,
    categories: Iterable[int],
    iou_type: str,
    max_detections: int,
    **settings: Any,
) -> COCOeval_faster:
    """
    Evaluate COCO annotations of images 1, 2, ...; the results are in the `eval` attribute of the returned evaluator.

    Args:
        truth, found (`list[dict]`): Annotations of the ground truth and of the predictions. Their ids count from 1,
            since the evaluator reads 0 as "not matched".
        num_images (`int`): Number of images.
        categories (`Iterable[int]`): Ids of the categories.
        iou_type (`str`): `"bbox"`, `"segm"` or `"keypoints"`.
        max_detections (`int`): Number of predictions of a category in an image that are evaluated.
        settings: Further arguments of `COCOeval_faster`.
    """
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


def mean_of_valid(values: np.ndarray) -> float:
    """Mean of the evaluator's values without its -1, which marks categories and areas without objects."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")
