# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The training and validation split of a task's data set."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute
from datasets import Dataset, DatasetBuilder, DatasetDict, Image

from .arguments import FolderArguments
from .class_names import KnownNames
from .data_files import load_parts
from .labelled_rows import Labels, cast_images, check_columns, match_classes


@dataclass(frozen=True)
class DataFormat:
    """
    The parts of data loading that depend on the task.

    Args:
        read_folders (`Callable[[dict[str, str]], DatasetDict]`): Folder of each split -> its rows.
        images (`Mapping[str, str]`): Image columns, by the name of the argument that names them.
        columns (`Mapping[str, str]`): All other columns that the task uses, by the name of the argument.
        labels ([`Labels`], *optional*): The class ids in the rows; without it, the splits are not matched.
        check (`Callable[[DatasetBuilder], None]`, *optional*): Raises an error for an unsuitable data set.
    """

    read_folders: Callable[[dict[str, str]], DatasetDict]
    images: Mapping[str, str]
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Labels | None = None
    check: Callable[[DatasetBuilder], None] | None = None


def load_data(
    args: FolderArguments,
    hub: Mapping[str, Any],
    seed: int,
    data_format: DataFormat,
    known: KnownNames | None = None,
) -> DatasetDict:
    """
    The validation split and, if there is one, the training split, with images as bytes or path. The class ids of
    both splits refer to one list of names: the checkpoint's if it has the same classes, else the training split's.

    Args:
        args ([`FolderArguments`]): The data set.
        hub (`Mapping[str, Any]`): `cache_dir` and `token` of downloads.
        seed (`int`): Seed of the split and of the choice of samples.
        data_format ([`DataFormat`]): Columns and labels of the task.
        known ([`KnownNames`], *optional*): The classes of the checkpoint that is trained further or evaluated.

    Raises:
        ValueError: if a file or a column is missing or malformed, or class names cannot be matched.
    """
    data = load_splits(args, hub, seed, data_format, known)
    columns = {**data_format.images, **data_format.columns}
    for split, rows in data.items():
        check_columns(rows, split, **columns)
    data = choose_samples(data, args, data_format.images["image_column_name"], seed)
    if data_format.labels is not None:
        for split, rows in data.items():
            data_format.labels.check(rows, split)
    return cast_images(data.select_columns(list(columns.values())), **data_format.images)


def load_splits(
    args: FolderArguments,
    hub: Mapping[str, Any],
    seed: int,
    data_format: DataFormat,
    known: KnownNames | None = None,
) -> DatasetDict:
    """The splits before samples are chosen; arguments and errors as in [`load_data`]."""
    source = source_of(args)
    if source is not None:
        parts = load_parts(**source, **hub, check=data_format.check)
    else:
        folders = by_split(args.train_dir, args.validation_dir)
        parts = {split: [rows] for split, rows in data_format.read_folders(folders).items()}
    data = DatasetDict(match_classes(parts, data_format.labels, known))
    if "validation" not in data:  # never the test split: checkpoints are selected on the validation split
        if "train" not in data:
            raise ValueError(f"the data must have a split `validation` or `train`, got {sorted(data)}")
        args.holds_back = True
        split = data["train"].train_test_split(args.train_val_split, seed=seed)
        data = DatasetDict(train=split["train"], validation=split["test"])
    # A test split is not used and may lack columns.
    return DatasetDict({split: data[split] for split in ("train", "validation") if split in data})


def source_of(args: FolderArguments) -> dict[str, Any] | None:
    """Arguments of `load_dataset` for a Hub data set or parquet files; None for folders."""
    if getattr(args, "dataset_name", None) is not None:
        return {"path": args.dataset_name, "name": args.dataset_config_name}
    files = by_split(getattr(args, "train_file", None), getattr(args, "validation_file", None))
    return {"path": "parquet", "data_files": files} if files else None


def by_split(train: str | None, validation: str | None) -> dict[str, str]:
    """The given values by the names of their splits."""
    return {split: value for split, value in (("train", train), ("validation", validation)) if value is not None}


def choose_samples(data: DatasetDict, args: FolderArguments, image_column: str, seed: int) -> DatasetDict:
    """
    At most `max_train_samples` and `max_eval_samples` random rows of the splits; `exclude_train_names` is applied to
    the training split first.

    Raises:
        ValueError: if `exclude_train_names` matches no training image or all of them, or their names are not known.
    """
    if args.exclude_train_names is not None and "train" in data:
        data = DatasetDict({**data, "train": exclude_names(data["train"], image_column, args.exclude_train_names)})
    chosen = {}
    for split, limit in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if split not in data:
            continue
        rows = data[split]
        chosen[split] = rows if limit is None else rows.shuffle(seed=seed).select(range(min(limit, len(rows))))
    return DatasetDict(chosen)


def exclude_names(rows: Dataset, image_column: str, pattern: str) -> Dataset:
    """
    The rows whose image's file name, without folders, does not match the regular expression.

    Raises:
        ValueError: if the expression matches no name or all of them, or an image has no name.
    """
    names = file_names(rows, image_column)
    unnamed = next((index for index, name in enumerate(names) if not name), None)
    if unnamed is not None:
        raise ValueError(
            f"--exclude_train_names needs the file names of the training images, but column {image_column!r} has none "
            f"for training sample {unnamed}"
        )
    kept = [index for index, name in enumerate(names) if not re.search(pattern, name)]
    if len(kept) in (0, len(names)):
        which = "all" if not kept else "none"
        raise ValueError(
            f"--exclude_train_names must match some of the training images' file names, got {pattern!r}, which matches "
            f"{which} of {len(names)}, such as {names[:3]}"
        )
    return rows.select(kept)


def file_names(rows: Dataset, image_column: str) -> list[str | None]:
    """The file name of each row's image, without folders; None if the rows have the image's bytes only."""
    images = rows.select_columns([image_column]).cast_column(image_column, Image(decode=False)).with_format("arrow")
    names = []
    for batch in images.iter(batch_size=1000):
        paths = pyarrow.compute.struct_field(batch[image_column], "path").to_pylist()
        # Files in archives are written as zip://folder/name.png::archive.zip.
        names += [path and re.split(r"[/\\]", path.split("::")[0])[-1] for path in paths]
    return names
