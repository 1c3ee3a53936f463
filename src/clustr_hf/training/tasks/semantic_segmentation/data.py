# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data sets for semantic segmentation: images with label maps."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image
from huggingface_hub import hf_hub_download

from ....name_lists import shorten
from ....remote_code.image_processing_clustr import IGNORE_INDEX
from ...data.arguments import DataArguments
from ...data.splits import DataFormat


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


@dataclass
class SegmentationDataArguments(DataArguments):
    """
    A data set of images with label maps. A folder has the sub-folders `images` and `annotations` with files of the same
    names, apart from their extensions.
    """

    label_column_name: str = field(
        default="annotation", metadata={"help": "Column with the label maps, images with the class id of each pixel."}
    )
    id2label_file: str | None = field(
        default=None,
        metadata={"help": "JSON file that maps class ids to class names. Default: id2label.json of the data set."},
    )
    do_reduce_labels: bool = field(
        default=False,
        metadata={"help": "Whether label maps count classes from 1 and 0 marks pixels to ignore (ADE20K)."},
    )


def segmentation_format(args: SegmentationDataArguments) -> DataFormat:
    """Format of the data set; the class names are not in the rows."""
    return DataFormat(
        read_folders=lambda folders: DatasetDict({split: read_folder(folder) for split, folder in folders.items()}),
        images={"image_column_name": args.image_column_name, "label_column_name": args.label_column_name},
    )


def read_folder(folder: str) -> Dataset:
    """Rows of a folder with `images` and `annotations`, sorted by file name."""
    images, maps = _image_files(Path(folder) / "images"), _image_files(Path(folder) / "annotations")
    missing = sorted(images.keys() ^ maps.keys())
    if missing or not images:
        raise ValueError(
            f"{folder} must have an image in `images` for each label map in `annotations` and the reverse, got "
            f"{len(images)} images, {len(maps)} label maps, without a partner: {missing[:3]}"
        )
    names = sorted(images)
    columns = {"image": [str(images[name]) for name in names], "annotation": [str(maps[name]) for name in names]}
    return Dataset.from_dict(columns).cast_column("image", Image()).cast_column("annotation", Image())


def _image_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by their names without extensions."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in files:
                raise ValueError(f"{folder} must have one file of each name, got {files[path.stem].name}, {path.name}")
            files[path.stem] = path
    return files


def label_names(args: SegmentationDataArguments, hub: dict[str, Any]) -> list[str]:
    """
    The class names, in the order of their ids.

    Args:
        args ([`SegmentationDataArguments`]): The data set.
        hub (`dict`): `cache_dir` and `token` of downloads.

    Raises:
        ValueError: if the names are not known, two are equal, or their ids are not 0, 1, 2 ...
    """
    path = args.id2label_file
    if path is None and args.dataset_name is not None:
        local = Path(args.dataset_name) / "id2label.json"
        path = local
        if not local.is_file():
            path = hf_hub_download(args.dataset_name, "id2label.json", repo_type="dataset", **hub)
    if path is None:
        raise ValueError("--id2label_file is needed: the data does not name its classes")
    try:
        names = {int(index): name for index, name in json.loads(Path(path).read_text()).items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} must be a JSON object from indices to names of classes: {error}") from error
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        raise ValueError(f"{path} must name the classes 0, 1, 2 ..., got {sorted(names)}")
    if len(set(names.values())) < len(names):
        raise ValueError(f"{path} must give each class a name of its own, got {shorten(names.values())}")
    if len(names) > IGNORE_INDEX:
        raise ValueError(f"{path} must name at most {IGNORE_INDEX} classes, since {IGNORE_INDEX} marks ignored pixels")
    return [names[index] for index in range(len(names))]
