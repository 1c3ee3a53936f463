# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the image classification scripts, with and without Trainer."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from transformers import AutoModelForImageClassification

from .... import ClusTRForImageClassification, ClusTRImageProcessor
from ...baselines import PeerArguments, load_peer
from ...data.class_names import KnownNames, shorten
from ...data.labelled_rows import LabelColumn, cast_images, check_columns, load_parts, match_classes, naming_files
from ...sources import (
    ModelArguments,
    SourceArguments,
    by_split,
    choose_samples,
    known_names,
    load_model,
    load_splits,
)


# What the names of classes with a head for the task have in them; the second one is peer_models.py's.
HEADS = ("ForImageClassification", "ForSmallImages")
# Folders of these names are splits, not classes.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


@dataclass
class DataArguments(SourceArguments):
    """
    Which images to train and evaluate on; those of `--train_dir` lie in one sub-folder for each class, or deeper in it.
    """

    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})


def load_data(
    args: DataArguments,
    model_args: ModelArguments,
    seed: int,
    known: KnownNames | None = None,
) -> DatasetDict:
    """
    Training and validation split of a Hub data set, parquet files or image folders, with images as bytes or path. The
    labels of both count in the same list of names: the checkpoint's if it has the same classes, else the training
    split's.

    Args:
        args, model_args: What to load, and where downloads are kept.
        seed (`int`): Of the split and of the choice of samples.
        known ([`KnownNames`], *optional*):
            The classes of the checkpoint that is trained further or evaluated; default: that of `model_args`.

    Raises:
        ValueError: if a column, images of a class or a training class is missing, a label is out of range, or the names
            of classes cannot be matched.
    """
    known = known or known_names(model_args, HEADS)
    check_nesting(args, model_args)
    labels = LabelColumn(args.label_column_name)
    data = load_splits(args, model_args, seed, read_class_folders, labels, known)
    for split, rows in data.items():
        check_columns(rows, split, image_column_name=args.image_column_name)
    data = choose_samples(data, args, seed)
    for split, rows in data.items():
        check_labels(rows, args.label_column_name, split)
    return cast_images(data, image_column_name=args.image_column_name)


def load_stream(
    args: DataArguments, model_args: ModelArguments, known: KnownNames | None = None
) -> tuple[IterableDataset | None, int | None, Dataset]:
    """
    Training split as a stream, if there is one, how many samples it has if that is known, and the validation split on
    the disk; images come as bytes. Labels are as in [`load_data`].

    Raises:
        ValueError: if there is no validation split, a column is missing, images lie in folders, samples are to be
            chosen, or the names of classes cannot be matched.
    """
    if args.max_train_samples is not None:
        raise ValueError("--max_train_samples does not go with --streaming: use --max_train_steps")
    if args.exclude_train_names is not None:
        raise ValueError("--exclude_train_names does not go with --streaming: a stream's names are not known before")
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    if args.dataset_name is not None:
        source = {"path": args.dataset_name, "name": args.dataset_config_name, **hub}
    elif args.train_file is not None or args.validation_file is not None:
        source = {"path": "parquet", "data_files": by_split(args.train_file, args.validation_file), **hub}
    else:
        raise ValueError("--streaming needs --dataset_name or --train_file: folders have random access")
    check_nesting(args, model_args)
    parts = load_parts(**source, streaming=True)
    if "validation" not in parts:
        raise ValueError(f"--streaming needs a validation split, got only {sorted(parts)}")
    num_samples = None
    if "train" in parts:
        sizes = parts["train"][0].info.splits or {}
        num_samples = sizes["train"].num_examples if "train" in sizes else None
    labels = LabelColumn(args.label_column_name)
    for split in {"train", "validation"} & parts.keys():
        check_columns(parts[split][0], split, image_column_name=args.image_column_name)
        parts[split] = [rows.cast_column(args.image_column_name, Image(decode=False)) for rows in parts[split]]
    streams = match_classes(parts, labels, known or known_names(model_args, HEADS))
    validation = streams["validation"]
    if args.max_eval_samples is not None:
        validation = validation.take(args.max_eval_samples)
    # A generator that datasets can pickle gives its cache a name that stays the same from run to run.
    source = {"stream": validation, "column": args.label_column_name}
    with naming_files(validation):
        try:
            kept = Dataset.from_generator(_rows, gen_kwargs=source, cache_dir=model_args.cache_dir)
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
    kept = kept.cast(validation.features)
    check_labels(kept, args.label_column_name, "validation")
    return streams.get("train"), num_samples, kept


def _rows(stream: IterableDataset, column: str) -> Iterator[dict]:
    """Rows whose labels are checked: `datasets` does not say which one is none."""
    number = len(stream.features[column].names)
    for index, row in enumerate(stream):
        _check_label(row[column], number, f"validation sample {index}")
        yield row


def read_class_folders(folders: dict[str, str]) -> DatasetDict:
    """
    Rows of folders with one sub-folder for each class, in the order of their paths. Images anywhere below a sub-folder
    are of its class: those of `cat/indoor` are cats.

    Raises:
        ValueError: if a folder does not hold such sub-folders.
    """
    data = {}
    for split, folder in folders.items():
        files = _class_files(split, Path(folder))
        names = sorted(files)
        rows = [(str(path), index) for index, name in enumerate(names) for path in files[name]]
        columns = dict(zip(("image", "label"), map(list, zip(*rows))))
        features = Features({"image": Value("string"), "label": ClassLabel(names=names)})
        data[split] = Dataset.from_dict(columns, features=features).cast_column("image", Image())
        if split == "train" and len(names) < 2:
            raise ValueError(f"--train_dir {folder} must have two class folders or more, got only {names[0]!r}")
    return DatasetDict(data)


