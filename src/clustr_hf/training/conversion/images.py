# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The images of a conversion: some without labels for the calibration, and labelled ones for the evaluation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...remote_code.image_processing_clustr import ClusTRImageProcessor
from ..data.decoding import UnreadableSample, decode_rgb
from ..known_names import known_names
from ..models import has_head
from ..tasks.image_classification.class_folders import is_image
from ..tasks.image_classification.data import HEADS, ClassificationDataArguments, label_names, load_labelled_images
from ..tasks.image_classification.transforms import ReadRow, evaluation_transform
from .arguments import ConversionArguments


def load_labelled(
    args: ConversionArguments, data_args: ClassificationDataArguments, model: PreTrainedModel
) -> DatasetDict:
    """The splits of a labelled data set; none if no data set is given. Class ids are those of a classifier."""
    if data_args.dataset_name is None and not (data_args.train_dir or data_args.train_file):
        return DatasetDict()
    known = known_names(args.source_arguments, HEADS, only_evaluates=True) if has_head(model.config, HEADS) else None
    return load_labelled_images(data_args, args.source_arguments, args.seed, known)


def calibration_images(
    args: ConversionArguments, data: DatasetDict, image_column: str, processor: ClusTRImageProcessor
) -> torch.Tensor | None:
    """
    The images of the calibration, `(B, 3, H, W)`: of `--image_dir`, or else of the training split, whose labels are not
    read. None without calibration.

    Raises:
        ValueError: if there are no images.
    """
    if args.num_calibration_images == 0:
        return None
    if args.image_dir is not None:
        images = sorted(path for path in Path(args.image_dir).rglob("*") if path.is_file() and is_image(path))
        read = [{"path": str(path)} for path in images].__getitem__
    else:
        images = data["train"].select_columns([image_column]) if "train" in data else ()
        read = lambda index: images[index][image_column]  # noqa: E731
    if len(images) == 0:
        found = f"{args.image_dir} has none" if args.image_dir is not None else "got none"
        raise ValueError(
            f"images for the calibration are needed, by --image_dir, --train_file or another data set: {found}"
        )
    return _load(read, len(images), args, processor)


def _load(
    read: Callable[[int], Any], number: int, args: ConversionArguments, processor: ClusTRImageProcessor
) -> torch.Tensor:
    """Random images as the model sees them; images that cannot be read are passed over."""
    generator = torch.Generator(device="cpu").manual_seed(args.seed)
    order = torch.randperm(number, generator=generator, device="cpu").tolist()
    wanted = min(args.num_calibration_images, number)
    loaded: list[torch.Tensor] = []
    with tqdm(total=wanted, desc="calibration images", mininterval=1) as bar:
        for index in order:
            if len(loaded) == wanted:
                break
            try:
                loaded.append(_pixel_values(read(index), index, processor))
            except UnreadableSample as error:
                print(f"Passed over an unreadable image: {error}")
            bar.update(len(loaded) - bar.n)
    if not loaded:
        raise ValueError(f"images for the calibration must be readable, got none of {number}")
    _check_one_size("images for the calibration", loaded)
    return torch.stack(loaded)


def _check_one_size(kind: str, images: Sequence[torch.Tensor]) -> None:
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{kind} must have one size after the processor: give --image_size")


def _pixel_values(image: Any, index: int, processor: ClusTRImageProcessor) -> torch.Tensor:
    decoded: Image.Image = decode_rgb(image, f"calibration image {index}", processor)
    return processor(decoded, return_tensors="pt").pixel_values[0]


def make_evaluation(
    args: ConversionArguments,
    data_args: ClassificationDataArguments,
    data: DatasetDict,
    model: PreTrainedModel,
    processor: ClusTRImageProcessor,
) -> Callable[[PreTrainedModel], dict[str, float]] | None:
    """A function that measures the accuracy of a classifier; None without data."""
    if "validation" not in data or not has_head(model.config, HEADS):
        return None
    columns, rows = (data_args.image_column_name, data_args.label_column_name), data["validation"]
    read = ReadRow(processor, columns, len(label_names(rows, data_args.label_column_name)), "validation", rows)
    transform = evaluation_transform(processor)

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        samples = [transform(read(index)) for index in indices]
        _check_one_size("validation images", [sample["pixel_values"] for sample in samples])
        return default_collate(samples)

    loader = DataLoader(range(len(rows)), batch_size=args.eval_batch_size, collate_fn=collate)

    def evaluate(evaluated: PreTrainedModel) -> dict[str, float]:
        return {"eval_accuracy": _accuracy(evaluated, loader, args.device), "eval_samples": len(rows)}

    return evaluate


@torch.no_grad()
def _accuracy(model: PreTrainedModel, loader: DataLoader, device: str) -> float:
    """Share of the images that a model in evaluation mode classifies correctly."""
    right = number = 0
    for batch in tqdm(loader, desc="evaluation", leave=False, mininterval=1):
        predictions = model(pixel_values=batch["pixel_values"].to(device)).logits.argmax(-1)
        right += (predictions.cpu() == batch["labels"]).sum().item()
        number += len(predictions)
    return right / number
