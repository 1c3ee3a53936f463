# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Arguments that name the training and validation data; each task adds its own."""

import re
from dataclasses import dataclass, field


# The arguments that name a source of images, by the kind of the source.
SOURCES = {
    "--dataset_name": ("dataset_name",),
    "--train_dir or --validation_dir": ("train_dir", "validation_dir"),
    "--train_file or --validation_file": ("train_file", "validation_file"),
}


@dataclass
class FolderArguments:
    """Folders of images, and which of the images are used."""

    # Whether the validation data is held back from the training data; set by `load_splits`, not an argument.
    holds_back = False

    train_dir: str | None = field(default=None, metadata={"help": "Folder with the training images."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder with the validation images."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of training images to use, chosen at random. Default: all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Number of validation images to use, chosen at random. Default: all."}
    )
    exclude_train_names: str | None = field(
        default=None,
        metadata={"help": "Regular expression; training images whose file name contains a match are left out."},
    )

    def __post_init__(self):
        try:
            re.compile(self.exclude_train_names or "")
        except re.error as error:
            raise ValueError(
                f"--exclude_train_names must be a regular expression, got {self.exclude_train_names!r}: {error}"
            ) from error


@dataclass
class CocoArguments:
    """COCO annotation files for the images of [`FolderArguments`]."""

    train_annotation_file: str | None = field(
        default=None, metadata={"help": "JSON file with COCO annotations of the images in --train_dir."}
    )
    validation_annotation_file: str | None = field(
        default=None, metadata={"help": "JSON file with COCO annotations of the images in --validation_dir."}
    )


@dataclass
class DataArguments(FolderArguments):
    """A data set of images: from the Hub, in folders or in parquet files."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Name of a data set on the Hub, or local folder of a data set."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set. Default: the data set's default configuration."}
    )
    train_file: str | None = field(default=None, metadata={"help": "Parquet file with the training rows."})
    validation_file: str | None = field(default=None, metadata={"help": "Parquet file with the validation rows."})
    train_val_split: float = field(
        default=0.15,
        metadata={"help": "Share of the training data to hold back for validation if there is no validation data."},
    )
    image_column_name: str = field(default="image", metadata={"help": "Column with the images."})

    def __post_init__(self):
        super().__post_init__()
        given = [kind for kind, names in SOURCES.items() if any(getattr(self, name) is not None for name in names)]
        if len(given) > 1:
            raise ValueError(f"the data must come from one of a data set, folders and files, got {' and '.join(given)}")

    def check_training(self) -> None:
        """Raise a `ValueError` unless there is training data."""
        if self.dataset_name is None and self.train_dir is None and self.train_file is None:
            raise ValueError("one of --dataset_name, --train_dir, --train_file is needed, got none")

    def leave_training_out(self) -> None:
        """
        Clear the arguments of the training data, unless the validation data is held back from it.

        Raises:
            ValueError: if there is no data to evaluate on.
        """
        if all(getattr(self, name) is None for names in SOURCES.values() for name in names):
            raise ValueError(
                "data to evaluate on are needed: --dataset_name, --validation_dir or --validation_file, got none"
            )
        self.exclude_train_names = self.max_train_samples = None
        if self.validation_dir is not None or self.validation_file is not None:
            self.train_dir = self.train_file = None
