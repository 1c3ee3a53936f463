# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""COCO's annotation files as rows of a data set, for detection and for poses."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from ...remote_code.annotations_clustr import join_pairs
from .class_names import find_places, shorten


# Columns of the rows; annotations are JSON, since their values differ in type.
IMAGE, IMAGE_ID, ANNOTATIONS = "image", "image_id", "annotations"
# Numbers of a polygon with the fewest corners that enclose something.
LEAST_NUMBERS = 6


@dataclass
class CocoFile:
    """
    A file of COCO annotations.

    Args:
        path (`str`): Where it lies.
        categories (`dict[Any, dict]`): Its categories by their ids, in the order of these.
        images (`dict[Any, str]`): The images' file names by their ids.
        annotations (`list[dict]`): Its annotations, each of one of these images and categories.
    """

    path: str
    categories: dict[Any, dict[str, Any]]
    images: dict[Any, str]
    annotations: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str) -> "CocoFile":
        """
        Raises:
            ValueError: if the file cannot be read or does not hold COCO annotations, an id is used twice, or an
                annotation is of an image or a category that the file does not list.
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
            _refuse_doubles("categories", [row["id"] for row in categories])
            _refuse_doubles("images", [image_id for image_id, _ in images])
            _refuse_doubles("annotations", [row["id"] for row in content["annotations"] if row.get("id") is not None])
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
        """The names of the categories, in the order of their ids."""
        return [row["name"] for row in self.categories.values()]

    def _check_references(self, row: Mapping[str, Any]):
        for key, known in (("image_id", self.images), ("category_id", self.categories)):
            if row[key] not in known:
                raise ValueError(
                    f"an annotation of an image or a category that it does not list: annotation {row.get('id')} has "
                    f"the {key} {row[key]!r}"
                )


def _check_types(kind: str, key: str, values: Sequence[Any], *types: type):
    """Raise unless all values are of one of the types, the same one."""
    for value in values:
        if type(value) not in types or type(value) is not type(values[0]):
            wanted = " or ".join(f"all of type {wanted.__name__}" for wanted in types)
            raise ValueError(f"the {key} of the {kind} must be {wanted}, got {value!r}")


def _refuse_doubles(kind: str, ids: Sequence[Any]):
    seen = set()
    for value in ids:
        if value in seen:
            raise ValueError(f"two {kind} have the id {value!r}")
        seen.add(value)


def read_coco(folder: str, annotation_file: str, keys: Sequence[str]) -> tuple[Dataset, list[str]]:
    """
    Rows of a folder with COCO annotations, and the names of the classes in the order of their ids.

    Args:
        folder (`str`): Where the images lie.
        annotation_file (`str`): COCO's JSON.
        keys (`Sequence[str]`): What is kept of an annotation, if it is there, beside `category_id`, which becomes the
            index of the class. Polygons of a `segmentation` become lists of numbers, x and y by turns.

    Raises:
        ValueError: if the file cannot be read or does not fit together, an image is missing, or no polygon of an object
            has three corners.
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
        folder (`str`): Where the images lie.
        file ([`CocoFile`]): Which images these are.
        annotations (`Sequence[tuple[Any, dict]]`): Pairs of the id of an image and what is known of an object in it.

    Raises:
        ValueError: if an image is missing.
    """
    paths = {image_id: Path(folder) / name for image_id, name in file.images.items()}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing or not paths:
        raise ValueError(
            f"{file.path} must name images that are there in {folder}, got {len(paths)} images, missing "
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
    """The rows of [`read_coco`] with `category_id` as the index among other names."""
    places, changed = find_places(own, names, split), []
    for row in rows.select_columns([ANNOTATIONS]):
        objects = json.loads(row[ANNOTATIONS])
        changed.append(json.dumps([{**found, "category_id": places[found["category_id"]]} for found in objects]))
    return rows.remove_columns([ANNOTATIONS]).add_column(ANNOTATIONS, changed)


def flatten_polygons(segmentation: Any, name: str) -> Any:
    """
    Polygons as COCO has them, x and y by turns, of polygons as pairs (x, y) or as COCO has them.

    Polygons of fewer than three corners enclose nothing; they are left out beside others. What is no list of polygons
    is returned as it is.

    Args:
        segmentation: Of an annotation.
        name (`str`): What to call the annotation in an error.

    Raises:
        ValueError: if no polygon has three corners, or a polygon has an odd number of numbers.
    """
    if not isinstance(segmentation, (list, tuple)) or not segmentation or not all(map(_is_list, segmentation)):
        return segmentation
    polygons = [list(polygon) for polygon in join_pairs(segmentation)]
    odd = [polygon for polygon in polygons if len(polygon) % 2]
    if odd:
        raise ValueError(f"{name}: a polygon must have an x and a y for each corner, got {len(odd[0])} numbers")
    enclosing = [polygon for polygon in polygons if len(polygon) >= LEAST_NUMBERS]
    if not enclosing:
        corners = max(len(polygon) // 2 for polygon in polygons)
        raise ValueError(f"{name}: a polygon must have three corners or more, got {corners}: {segmentation}")
    return enclosing


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
