# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the detection scripts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features
from transformers import PreTrainedModel

from .... import ClusTRDetectionImageProcessor
from ...data.class_names import KnownNames, find_place, find_places, shorten
from ...data.coco_files import ANNOTATIONS, IMAGE, flatten_polygons, read_coco, renumber
from ...data.labelled_rows import Labels, cast_images, check_columns, class_labels, replace_column
from ...sources import (
    ModelArguments,
    SourceArguments,
    by_split,
    choose_samples,
    load_model,
    load_splits,
)


# Sides of images in pixels (Table A4 of the paper): the shorter one, and what the longer one may be.
SHORT_SIDE, LONG_SIDE = 800, 1333
BOX_FORMATS = ("xywh", "xyxy")
# What is kept of COCO's annotations beside the category.
OPTIONAL_KEYS = ("area", "iscrowd", "segmentation")
OBJECT_KEYS = ("bbox", *OPTIONAL_KEYS)


@dataclass
class DataArguments(SourceArguments):
    """
    Which images to train and evaluate on: a folder of images with a COCO annotation file for each split, or rows with a
    column of objects, as data sets for detection on the Hub have it.
    """

    train_annotation_file: str | None = field(
        default=None, metadata={"help": "COCO annotations (JSON) of the images in --train_dir."}
    )
    validation_annotation_file: str | None = field(default=None, metadata={"help": "The same for --validation_dir."})
    objects_column_name: str = field(
        default="objects", metadata={"help": "Column of the objects: a dictionary of lists `bbox`, `category` ..."}
    )
    category_key: str = field(default="category", metadata={"help": "Key of the classes in it."})
    box_format: str = field(
        default="xywh", metadata={"help": f"Format of the boxes in it, one of {BOX_FORMATS}, in pixels."}
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
        """Whether images and annotations are COCO's files, and not rows with both."""
        return self.train_dir is not None or self.validation_dir is not None

    def leave_training_out(self):
        super().leave_training_out()
        if self.train_dir is None:
            self.train_annotation_file = None


def load_data(
    args: DataArguments,
    model_args: ModelArguments,
    seed: int,
    with_masks: bool = True,
    known: KnownNames | None = None,
) -> tuple[DatasetDict, list[str]]:
    """
    Training and validation split, and the names of the classes. Rows have an image, as bytes or path, and what
    [`ParseObjects`] reads. The classes of both splits count in the same list of names: the checkpoint's if it has the
    same classes, else the training split's.

    Args:
        args, model_args: What to load, and where downloads are kept.
        seed (`int`): Of the split and of the choice of samples.
        with_masks (`bool`): Whether what COCO files say of masks is read.
        known ([`KnownNames`], *optional*): The classes of the checkpoint that is trained further or evaluated.

    Raises:
        ValueError: if a column or a file is missing, annotations do not fit together, or the names of classes cannot
            be matched.
    """
    given = args
    if args.uses_folders:
        args = replace(args, image_column_name=IMAGE, objects_column_name=ANNOTATIONS)
    objects = Objects(args, OBJECT_KEYS if with_masks else [key for key in OBJECT_KEYS if key != "segmentation"])
    data = load_splits(args, model_args, seed, objects.read_folders, objects, known)
    given.holds_back = args.holds_back
    columns = [args.image_column_name, args.objects_column_name]
    data = choose_samples(data, args, seed).select_columns(columns)
    return cast_images(data, image_column_name=args.image_column_name), objects.chosen


class Objects(Labels):
    """
    The classes of objects: in COCO's annotations, or in a column.

    Args:
        args ([`DataArguments`]): How the objects are written.
        keys (`Sequence[str]`): What is kept of COCO's annotations.
    """

    def __init__(self, args: DataArguments, keys: Sequence[str]):
        super().__init__()
        self.args, self.keys = args, keys
        self.of_file: dict[str, list[str]] = {}  # names of the COCO file of a split

    def read_folders(self, folders: dict[str, str]) -> DatasetDict:
        """Folder of each split -> its rows."""
        args, data = self.args, {}
        files = by_split(args.train_annotation_file, args.validation_annotation_file)
        for split, folder in folders.items():
            data[split], self.of_file[split] = read_coco(folder, files[split], self.keys)
        return DatasetDict(data)

    def names(self, rows: Dataset, split: str) -> list[str]:
        column = self.args.objects_column_name
        check_columns(rows, split, image_column_name=self.args.image_column_name, objects_column_name=column)
        return self.of_file[split] if split in self.of_file else class_names(rows, self.args, split)

    def renumber(self, rows: Dataset, names: list[str], split: str) -> Dataset:
        if split in self.of_file:
            return renumber(rows, self.of_file[split], names, split)
        column, key = self.args.objects_column_name, self.args.category_key
        path, own = (column, key), class_names(rows, self.args, split)
        if path not in dict(class_labels(rows.features)):
            return rows  # names, not ids
        function = partial(
            _renumber_objects, column=column, key=key, split=split, places=find_places(own, names, split)
        )
        features = Features({column: replace_names(rows.features[column], key, names)})
        objects = rows.select_columns([column])
        return replace_column(rows, objects.map(function, with_indices=True, features=features))


def _renumber_objects(row: dict, index: int, column: str, key: str, split: str, places: list[int]) -> dict:
    """A row's objects with other ids of classes, each checked; one that is missing is left for the reader to name."""
    objects, sample = row[column], f"an object of {split} sample {index}"

    def change(label: int | None) -> int | None:
        return None if label is None else find_place(places, label, sample)

    if isinstance(objects, dict):
        return {column: {**objects, key: [change(label) for label in objects[key] or ()]}}
    return {column: [found and {**found, key: change(found[key])} for found in objects or ()]}


def replace_names(feature: Any, key: str, names: list[str]) -> Any:
    """A column of objects with other names of its classes."""
    label = ClassLabel(names=names)
    if isinstance(feature, dict):
        is_one = isinstance(feature[key], ClassLabel)
        return {**feature, key: label if is_one else replace(feature[key], feature=label)}
    return replace(feature, feature=replace_names(feature.feature, key, names))


def class_names(rows: Dataset, args: DataArguments, split: str = "training") -> list[str]:
    """The names of the classes of a column of objects: those of its ClassLabel, or else the strings in it, sorted."""
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
    """
    A row's objects as a dictionary of lists; raises a `ValueError` for an object that is none.
    """
    if isinstance(objects, dict):
        return objects
    for place, found in enumerate(objects or ()):
        if not isinstance(found, dict):
            raise ValueError(f"object {place} must be a dictionary, got {found!r}")
    return {key: [row[key] for row in objects] for key in (objects[0] if objects else ())}


class ParseObjects:
    """
    Row -> list of COCO's dictionaries, whose `category_id` is the index of the class.

    Args:
        args ([`DataArguments`]): How the objects are written.
        labels (`list[str]`): Names of the classes.
        with_masks (`bool`): Whether polygons are checked, and brought into COCO's form.
    """

    def __init__(self, args: DataArguments, labels: list[str], with_masks: bool = True):
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
        """The objects of a row, each as a dictionary by its keys in the data."""
        args, lists = self.args, as_lists(row[self.args.objects_column_name])
        names = ("bbox", args.category_key, *OPTIONAL_KEYS)
        # Optional keys may have empty lists, where a data set has them for all of its rows.
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


def detection_processor(processor: ClusTRDetectionImageProcessor, short_side: int | None):
    """The processor that resizes the shorter side to `short_side` pixels; None leaves the size."""
    if short_side is None:
        return processor
    size = {"shortest_edge": short_side, "longest_edge": round(short_side * LONG_SIDE / SHORT_SIDE)}
    return type(processor).from_dict({**processor.to_dict(), "size": size})


def head_of(model_class: type[PreTrainedModel]) -> tuple[str, ...]:
    """What the names of classes with a head for the task have in them."""
    return (model_class.__name__.removeprefix("ClusTR"),)


def load_detector(
    args: ModelArguments, labels: list[str], model_class: type[PreTrainedModel], auto_class: type, **fields: Any
) -> tuple[PreTrainedModel, ClusTRDetectionImageProcessor]:
    """Detector for the labels, and its image processor; `fields` are those of the configuration."""
    processor = ClusTRDetectionImageProcessor()
    model, loaded = load_model(args, labels, model_class, auto_class, processor, **fields)
    if not hasattr(loaded, "post_process_object_detection"):  # a classifier's
        loaded = processor
    return model, detection_processor(loaded, args.image_size)
