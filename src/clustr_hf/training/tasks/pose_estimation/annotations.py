# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Persons and their keypoints in annotation files of COCO and COCO-WholeBody."""

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
from datasets import Dataset

from ....keypoints import COCO, KeypointConvention
from ....name_lists import shorten
from ....remote_code.annotations_clustr import clean_annotation
from ....remote_code.image_reading_clustr import MAX_COORDINATE
from ...data.coco_files import ANNOTATIONS, CocoFile, make_rows


# Keys of COCO-WholeBody's annotations with the keypoints of each part, in the order of the convention.
KEYPOINT_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
PERSON_KEYS = ("bbox", "area", "iscrowd", *KEYPOINT_KEYS)
# Column of the rows with the id of the category of persons in the annotation file.
PERSON_ID = "person_id"


@dataclass
class Persons:
    """
    The persons of an image.

    Args:
        keypoints (`np.ndarray` of shape `(n, K, 3)`): (x, y, visibility) in pixels; a positive visibility marks an
            annotated keypoint.
        boxes (`np.ndarray` of shape `(n, 4)`): (x, y, width, height) in pixels.
        area (`np.ndarray` of shape `(n,)`): Area in square pixels.
        iscrowd (`np.ndarray` of shape `(n,)`): 1 for crowds.
    """

    keypoints: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray

    @property
    def can_be_cropped(self) -> np.ndarray:
        """Mask of the persons to train on: those with an annotated keypoint and a box, apart from crowds."""
        is_annotated = (self.keypoints[..., 2] > 0).any(axis=1)
        return is_annotated & (self.iscrowd == 0) & (self.boxes[:, 2:] > 0).all(axis=1)


def read_persons(folder: str, annotation_file: str, convention: KeypointConvention) -> Dataset:
    """
    Rows of the images in a folder with the annotations of their persons; objects of other categories are dropped.

    Args:
        folder (`str`): Folder of the images.
        annotation_file (`str`): JSON file with COCO annotations. If its category of persons names the keypoints, they
            are converted to the convention's order.
        convention ([`KeypointConvention`]): Annotated keypoints.
    """
    file = CocoFile.read(annotation_file)
    person_id = find_persons(file)
    order = find_keypoints(file, file.categories[person_id].get("keypoints"), convention)
    annotations = []
    for index, row in enumerate(file.annotations):
        if row["category_id"] != person_id:
            continue
        try:
            kept = check_person({name: row[name] for name in PERSON_KEYS if name in row}, index, convention)
        except ValueError as error:
            name = f"{annotation_file}: annotation {row.get('id')} of image {row['image_id']}"
            raise ValueError(f"{name}: {error}") from error
        values = kept.get("keypoints")
        if order is not None and isinstance(values, list) and len(values) == 3 * len(order):
            kept["keypoints"] = [value for position in order for value in values[3 * position : 3 * position + 3]]
        annotations.append((row["image_id"], kept))
    rows = make_rows(folder, file, annotations)
    return rows.add_column(PERSON_ID, [person_id] * len(rows))


def check_person(annotation: dict[str, Any], index: int, convention: KeypointConvention) -> dict[str, Any]:
    """
    A checked annotation of a person, without values that are None.

    Args:
        annotation (`dict`): COCO annotation with the keys of `PERSON_KEYS`.
        index (`int`): Index of the annotation in its file, for error messages.
        convention ([`KeypointConvention`]): Annotated keypoints.

    Raises:
        ValueError: if the box, the area or `iscrowd` is malformed, or the keypoints are not those of the convention:
            (x, y, visibility) each, finite if the visibility is positive.
    """
    annotation = {name: value for name, value in annotation.items() if value is not None}
    keys = KEYPOINT_KEYS[:1] if convention is COCO else KEYPOINT_KEYS
    missing = [key for key in ("bbox", *keys) if key not in annotation]
    if missing:
        raise ValueError(f"an annotation must have {missing}, got {sorted(annotation)}")
    cleaned = clean_annotation({**annotation, "category_id": 0}, index)
    for key in keys:
        if not isinstance(annotation[key], (list, tuple)):
            raise ValueError(f"`annotations[{index}]['{key}']` must be a list, got {reprlib.repr(annotation[key])}")
    values = list(chain.from_iterable(annotation[key] for key in keys))
    if len(values) != 3 * convention.num_keypoints:
        raise ValueError(
            f"an annotation must have {convention.num_keypoints} keypoints (x, y, visibility), got {len(values)} values"
        )
    if not all(isinstance(value, Real) for value in values):
        wrong = next(value for value in values if not isinstance(value, Real))
        raise ValueError(f"`annotations[{index}]['keypoints']` must be numbers, got {reprlib.repr(wrong)}")
    points = np.asarray(values, dtype=np.float64).reshape(-1, 3)
    visible = points[points[:, 2] > 0]
    if not ((abs(visible[:, :2]) <= MAX_COORDINATE).all() and np.isfinite(points[:, 2]).all()):
        raise ValueError(
            f"`annotations[{index}]['keypoints']` must be finite, at most {MAX_COORDINATE}, got "
            f"{reprlib.repr(visible.tolist())}"
        )
    return {name: cleaned[name] for name in annotation}


def find_persons(file: CocoFile) -> Any:
    """The id of the category of persons: the category named "person", or the only category."""
    found = [key for key, row in file.categories.items() if str(row["name"]).lower() == "person"]
    candidates = found or list(file.categories)
    if len(candidates) != 1:
        raise ValueError(f"{file.path} must have one category 'person', or one only, got {shorten(file.names)}")
    return candidates[0]


def find_keypoints(file: CocoFile, names: Sequence[str] | None, convention: KeypointConvention) -> Sequence[int] | None:
    """
    The index in a file of each keypoint of the body; None if they are in the convention's order or have no names.
    COCO-WholeBody's files name the keypoints of the body only.

    Raises:
        ValueError: if the file names other keypoints.
    """
    if not names:
        return None
    body = [_plain(name) for name in COCO.names]
    given = [_plain(name) for name in names]
    if given in (body, [_plain(name) for name in convention.names]):
        return None
    if sorted(given) == sorted(body):
        return [given.index(name) for name in body]
    raise ValueError(
        f"{file.path} must have the keypoints {shorten(COCO.names)}, got {shorten(names)}: they cannot be matched by "
        "name; without `keypoints` in its category they are taken in the convention's order"
    )


def _plain(name: str) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def parse_persons(row: dict[str, Any], convention: KeypointConvention) -> Persons:
    """The persons of a row of [`read_persons`], which has checked them."""
    annotations = json.loads(row[ANNOTATIONS])
    keys = KEYPOINT_KEYS[:1] if convention is COCO else KEYPOINT_KEYS
    keypoints = [list(chain.from_iterable(annotation[key] for key in keys)) for annotation in annotations]
    boxes = [annotation["bbox"] for annotation in annotations]
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas = [row.get("area", width * height) for row, (_, _, width, height) in zip(annotations, boxes)]
    return Persons(
        keypoints=np.asarray(keypoints, dtype=np.float64).reshape(-1, convention.num_keypoints, 3),
        boxes=boxes,
        area=np.asarray(areas, dtype=np.float64),
        iscrowd=np.asarray([row.get("iscrowd", 0) for row in annotations], dtype=np.int64),
    )
