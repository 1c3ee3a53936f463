# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""COCO annotation files as rows of a data set, for detection and pose estimation."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from ...name_lists import shorten
from ...remote_code.annotations_clustr import join_pairs
from .class_names import find_places


# Columns of the rows; annotations are JSON because their values differ in type.
IMAGE, IMAGE_ID, ANNOTATIONS = "image", "image_id", "annotations"
# Length of the smallest valid polygon: x and y of three corners.
MIN_NUMBERS = 6


@dataclass
class CocoFile:
    """
    A file of COCO annotations.

    Args:
        path (`str`): Path of the file.
        categories (`dict[Any, dict]`): Categories by id, sorted by id.
        images (`dict[Any, str]`): File names of the images by id.
        annotations (`list[dict]`): Annotations, each for one of these images and categories.
    """

    path: str
    categories: dict[Any, dict[str, Any]]
    images: dict[Any, str]
    annotations: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str) -> "CocoFile":
        """
        Raises:
            ValueError: if the file cannot be read or does not contain COCO annotations, an id is used twice, or an
                annotation refers to an image or a category that the file does not list.
        """
        try:
            content = json.loads(Path(path).read_text())
            categories = sorted(content["categories"], key=lambda row: row["id"])
            images = [(row["id"], row["file_name"]) for row in content["images"]]
            _check_types("categories", "name", [row["name"] for row in categories], str)
            _check_types("images", "file_name", [name for _, name in images], str)
            _check_types("images", "id", [image_id for image_id, _ in images], int, str)
            for index, row in enumerate(content["annotations"]):
                if not isinstance(row, dict):
                    raise ValueError(f"annotation {index} must be a dictionary, got {reprlib.repr(row)}")
            _check_unique("categories", [row["id"] for row in categories])
            _check_unique("images", [image_id for image_id, _ in images])
            _check_unique("annotations", [row["id"] for row in content["annotations"] if row.get("id") is not None])
            file = cls(path, {row["id"]: row for row in categories}, dict(images), content["annotations"])
            for row in file.annotations:
                file._check_references(row)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"{path} must hold COCO annotations: {reason}") from error
        names = file.names
        if len(set(names)) < max(1, len(names)):
            raise ValueError(f"{path} must name classes of different names, got classes {shorten(names)}")
        return file

    @property
    def names(self) -> list[str]:
        """Names of the categories, sorted by id."""
        return [row["name"] for row in self.categories.values()]

    def _check_references(self, row: Mapping[str, Any]):
        for key, known in (("image_id", self.images), ("category_id", self.categories)):
            if row[key] not in known:
                raise ValueError(
                    f"an annotation of an image or a category that it does not list: annotation {row.get('id')} has "
                    f"the {key} {row[key]!r}"
                )


def _check_types(kind: str, key: str, values: Sequence[Any], *types: type):
    """Raise a `ValueError` unless all values have the same type, one of the given ones."""
    for value in values:
        if type(value) not in types or type(value) is not type(values[0]):
            wanted = " or ".join(f"all of type {wanted.__name__}" for wanted in types)
            raise ValueError(f"the {key} of the {kind} must be {wanted}, got {value!r}")


def _check_unique(kind: str, ids: Sequence[Any]):
    seen = set()
    for value in ids:
        if value in seen:
            raise ValueError(f"two {kind} have the id {value!r}")
        seen.add(value)


def read_coco(folder: str, annotation_file: str, keys: Sequence[str]) -> tuple[Dataset, list[str]]:
    """
    Rows of a folder with COCO annotations, and the class names in the order of their ids.

    Args:
        folder (`str`): Folder of the images.
        annotation_file (`str`): JSON file with COCO annotations.
        keys (`Sequence[str]`): Keys of an annotation to keep if present. `category_id` is always kept and becomes the
            index of the class. Polygons of a `segmentation` become lists of alternating x and y.

    Raises:
        ValueError: if the file cannot be read or is inconsistent, an image is missing, or no polygon of an object has
            three corners.
    """
    file = CocoFile.read(annotation_file)
    index = {category_id: place for place, category_id in enumerate(file.categories)}
    annotations = []
    for row in file.annotations:
        kept = {name: row[name] for name in keys if name in row}
        if "segmentation" in kept:
            name = f"{annotation_file}: annotation {row.get('id')} of image {row['image_id']!r}"
            kept["segmentation"] = flatten_polygons(kept["segmentation"], name)
        annotations.append((row["image_id"], {"category_id": index[row["category_id"]], **kept}))
    return make_rows(folder, file, annotations), file.names


def make_rows(folder: str, file: CocoFile, annotations: Sequence[tuple[Any, dict[str, Any]]]) -> Dataset:
    """
    One row for each image of a file.

    Args:
        folder (`str`): Folder of the images.
        file ([`CocoFile`]): Lists the images.
        annotations (`Sequence[tuple[Any, dict]]`): Pairs of an image id and the annotation of an object in the image.

    Raises:
        ValueError: if an image is missing.
    """
    paths = {image_id: Path(folder) / name for image_id, name in file.images.items()}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing or not paths:
        raise ValueError(
            f"{file.path} must name images that exist in {folder}, got {len(paths)} images, missing "
            f"{[str(path) for path in missing[:3]]}"
        )
    objects = {image_id: [] for image_id in paths}
    for image_id, annotation in annotations:
        objects[image_id].append(annotation)
    rows = {
        IMAGE: list(map(str, paths.values())),
        IMAGE_ID: list(paths),
        ANNOTATIONS: list(map(json.dumps, objects.values())),
    }
    return Dataset.from_dict(rows).cast_column(IMAGE, Image())


def renumber(rows: Dataset, own: Sequence[str], names: Sequence[str], split: str) -> Dataset:
    """The rows of [`read_coco`] with `category_id` converted to indices into other names."""
    places, changed = find_places(own, names, split), []
    for row in rows.select_columns([ANNOTATIONS]):
        objects = json.loads(row[ANNOTATIONS])
        changed.append(json.dumps([{**found, "category_id": places[found["category_id"]]} for found in objects]))
    return rows.remove_columns([ANNOTATIONS]).add_column(ANNOTATIONS, changed)


def flatten_polygons(segmentation: Any, name: str) -> Any:
    """
    Convert polygons to COCO's form, lists of alternating x and y, from this form or from pairs (x, y).

    Polygons with fewer than three corners are dropped if the object has others. A value that is not a list of polygons
    is returned unchanged.

    Args:
        segmentation: `segmentation` of an annotation.
        name (`str`): Name of the annotation in error messages.

    Raises:
        ValueError: if no polygon has three corners, or a polygon has an odd number of coordinates.
    """
    if not isinstance(segmentation, (list, tuple)) or not segmentation or not all(map(_is_list, segmentation)):
        return segmentation
    polygons = [list(polygon) for polygon in join_pairs(segmentation)]
    odd = [polygon for polygon in polygons if len(polygon) % 2]
    if odd:
        raise ValueError(f"{name}: a polygon must have an x and a y for each corner, got {len(odd[0])} numbers")
    enclosing = [polygon for polygon in polygons if len(polygon) >= MIN_NUMBERS]
    if not enclosing:
        corners = max(len(polygon) // 2 for polygon in polygons)
        raise ValueError(f"{name}: a polygon must have three corners or more, got {corners}: {segmentation}")
    return enclosing


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
