# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""COCO's annotation files as rows of a data set, for detection and for poses."""

import json
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Image


# Columns of the rows; annotations are JSON, since their values differ in type.
IMAGE, IMAGE_ID, ANNOTATIONS = "image", "image_id", "annotations"


def read_coco(folder: str, annotation_file: str, keys: Sequence[str]) -> tuple[Dataset, list[str]]:
    """
    Rows of a folder with COCO annotations, and the names of the classes in the order of their ids.

    Args:
        folder (`str`): Where the images lie.
        annotation_file (`str`): COCO's JSON.
        keys (`Sequence[str]`): What is kept of an annotation, if it is there, beside `category_id`, which becomes the
            index of the class.

    Raises:
        ValueError: if the file cannot be read or does not fit together, or an image is missing.
    """
    try:
        content = json.loads(Path(annotation_file).read_text())
        names = {row["id"]: row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])}
        paths = {image["id"]: Path(folder) / image["file_name"] for image in content["images"]}
        objects = {image_id: [] for image_id in paths}
        index = {category_id: place for place, category_id in enumerate(names)}
        for row in content["annotations"]:
            if row["image_id"] not in objects or row["category_id"] not in index:
                raise ValueError(f"an annotation of an image or a category that it does not list: {row}")
            kept = {name: row[name] for name in keys if name in row}
            objects[row["image_id"]].append({"category_id": index[row["category_id"]], **kept})
    except OSError as error:
        raise ValueError(f"{annotation_file} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{annotation_file} must hold COCO annotations: {error!r}") from error
    missing = [path for path in paths.values() if not path.is_file()]
    if missing or not paths or len(set(names.values())) < max(1, len(names)):
        raise ValueError(
            f"{annotation_file} must name images that are there and classes of different names, got {len(paths)} "
            f"images, missing {[str(path) for path in missing[:3]]}, classes {list(names.values())[:100]}"
        )
    rows = {
        IMAGE: list(map(str, paths.values())),
        IMAGE_ID: list(paths),
        ANNOTATIONS: list(map(json.dumps, objects.values())),
    }
    return Dataset.from_dict(rows).cast_column(IMAGE, Image()), list(names.values())
