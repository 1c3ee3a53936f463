# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The person boxes to crop, from annotations or from a detector."""

import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ....keypoints import KeypointConvention
from ....remote_code.annotations_clustr import clean_annotation
from ...data.coco_files import IMAGE_ID
from .annotations import PERSON_ID, parse_persons


@dataclass(frozen=True)
class PersonBox:
    """
    A box around a person.

    Args:
        row (`int`): Row of the image.
        person (`int`, *optional*): Index of the person among those of the row; None for a box of a detector.
        box (`tuple[float, float, float, float]`): (x, y, width, height) in pixels.
        score (`float`): Score of the detector.
    """

    row: int
    person: int | None
    box: tuple[float, float, float, float]
    score: float = 1.0


def annotated_boxes(rows: Dataset, convention: KeypointConvention) -> list[PersonBox]:
    """Boxes of the annotated persons, without crowds: to train on, and to evaluate with ground-truth boxes."""
    boxes = []
    for index, row in enumerate(rows):
        persons = parse_persons(row, convention)
        kept = np.nonzero(persons.can_be_cropped)[0].tolist()
        boxes += [PersonBox(index, person, tuple(persons.boxes[person].tolist())) for person in kept]
    return boxes


def detected_boxes(rows: Dataset, boxes_file: str) -> list[PersonBox]:
    """
    The boxes of a detector in the images of the rows: only non-empty boxes, and only of the annotations' category of
    persons.

    Raises:
        ValueError: if the file cannot be read, or is not a list of detections.
    """
    index = {image_id: row for row, image_id in enumerate(rows[IMAGE_ID])}
    person_id = rows[0][PERSON_ID]
    try:
        content = json.loads(Path(boxes_file).read_text())
        kept = [
            (index[found["image_id"]], _clean_detection(found, position))
            for position, found in enumerate(content)
            if found["image_id"] in index and found.get("category_id", person_id) == person_id
        ]
        boxes = [PersonBox(row, None, tuple(found["bbox"]), float(found["score"])) for row, found in kept]
    except OSError as error:
        raise ValueError(f"{boxes_file} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{boxes_file} must hold COCO's detections (image_id, bbox, score): {error!r}") from error
    return [box for box in boxes if min(box.box[2:]) > 0]


def _clean_detection(found: dict[str, Any], position: int) -> dict[str, Any]:
    score = found["score"]
    if not isinstance(score, Real) or not np.isfinite(score):
        raise ValueError(f"detection {position} of image {found['image_id']} must have a finite score, got {score!r}")
    return {**clean_annotation({"bbox": found["bbox"], "category_id": 0}, position), "score": score}
