# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data sets for image classification: on disk, or as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from datasets import Dataset, DatasetDict, Image, IterableDataset
from datasets.exceptions import DatasetGenerationError

from ...data.arguments import DataArguments
from ...data.class_names import KnownNames, check_label
from ...data.data_files import load_parts, naming_broken_files
from ...data.labelled_rows import LabelColumn, check_columns, match_classes
from ...data.splits import DataFormat, load_data, source_of
from ...known_names import known_names
from ...models import ModelArguments
from .class_folders import check_nesting, read_class_folders


# Parts of the class names of models with a head for the task; the second is for `SwinForSmallImages` in baselines.py.
HEADS = ("ForImageClassification", "ForSmallImages")


@dataclass
class ClassificationDataArguments(DataArguments):
    """A data set of images with one class each; `--train_dir` has one sub-folder for each class."""

    label_column_name: str = field(default="label", metadata={"help": "Column with the labels."})


def load_labelled_images(
    args: ClassificationDataArguments, model_args: ModelArguments, seed: int, known: KnownNames | None = None
) -> DatasetDict:
    """
    Training and validation split, as in [`load_data`].

    Args:
        args, model_args: The data set, and where downloads are stored.
        seed (`int`): Seed of the split and of the choice of samples.
        known ([`KnownNames`], *optional*):
            Classes of the checkpoint that is trained further or evaluated; default: those of `model_args`.
    """
    data_format = DataFormat(
        read_folders=read_class_folders,
        images={"image_column_name": args.image_column_name},
        columns={"label_column_name": args.label_column_name},
        labels=LabelColumn(args.label_column_name),
        check=partial(check_nesting, dataset_name=args.dataset_name),
    )
    known = known or known_names(model_args, HEADS)
    return load_data(args, model_args.download_arguments, seed, data_format, known)


def load_stream(
    args: ClassificationDataArguments, model_args: ModelArguments, known: KnownNames | None = None
) -> tuple[IterableDataset | None, int | None, Dataset]:
    """
    Training split as a stream, if there is one, its length if that is known, and the validation split on disk. Labels
    are as in [`load_labelled_images`], images come as bytes.

    Raises:
        ValueError: if there is no validation split, a column is missing, the images are in folders, an argument needs
            random access, or class names cannot be matched.
    """
    _check_streaming(args)
    check = partial(check_nesting, dataset_name=args.dataset_name)
    parts = load_parts(**source_of(args), **model_args.download_arguments, check=check, streaming=True)
    if "validation" not in parts:
        raise ValueError(f"--streaming needs a validation split, got only {sorted(parts)}")
    num_samples = None
    if "train" in parts:
        sizes = parts["train"][0].info.splits or {}
        num_samples = sizes["train"].num_examples if "train" in sizes else None
    for split in {"train", "validation"} & parts.keys():
        check_columns(parts[split][0], split, image_column_name=args.image_column_name)
        parts[split] = [rows.cast_column(args.image_column_name, Image(decode=False)) for rows in parts[split]]
    labels = LabelColumn(args.label_column_name)
    streams = match_classes(parts, labels, known or known_names(model_args, HEADS))
    validation = streams["validation"]
    if args.max_eval_samples is not None:
        validation = validation.take(args.max_eval_samples)
    kept = _store(validation, labels, model_args.cache_dir)
    labels.check(kept, "validation")
    return streams.get("train"), num_samples, kept


def _check_streaming(args: ClassificationDataArguments):
    """Raise a `ValueError` for arguments that need random access."""
    if args.max_train_samples is not None:
        raise ValueError("--max_train_samples cannot be combined with --streaming: use --max_train_steps")
    if args.exclude_train_names is not None:
        raise ValueError(
            "--exclude_train_names cannot be combined with --streaming: the names in a stream are not known in advance"
        )
    if source_of(args) is None:
        raise ValueError("--streaming needs --dataset_name or --train_file: folders have random access")


def _store(stream: IterableDataset, labels: LabelColumn, cache_dir: str | None) -> Dataset:
    """The rows of a stream on disk."""
    # `datasets` can pickle this generator, so that its cache has the same name in every run.
    source = {"stream": stream, "column": labels.column}
    with naming_broken_files(stream):
        try:
            kept = Dataset.from_generator(_checked_rows, gen_kwargs=source, cache_dir=cache_dir)
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
    return kept.cast(stream.features)


def _checked_rows(stream: IterableDataset, column: str) -> Iterator[dict]:
    """Rows whose labels are checked: errors of `datasets` do not say which label is invalid."""
    number = len(stream.features[column].names)
    for index, row in enumerate(stream):
        check_label(row[column], number, f"validation sample {index}")
        yield row


def label_names(data: Dataset | IterableDataset, column: str) -> list[str]:
    """The class names, in the order of their ids."""
    return LabelColumn(column).names(data)
