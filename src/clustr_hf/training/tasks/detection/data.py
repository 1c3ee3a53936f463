# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data sets for object detection and instance segmentation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features

from ....name_lists import shorten
from ...data.arguments import CocoArguments, DataArguments
from ...data.class_names import find_place, find_places
from ...data.coco_files import ANNOTATIONS, IMAGE, flatten_polygons, read_coco, renumber
from ...data.data_files import class_labels
from ...data.labelled_rows import Labels, check_columns, replace_column
from ...data.splits import DataFormat, by_split


BOX_FORMATS = ("xywh", "xyxy")
# Keys of COCO annotations that are kept, apart from the category.
OPTIONAL_KEYS = ("area", "iscrowd", "segmentation")
OBJECT_KEYS = ("bbox", *OPTIONAL_KEYS)


@dataclass
class DetectionDataArguments(CocoArguments, DataArguments):
    """
    A data set of images with objects: a folder of images with a COCO annotation file for each split, or rows with a
    column of objects, as in detection data sets on the Hub.
    """

    objects_column_name: str = field(
        default="objects",
        metadata={"help": "Column with the objects, a dictionary of the lists `bbox`, `category` and others."},
    )
    category_key: str = field(
        default="category", metadata={"help": "Key of the class ids or names in --objects_column_name."}
    )
    box_format: str = field(
        default="xywh",
        metadata={"help": f"Format of the boxes in --objects_column_name, in pixels, one of {BOX_FORMATS}."},
    )

    def __post_init__(self):
        super().__post_init__()
        for split in ("train", "validation"):
            folder, file = getattr(self, f"{split}_dir"), getattr(self, f"{split}_annotation_file")
            if (folder is None) != (file is None):
                raise ValueError(f"--{split}_dir and --{split}_annotation_file go together, got {folder} and {file}")
        if self.box_format not in BOX_FORMATS:
            raise ValueError(f"--box_format must be one of {BOX_FORMATS}, got {self.box_format!r}")

    @property
    def uses_folders(self) -> bool:
        """Whether the data set consists of folders with COCO annotation files."""
        return self.train_dir is not None or self.validation_dir is not None

    def leave_training_out(self) -> None:
        super().leave_training_out()
        if self.train_dir is None:
            self.train_annotation_file = None


def detection_format(args: DetectionDataArguments, with_masks: bool = True) -> DataFormat:
    """
    Format of the data set; the class names are in `labels.chosen` of the format after loading. [`ParseObjects`] reads
    the objects of a row.
    """
    image_column, objects_column = args.image_column_name, args.objects_column_name
    if args.uses_folders:
        image_column, objects_column = IMAGE, ANNOTATIONS
    columns = {"image_column_name": image_column, "objects_column_name": objects_column}
    keys = OBJECT_KEYS if with_masks else [key for key in OBJECT_KEYS if key != "segmentation"]
    objects = Objects(args, columns, keys)
    return DataFormat(
        read_folders=objects.read_folders,
        images={"image_column_name": image_column},
        columns={"objects_column_name": objects_column},
        labels=objects,
    )


class Objects(Labels):
    """
    The classes of objects, in COCO annotations or in a column.

    Args:
        args ([`DetectionDataArguments`]): Format of the objects.
        columns (`Mapping[str, str]`): Columns of the rows, by the name of their argument.
        keys (`Sequence[str]`): Keys of COCO annotations to keep.
    """

    def __init__(self, args: DetectionDataArguments, columns: Mapping[str, str], keys: Sequence[str]):
        super().__init__()
        self.args, self.columns, self.keys = args, columns, keys
        self.of_file: dict[str, list[str]] = {}  # class names of the COCO file of a split

    def read_folders(self, folders: dict[str, str]) -> DatasetDict:
        """Folder of each split -> its rows."""
        args, data = self.args, {}
        files = by_split(args.train_annotation_file, args.validation_annotation_file)
        for split, folder in folders.items():
            data[split], self.of_file[split] = read_coco(folder, files[split], self.keys)
        return DatasetDict(data)

    def names(self, rows: Dataset, split: str) -> list[str]:
        check_columns(rows, split, **self.columns)
        return self.of_file[split] if split in self.of_file else class_names(rows, self.args, split)

    def renumber(self, rows: Dataset, names: list[str], split: str) -> Dataset:
        if split in self.of_file:
            return renumber(rows, self.of_file[split], names, split)
        column, key = self.args.objects_column_name, self.args.category_key
        path, own = (column, key), class_names(rows, self.args, split)
        if path not in dict(class_labels(rows.features)):
            return rows  # the objects have names and no ids
        function = partial(
            _renumber_objects, column=column, key=key, split=split, places=find_places(own, names, split)
        )
        features = Features({column: replace_names(rows.features[column], key, names)})
        objects = rows.select_columns([column])
        return replace_column(rows, objects.map(function, with_indices=True, features=features))


