# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data sets for pose estimation: images with annotated persons."""

from dataclasses import dataclass, field

from datasets import DatasetDict

from ....keypoints import CONVENTIONS, KeypointConvention
from ...data.arguments import CocoArguments, FolderArguments
from ...data.coco_files import ANNOTATIONS, IMAGE, IMAGE_ID
from ...data.splits import DataFormat, by_split
from .annotations import PERSON_ID, read_persons


@dataclass
class PoseDataArguments(CocoArguments, FolderArguments):
    """A data set of images with persons: folders with annotation files of COCO or COCO-WholeBody."""

    validation_boxes_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with the boxes of a person detector in COCO's results format, to evaluate on. Default: "
            "ground-truth boxes."
        },
    )
    keypoints: str = field(
        default="coco_wholebody", metadata={"help": f"Annotated keypoints, one of {tuple(CONVENTIONS)}."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.keypoints not in CONVENTIONS:
            raise ValueError(f"--keypoints must be one of {tuple(CONVENTIONS)}, got {self.keypoints!r}")

    def check_training(self):
        """Raise a `ValueError` unless there is training and validation data."""
        self._check_given("train")
        self._check_given("validation")

    def leave_training_out(self):
        """Clear the arguments of the training data; raise a `ValueError` if there is no data to evaluate on."""
        self._check_given("validation")
        self.train_dir = self.train_annotation_file = self.exclude_train_names = self.max_train_samples = None

    def _check_given(self, split: str):
        missing = [name for name in (f"{split}_dir", f"{split}_annotation_file") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{' and '.join(f'--{name}' for name in missing)} must be given, got none")

    @property
    def convention(self) -> KeypointConvention:
        return CONVENTIONS[self.keypoints]


def pose_format(args: PoseDataArguments) -> DataFormat:
    """Format of the data set; keypoints are in the convention's order."""
    files = by_split(args.train_annotation_file, args.validation_annotation_file)

    def read_folders(folders: dict[str, str]) -> DatasetDict:
        rows = {split: read_persons(folder, files[split], args.convention) for split, folder in folders.items()}
        return DatasetDict(rows)

    return DataFormat(
        read_folders=read_folders,
        images={"image_column_name": IMAGE},
        columns={name: name for name in (IMAGE_ID, ANNOTATIONS, PERSON_ID)},
    )
