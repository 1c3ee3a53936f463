# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the detection scripts."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from coco_files import ANNOTATIONS, IMAGE, read_coco
from datasets import ClassLabel, Dataset, DatasetDict, Image
from training_sources import (
    ModelArguments,
    SourceArguments,
    by_split,
    check_columns,
    choose_samples,
    load_model,
    load_splits,
)
from transformers import PreTrainedModel

from clustr_hf import ClusTRDetectionImageProcessor


# Sides of images in pixels (Table A4 of the paper): the shorter one, and what the longer one may be.
SHORT_SIDE, LONG_SIDE = 800, 1333
BOX_FORMATS = ("xywh", "xyxy")
# What is kept of COCO's annotations beside the category.
OBJECT_KEYS = ("bbox", "area", "iscrowd", "segmentation")


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


def load_data(args: DataArguments, model_args: ModelArguments, seed: int) -> tuple[DatasetDict, list[str]]:
    """
    Training and validation split, and the names of the classes. Rows have an image, as bytes or path, and what
    [`ParseObjects`] reads.

    Raises:
        ValueError: if a column or a file is missing, or annotations do not fit together.
    """
    labels: dict[str, list[str]] = {}  # of each split

    def load_folders(folders: dict[str, str]) -> DatasetDict:
        files, data = by_split(args.train_annotation_file, args.validation_annotation_file), {}
        for split, folder in folders.items():
            data[split], labels[split] = read_coco(folder, files[split], OBJECT_KEYS)
        return DatasetDict(data)

    given = args
    if args.uses_folders:
        args = replace(args, image_column_name=IMAGE, objects_column_name=ANNOTATIONS)
    data = load_splits(args, model_args, seed, load_folders)
    given.holds_back = args.holds_back
    columns = {"image_column_name": args.image_column_name, "objects_column_name": args.objects_column_name}
    for split in data:
        check_columns(data[split], **columns)
        if not args.uses_folders:
            labels[split] = class_names(data[split], args)
    names = labels.get("train") or labels["validation"]
    others = labels.get("validation", names)  # not there where it is split off
    unknown = [name for name in others if name not in names]
    if unknown or (args.uses_folders and others != names):
        raise ValueError(f"the validation data must have the classes of the training data, {names}, got {others}")
    data = choose_samples(data, args, seed).select_columns(list(columns.values()))
    return data.cast_column(args.image_column_name, Image(decode=False)), names


def class_names(rows: Dataset, args: DataArguments) -> list[str]:
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
        objects = (as_lists(value) for value in rows[args.objects_column_name])
        names = {name for value in objects for name in value.get(args.category_key) or ()}
        return sorted(names - {None})
    raise ValueError(f"the classes in {args.objects_column_name!r} must be a ClassLabel or strings, got {category}")


def as_lists(objects: dict | list[dict] | None) -> dict[str, list]:
    """A row's objects as a dictionary of lists."""
    if isinstance(objects, dict):
        return objects
    return {key: [row[key] for row in objects] for key in (objects[0] if objects else ())}


class ParseObjects:
    """
    Row -> list of COCO's dictionaries, whose `category_id` is the index of the class.

    Args:
        args ([`DataArguments`]): How the objects are written.
        labels (`list[str]`): Names of the classes.
    """

    def __init__(self, args: DataArguments, labels: list[str]):
        self.args, self.index = args, {label: place for place, label in enumerate(labels)}

    @property
    def image_column(self) -> str:
        return IMAGE if self.args.uses_folders else self.args.image_column_name

    def __call__(self, row: dict) -> list[dict[str, Any]]:
        args = self.args
        if args.uses_folders:
            return json.loads(row[ANNOTATIONS])
        columns = {name: values for name, values in as_lists(row[args.objects_column_name]).items() if values}
        annotations = []
        for place, box in enumerate(columns.get("bbox", ())):
            category = columns[args.category_key][place]
            annotation = {"category_id": self.index[category] if isinstance(category, str) else category}
            if args.box_format == "xyxy" and box is not None and len(box) == 4:
                box = [*box[:2], box[2] - box[0], box[3] - box[1]]
            annotation["bbox"] = box
            for name in ("area", "iscrowd", "segmentation"):
                if name in columns:
                    annotation[name] = columns[name][place]
            annotations.append(annotation)
        return annotations


def detection_processor(processor: ClusTRDetectionImageProcessor, short_side: int | None):
    """The processor that resizes the shorter side to `short_side` pixels; None leaves the size."""
    if short_side is None:
        return processor
    size = {"shortest_edge": short_side, "longest_edge": round(short_side * LONG_SIDE / SHORT_SIDE)}
    return type(processor).from_dict({**processor.to_dict(), "size": size})


def load_detector(
    args: ModelArguments, labels: list[str], model_class: type[PreTrainedModel], auto_class: type, **fields: Any
) -> tuple[PreTrainedModel, ClusTRDetectionImageProcessor]:
    """Detector for the labels, and its image processor; `fields` are those of the configuration."""
    processor = ClusTRDetectionImageProcessor()
    model, loaded = load_model(args, labels, model_class, auto_class, processor, **fields)
    if not hasattr(loaded, "post_process_object_detection"):  # a classifier's
        loaded = processor
    return model, detection_processor(loaded, args.image_size)
