# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Classifiers and their image processors."""

from typing import Any

import torch
from transformers import AutoModelForImageClassification

from .... import ClusTRForImageClassification, ClusTRImageProcessor
from ...baselines import BaselineArguments, load_baseline
from ...models import ModelArguments, load_model


def load_classifier(
    args: ModelArguments, labels: list[str], **fields: Any
) -> tuple[torch.nn.Module, ClusTRImageProcessor]:
    """A classifier for the labels, and its image processor; `fields` are fields of the configuration."""
    new_processor = resized_processor(ClusTRImageProcessor(), args.image_size or 224)
    if isinstance(args, BaselineArguments) and args.baseline is not None:
        model, processor = load_baseline(args, "classifier", labels, new_processor, **fields)
    else:
        model, processor = load_model(
            args, labels, ClusTRForImageClassification, AutoModelForImageClassification, new_processor, **fields
        )
    return model, resized_processor(processor, args.image_size) if args.image_size else processor


def resized_processor(processor: Any, side: int) -> Any:
    """A processor for square crops of `side` pixels, after a resize to 256 / 224 of the side unless that is small."""
    margin = 256 / 224 if side >= 128 else 1
    settings = {
        **processor.to_dict(),
        "do_resize": True,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": round(side * margin)},
    }
    return type(processor).from_dict(settings)


def training_crop(processor: Any) -> tuple[int, int]:
    """(height, width) of the processor's output, or of a square if that depends on the image."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size["height"] or size["shortest_edge"], size["width"] or size["shortest_edge"]
