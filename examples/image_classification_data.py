# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the image classification scripts, with and without Trainer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, IterableDataset, load_dataset
from peer_models import PeerArguments, load_peer
from training_sources import (
    ModelArguments,
    SourceArguments,
    by_split,
    check_columns,
    choose_samples,
    load_model,
    load_splits,
)
from transformers import AutoModelForImageClassification

from clustr_hf import ClusTRForImageClassification, ClusTRImageProcessor


@dataclass
class DataArguments(SourceArguments):
    """Which images to train and evaluate on; those of `--train_dir` lie in one sub-folder for each class."""

    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})


def load_data(args: DataArguments, model_args: ModelArguments, seed: int, decode: bool = True) -> DatasetDict:
    """
    Training and validation split of a Hub data set, parquet files or image folders.

    Args:
        args, model_args: What to load, and where downloads are kept.
        seed (`int`): Of the split and of the choice of samples.
        decode (`bool`): Whether the image column gives images, or their bytes or path.

    Raises:
        ValueError: if a column, images of a class or a training class is missing, or a label is out of range.
    """

    def load_folders(folders: dict[str, str]) -> DatasetDict:
        check_class_folders(folders)
        patterns = {split: f"{folder}/**" for split, folder in folders.items()}
        return load_dataset("imagefolder", data_files=patterns, cache_dir=model_args.cache_dir)

    data = load_splits(args, model_args, seed, load_folders)
    for rows in data.values():
        _check_columns(rows, args)
    data = choose_samples(data, args, seed)
    for split, rows in data.items():
        check_labels(rows, args.label_column_name, split)
    return data.cast_column(args.image_column_name, Image(decode=decode))


def load_stream(args: DataArguments, model_args: ModelArguments) -> tuple[IterableDataset | None, int | None, Dataset]:
    """
    Training split as a stream, if there is one, how many samples it has if that is known, and the validation split on
    the disk; images come as bytes.

    Raises:
        ValueError: if there is no validation split, a column is missing, images lie in folders, or samples are to be
            chosen.
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
    streams = load_dataset(**source, streaming=True)
    if "validation" not in streams:
        raise ValueError(f"--streaming needs a validation split, got only {sorted(streams)}")
    for stream in streams.values():
        _check_columns(stream, args)
    train, num_samples = streams.get("train"), None
    if train is not None:
        sizes = train.info.splits or {}
        num_samples = sizes["train"].num_examples if "train" in sizes else None
        train = train.cast_column(args.image_column_name, Image(decode=False))
    validation = streams["validation"].cast_column(args.image_column_name, Image(decode=False))
    if args.max_eval_samples is not None:
        validation = validation.take(args.max_eval_samples)
    # A generator that datasets can pickle gives its cache a name that stays the same from run to run.
    kept = Dataset.from_generator(_rows, gen_kwargs={"stream": validation}, cache_dir=model_args.cache_dir)
    kept = kept.cast(validation.features)
    check_labels(kept, args.label_column_name, "validation")
    return train, num_samples, kept


def _rows(stream: IterableDataset) -> Iterator[dict]:
    yield from stream


def _check_columns(data: Dataset | IterableDataset, args: DataArguments):
    check_columns(data, image_column_name=args.image_column_name, label_column_name=args.label_column_name)


def check_class_folders(folders: dict[str, str]):
    """Raise a `ValueError` if a class has no files, or the validation folder has classes that training has not."""
    classes = {}
    for split, folder in folders.items():
        if not Path(folder).is_dir():
            raise ValueError(f"--{split}_dir {folder} is not a folder")
        class_folders = sorted(path for path in Path(folder).iterdir() if path.is_dir())
        for path in class_folders:
            if not any(file.is_file() for file in path.rglob("*")):
                raise ValueError(f"--{split}_dir: the class folder {path} has no images")
        classes[split] = {path.name for path in class_folders}
    unknown = classes.get("validation", set()) - classes.get("train", classes.get("validation", set()))
    if unknown:
        raise ValueError(f"--validation_dir has classes without training images: {sorted(unknown)}")


def check_labels(data: Dataset, column: str, split: str):
    """Raise a `ValueError` that names the first sample whose label is no index of a class."""
    names = label_names(data, column)
    labels = data.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    for index, label in enumerate(labels):
        if label is None or not 0 <= label < len(names):
            raise ValueError(f"the label of {split} sample {index} must be in [0, {len(names)}), got {label}")


def label_names(data: Dataset | IterableDataset, column: str) -> list[str]:
    """The names of the classes, in the order of their indices."""
    feature = data.features[column]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"--label_column_name {column!r} must be a column of type ClassLabel, got {feature}")
    return feature.names


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