def _renumber_objects(row: dict, index: int, column: str, key: str, split: str, places: list[int]) -> dict:
    """A row's objects with converted class ids, which are checked; a missing id is left to [`ParseObjects`]."""
    objects, sample = row[column], f"an object of {split} sample {index}"

    def change(label: int | None) -> int | None:
        return None if label is None else find_place(places, label, sample)

    if isinstance(objects, dict):
        return {column: {**objects, key: [change(label) for label in objects[key] or ()]}}
    return {column: [found and {**found, key: change(found[key])} for found in objects or ()]}


def replace_names(feature: Any, key: str, names: list[str]) -> Any:
    """The feature of a column of objects with other class names."""
    label = ClassLabel(names=names)
    if isinstance(feature, dict):
        is_one = isinstance(feature[key], ClassLabel)
        return {**feature, key: label if is_one else replace(feature[key], feature=label)}
    return replace(feature, feature=replace_names(feature.feature, key, names))


def class_names(rows: Dataset, args: DetectionDataArguments, split: str = "training") -> list[str]:
    """The class names of a column of objects: those of its ClassLabel, or its distinct strings, sorted."""
    feature = rows.features[args.objects_column_name]
    feature = getattr(feature, "feature", feature)  # a list of dictionaries, or a dictionary of lists
    for key in ("bbox", args.category_key):
        if not isinstance(feature, dict) or key not in feature:
            raise ValueError(
                f"--objects_column_name {args.objects_column_name!r} must have the key {key!r}, got {feature}"
            )
    category = getattr(feature[args.category_key], "feature", feature[args.category_key])
    if isinstance(category, ClassLabel):
        return category.names
    if category.dtype == "string":
        names = set()
        for index, value in enumerate(rows[args.objects_column_name]):
            try:
                names.update(as_lists(value).get(args.category_key) or ())
            except ValueError as error:
                raise ValueError(f"{split} sample {index}: {error}") from error
        return sorted(names - {None})
    raise ValueError(f"the classes in {args.objects_column_name!r} must be a ClassLabel or strings, got {category}")


def as_lists(objects: dict | list[dict] | None) -> dict[str, list]:
    """A row's objects as a dictionary of lists; raises a `ValueError` for an object that is not a dictionary."""
    if isinstance(objects, dict):
        return objects
    for place, found in enumerate(objects or ()):
        if not isinstance(found, dict):
            raise ValueError(f"object {place} must be a dictionary, got {found!r}")
    return {key: [row[key] for row in objects] for key in (objects[0] if objects else ())}


class ParseObjects:
    """
    Row -> list of COCO annotations, whose `category_id` is the index of the class.

    Args:
        args ([`DetectionDataArguments`]): Format of the objects.
        labels (`list[str]`): Class names.
        with_masks (`bool`): Whether polygons are checked and converted to COCO's format.
    """

    def __init__(self, args: DetectionDataArguments, labels: list[str], with_masks: bool = True):
        self.args, self.with_masks = args, with_masks
        self.index = {label: place for place, label in enumerate(labels)}

    @property
    def image_column(self) -> str:
        return IMAGE if self.args.uses_folders else self.args.image_column_name

    def __call__(self, row: dict) -> list[dict[str, Any]]:
        args = self.args
        if args.uses_folders:
            return json.loads(row[ANNOTATIONS])
        return [self._parse_object(place, found) for place, found in enumerate(self._read_objects(row))]

    def _read_objects(self, row: dict) -> list[dict[str, Any]]:
        """The objects of a row as dictionaries with the keys of the data set."""
        args, lists = self.args, as_lists(row[self.args.objects_column_name])
        names = ("bbox", args.category_key, *OPTIONAL_KEYS)
        # A data set that has optional keys in all rows may leave their lists empty.
        columns = {name: lists.get(name) or [] for name in names if name not in OPTIONAL_KEYS or lists.get(name)}
        for name, values in columns.items():
            if len(values) != len(columns["bbox"]):
                raise ValueError(
                    f"{args.objects_column_name!r} must have as many values of {name!r} as boxes, "
                    f"{len(columns['bbox'])}, got {len(values)}"
                )
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def _parse_object(self, place: int, found: dict[str, Any]) -> dict[str, Any]:
        args, category, box = self.args, found.pop(self.args.category_key), found["bbox"]
        if isinstance(category, str) and category not in self.index:
            raise ValueError(f"object {place} must have one of the classes {shorten(self.index)}, got {category!r}")
        if args.box_format == "xyxy":
            box = _to_size(box, place)
        annotation = {**found, "category_id": self.index.get(category, category), "bbox": box}
        if self.with_masks and "segmentation" in annotation:
            annotation["segmentation"] = flatten_polygons(annotation["segmentation"], f"object {place}")
        return annotation


def _to_size(corners: Any, place: int) -> list[float]:
    """(x0, y0, x1, y1) as (x, y, width, height)."""
    are_numbers = isinstance(corners, (list, tuple)) and all(isinstance(value, Real) for value in corners)
    if not are_numbers or len(corners) != 4 or corners[2] < corners[0] or corners[3] < corners[1]:
        raise ValueError(f"object {place} must have a box (x0, y0, x1, y1), x0 <= x1, y0 <= y1, got {corners!r}")
    return [*corners[:2], corners[2] - corners[0], corners[3] - corners[1]]
