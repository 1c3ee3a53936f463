# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the image classification scripts, with and without Trainer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, IterableDataset, load_dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor


@dataclass
class DataArguments:
    """Which images to train and evaluate on."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder of images a class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_file: str | None = field(default=None, metadata={"help": "Parquet file with an image and a label column."})
    validation_file: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share to split off where there is no validation."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled validation images."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})

    def __post_init__(self):
        if self.dataset_name is None and self.train_dir is None and self.train_file is None:
            raise ValueError("one of --dataset_name, --train_dir, --train_file is needed, got none")


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to fine-tune; without it, --variant is trained from random weights."},
    )
    variant: str = field(default="nano", metadata={"help": "tiny, small, base or nano, see ClusTRConfig.from_variant."})
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if not the checkpoint's own."})
    image_processor_name: str | None = field(default=None, metadata={"help": "Processor, if not the checkpoint's own."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the crops in pixels; default: the checkpoint's, or 224."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep downloads."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Hub token; default is the one of `hf auth login`."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code in the checkpoint's repository."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Replace a head with another number of classes."}
    )


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
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    if args.dataset_name is not None:
        data = load_dataset(args.dataset_name, args.dataset_config_name, **hub)
    elif args.train_file is not None:
        data = load_dataset("parquet", data_files=_by_split(args.train_file, args.validation_file), **hub)
    else:
        folders = _by_split(args.train_dir, args.validation_dir)
        check_class_folders(folders)
        patterns = {split: f"{folder}/**" for split, folder in folders.items()}
        data = load_dataset("imagefolder", data_files=patterns, **hub)
    _check_columns(data["train"], args)
    if "validation" not in data:  # never the test split: checkpoints are chosen by the validation split
        split = data["train"].train_test_split(args.train_val_split, seed=seed)
        data = DatasetDict(train=split["train"], validation=split["test"])
    for split, most in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if most is not None:
            data[split] = data[split].shuffle(seed=seed).select(range(min(most, len(data[split]))))
        check_labels(data[split], args.label_column_name, split)
    return data.cast_column(args.image_column_name, Image(decode=decode))


def load_stream(args: DataArguments, model_args: ModelArguments) -> tuple[IterableDataset, int | None, Dataset]:
    """
    Training split as a stream, how many samples it has if that is known, and the validation split on the disk; images
    come as bytes.

    Raises:
        ValueError: if there is no validation split, a column is missing, images lie in folders, or samples are to be
            chosen.
    """
    if args.max_train_samples is not None:
        raise ValueError("--max_train_samples does not go with --streaming: use --max_train_steps")
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    if args.dataset_name is not None:
        source = {"path": args.dataset_name, "name": args.dataset_config_name, **hub}
    elif args.train_file is not None:
        source = {"path": "parquet", "data_files": _by_split(args.train_file, args.validation_file), **hub}
    else:
        raise ValueError("--streaming needs --dataset_name or --train_file: folders have random access")
    streams = load_dataset(**source, streaming=True)
    if "validation" not in streams:
        raise ValueError(f"--streaming needs a validation split, got only {sorted(streams)}")
    train = streams["train"]
    _check_columns(train, args)
    sizes = train.info.splits or {}
    num_samples = sizes["train"].num_examples if "train" in sizes else None
    validation = streams["validation"].cast_column(args.image_column_name, Image(decode=False))
    if args.max_eval_samples is not None:
        validation = validation.take(args.max_eval_samples)
    # A generator that datasets can pickle gives its cache a name that stays the same from run to run.
    kept = Dataset.from_generator(_rows, gen_kwargs={"stream": validation}, cache_dir=model_args.cache_dir)
    kept = kept.cast(validation.features)
    check_labels(kept, args.label_column_name, "validation")
    return train.cast_column(args.image_column_name, Image(decode=False)), num_samples, kept


def _rows(stream: IterableDataset) -> Iterator[dict]:
    yield from stream


def _by_split(train: str, validation: str | None) -> dict[str, str]:
    return {"train": train} if validation is None else {"train": train, "validation": validation}


def _check_columns(data: Dataset | IterableDataset, args: DataArguments):
    for column in (args.image_column_name, args.label_column_name):
        if column not in data.column_names:
            raise ValueError(
                f"--image_column_name or --label_column_name {column!r} is not in the data set, which "
                f"has {data.column_names}"
            )


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
    unknown = classes.get("validation", set()) - classes["train"]
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


def load_model(
    args: ModelArguments, labels: list[str], **overrides: Any
) -> tuple[torch.nn.Module, ClusTRImageProcessor]:
    """Model with a head for the labels, and its image processor; `overrides` are fields of the configuration."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    settings = {**names, **overrides}
    if args.model_name_or_path is None:
        model = ClusTRForImageClassification(ClusTRConfig.from_variant(args.variant, **settings))
        return model, resized_processor(ClusTRImageProcessor(), args.image_size or 224)
    hub = {
        "cache_dir": args.cache_dir,
        "revision": args.model_revision,
        "token": args.token,
        "trust_remote_code": args.trust_remote_code,
    }
    config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **settings, **hub)
    model = AutoModelForImageClassification.from_pretrained(
        args.model_name_or_path, config=config, ignore_mismatched_sizes=args.ignore_mismatched_sizes, **hub
    )
    processor = AutoImageProcessor.from_pretrained(args.image_processor_name or args.model_name_or_path, **hub)
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
