# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the semantic segmentation script."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Image
from huggingface_hub import hf_hub_download
from tqdm.auto import tqdm
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from .... import ClusTRForSemanticSegmentation, ClusTRImageProcessor
from ....remote_code.image_processing_clustr import IGNORE_INDEX
from ...baselines import PeerArguments, load_peer
from ...data.class_names import shorten
from ...data.labelled_rows import cast_images, check_columns
from ...data.samples import UnreadableSample
from ...sources import (
    ModelArguments,
    SourceArguments,
    choose_samples,
    load_model,
    load_splits,
)
from .transforms import ReadLabelMap


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
# Shorter side of images, and how many times as long the longer side may be (section 4.2 of the paper and Table A3).
SHORT_SIDE = 512
LONGEST_RATIO = 4
# What the names of classes with a head for the task have in them.
HEADS = ("ForSemanticSegmentation",)


@dataclass
class DataArguments(SourceArguments):
    """
    Which images to train and evaluate on; a folder has the sub-folders `images` and `annotations`, whose files have the
    same names but for their endings.
    """

    label_column_name: str = field(
        default="annotation", metadata={"help": "Column of the label maps, images with the class of each pixel."}
    )
    id2label_file: str | None = field(
        default=None,
        metadata={"help": "JSON file with the names of the classes; default is id2label.json of the data set."},
    )
    do_reduce_labels: bool = field(
        default=False, metadata={"help": "Maps count classes from 1, and 0 is what does not count (ADE20K)."}
    )


@dataclass
class SegmenterArguments(PeerArguments):
    """Which model to start from; `image_size` is the length of the shorter side."""

    segmentation_head: str | None = field(
        default=None, metadata={"help": "semantic_fpn or upernet; default: the checkpoint's, or semantic_fpn."}
    )


def load_data(args: DataArguments, model_args: ModelArguments, seed: int) -> DatasetDict:
    """
    Training and validation split; images and label maps come as bytes or path.

    Raises:
        ValueError: if a column, a folder or an image's label map is missing.
    """
    data = load_splits(
        args, model_args, seed, lambda folders: DatasetDict({s: read_folder(f) for s, f in folders.items()})
    )
    columns = args.image_column_name, args.label_column_name
    for split, rows in data.items():
        check_columns(rows, split, image_column_name=columns[0], label_column_name=columns[1])
    data = choose_samples(data, args, seed).select_columns(list(columns))
    return cast_images(data, image_column_name=columns[0], label_column_name=columns[1])


def read_folder(folder: str) -> Dataset:
    """Rows of a folder with `images` and `annotations`, in the order of their names."""
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
    """Image files of a folder by their names without endings."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in files:
                raise ValueError(f"{folder} must have one file of each name, got {files[path.stem].name}, {path.name}")
            files[path.stem] = path
    return files


def label_names(args: DataArguments, model_args: ModelArguments) -> list[str]:
    """
    The names of the classes, in the order of their indices.

    Raises:
        ValueError: if they are not known, two are equal, or their indices are not 0, 1, 2 ...
    """
    path = args.id2label_file
    if path is None and args.dataset_name is not None:
        local = Path(args.dataset_name) / "id2label.json"
        hub = {"repo_type": "dataset", "cache_dir": model_args.cache_dir, "token": model_args.token}
        path = local if local.is_file() else hf_hub_download(args.dataset_name, "id2label.json", **hub)
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
        raise ValueError(f"{path} must name at most {IGNORE_INDEX} classes, since {IGNORE_INDEX} does not count")
    return [names[index] for index in range(len(names))]


def segmentation_processor(processor: ClusTRImageProcessor, short_side: int | None, do_reduce_labels: bool):
    """The processor for whole images whose shorter side is resized to `short_side` pixels; None leaves the size."""
    settings = {**processor.to_dict(), "do_center_crop": False, "do_pad": True, "do_reduce_labels": do_reduce_labels}
    if short_side is not None:
        settings["size"] = {"shortest_edge": short_side, "longest_edge": LONGEST_RATIO * short_side}
    return type(processor).from_dict(settings)


def load_segmenter(
    args: SegmenterArguments, labels: list[str], do_reduce_labels: bool, **fields: Any
) -> tuple[PreTrainedModel, ClusTRImageProcessor]:
    """Segmentation model for the labels, and its image processor; `fields` are those of the configuration."""
    if args.segmentation_head is not None:
        fields["segmentation_head"] = args.segmentation_head
    new_processor = segmentation_processor(ClusTRImageProcessor(), args.image_size or SHORT_SIDE, do_reduce_labels)
    if args.peer is not None:
        model, processor = load_peer(args, "segmenter", labels, new_processor, **fields)
    else:
        model, processor = load_model(
            args, labels, ClusTRForSemanticSegmentation, AutoModelForSemanticSegmentation, new_processor, **fields
        )
    keeps_size = not processor.do_center_crop and processor.size["shortest_edge"]  # unlike a classifier's
    short_side = args.image_size or (None if keeps_size else SHORT_SIDE)
    return model, segmentation_processor(processor, short_side, do_reduce_labels)


def class_weights(labels: ReadLabelMap, num_labels: int, exponent: float, show_progress: bool = False) -> list[float]:
    """
    (median frequency / frequency) ** exponent of every class: 0 treats all pixels alike, 1 all classes.

    Args:
        labels: Sequence of label maps `(height, width)`, int64, values of at least `num_labels` do not count. Maps that
            cannot be read are left out.
        num_labels (`int`): Number of classes; those that do not occur have the weight 1.
        exponent (`float`): Between 0 and 1.
        show_progress (`bool`): Whether to show a bar.
    """
    pixels = torch.zeros(num_labels, dtype=torch.int64, device="cpu")
    for index in tqdm(range(len(labels)), desc="class frequencies", mininterval=1, disable=not show_progress):
        with suppress(UnreadableSample):  # the training names and counts it
            pixels += torch.bincount(labels[index].flatten(), minlength=num_labels)[:num_labels]
    seen = pixels[pixels > 0].double()
    if len(seen) == 0:
        raise ValueError("the training label maps must have labelled pixels, got none")
    weights = (seen.median() / pixels.double().clamp(min=1)) ** exponent
    return [round(weight, 4) if count else 1.0 for weight, count in zip(weights.tolist(), pixels.tolist())]