def _class_files(split: str, folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder."""
    if not folder.is_dir():
        raise ValueError(f"--{split}_dir {folder} is not a folder")
    loose = [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)]
    files = {path.name: _images_below(path) for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path)}
    if loose or not files:
        raise ValueError(
            f"--{split}_dir {folder} must have one sub-folder for each class and no images beside them, got the "
            f"sub-folders {shorten(files)} and the images {shorten(loose)}"
        )
    for name, paths in files.items():
        if not paths:
            raise ValueError(f"--{split}_dir: the class folder {folder / name} has no images")
    if {name.lower() for name in files} <= SPLIT_NAMES and all(
        path.parent != folder / path.relative_to(folder).parts[0] for paths in files.values() for path in paths
    ):
        raise ValueError(
            f"--{split}_dir {folder} has the sub-folders {list(files)}, which look like splits, not like classes: give "
            "--train_dir and --validation_dir"
        )
    return files


def is_image(path: PurePath) -> bool:
    """Whether the ending is that of an image file that can be read."""
    return path.suffix.lower() in ImageFolder.EXTENSIONS and not path.name.startswith(".")


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))


def _images_below(folder: Path) -> list[Path]:
    """All images of a folder and the folders in it, which may be links, in the order of their paths."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(Path(name))]
        found += [path for path in (Path(place) / name for name in files) if is_image(path)]
    return sorted(found)


def check_nesting(args: DataArguments, model_args: ModelArguments):
    """
    Raise a `ValueError` if `--dataset_name` is a data set of image files with one class, or with folders within those
    of the classes: `datasets` would take the innermost folders for the classes, or none.
    """
    if args.dataset_name is None:
        return
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    builder = load_dataset_builder(args.dataset_name, args.dataset_config_name, **hub)
    if builder.name != "imagefolder" or _has_metadata(builder):
        return
    places = {
        split: sorted({PurePosixPath(path).parent for path in files if is_image(PurePosixPath(path))})
        for split, files in builder.config.data_files.items()
    }
    everywhere = [place for of_split in places.values() for place in of_split]
    if not everywhere:
        return  # they are in archives
    base = PurePosixPath(os.path.commonpath(everywhere))
    found = f"got the folders {shorten(str(place.relative_to(base)) for place in everywhere)} in {base}"
    if len({place.name for place in everywhere}) < 2:
        raise ValueError(f"--dataset_name {args.dataset_name}: the images must be of two classes or more, {found}")
    are_nested = any(
        {len(place.parts) for place in of_split} != {len(PurePosixPath(os.path.commonpath(of_split)).parts) + 1}
        for of_split in places.values()
        if len(of_split) > 1
    )
    if are_nested or len({len(place.parts) for place in everywhere}) > 1:
        raise ValueError(
            f"--dataset_name {args.dataset_name}: the images of a split must lie in one folder for each class, without "
            f"folders in it, {found}; --train_dir and --validation_dir allow them"
        )


def _has_metadata(builder) -> bool:
    names = {Path(path).name for files in builder.config.data_files.values() for path in files}
    return any(name in builder.METADATA_FILENAMES for name in names)


def check_labels(data: Dataset, column: str, split: str):
    """Raise a `ValueError` that names the first sample whose label is no index of a class."""
    number = len(label_names(data, column))
    labels = data.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    for index, label in enumerate(labels):
        _check_label(label, number, f"{split} sample {index}")


def _check_label(label: int | None, number: int, sample: str):
    if label is None or not 0 <= label < number:
        raise ValueError(f"the label of {sample} must be in [0, {number}), got {label}")


def label_names(data: Dataset | IterableDataset, column: str) -> list[str]:
    """The names of the classes, in the order of their indices."""
    return LabelColumn(column).names(data)


def load_classifier(
    args: ModelArguments, labels: list[str], **fields: Any
) -> tuple[torch.nn.Module, ClusTRImageProcessor]:
    """Classifier for the labels, and its image processor; `fields` are those of the configuration."""
    new_processor = resized_processor(ClusTRImageProcessor(), args.image_size or 224)
    if isinstance(args, PeerArguments) and args.peer is not None:
        model, processor = load_peer(args, "classifier", labels, new_processor, **fields)
    else:
        model, processor = load_model(
            args, labels, ClusTRForImageClassification, AutoModelForImageClassification, new_processor, **fields
        )
    return model, resized_processor(processor, args.image_size) if args.image_size else processor


def resized_processor(processor, side: int):
    """The processor for square crops of another side: the paper's 256 to 224 in proportion, small images uncropped."""
    margin = 256 / 224 if side >= 128 else 1
    settings = {**processor.to_dict(), "do_center_crop": True, "crop_size": {"height": side, "width": side}}
    settings["size"] = {"shortest_edge": round(side * margin)}
    return type(processor).from_dict(settings)


def training_crop(processor) -> tuple[int, int]:
    """(height, width) of what the processor makes, or of a square where that depends on the image."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size["height"] or size["shortest_edge"], size["width"] or size["shortest_edge"]
