# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Segmentation models and their image processors."""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from .... import ClusTRForSemanticSegmentation, ClusTRImageProcessor
from ...baselines import BaselineArguments, load_baseline
from ...models import load_model


# Shorter side of images, and maximum ratio of the longer to the shorter side (section 4.2 of the paper and Table A3).
SHORT_SIDE = 512
LONGEST_RATIO = 4
# Part of the class names of models with a head for the task.
HEADS = ("ForSemanticSegmentation",)


@dataclass
class SegmenterArguments(BaselineArguments):
    """The model to start from; `image_size` is the length of the shorter side."""

    segmentation_head: str | None = field(
        default=None,
        metadata={"help": "Head, semantic_fpn or upernet. Default: the checkpoint's head, or semantic_fpn."},
    )


def load_segmenter(
    args: SegmenterArguments, labels: list[str], do_reduce_labels: bool, **fields: Any
) -> tuple[PreTrainedModel, ClusTRImageProcessor]:
    """A segmentation model for the labels, and its image processor; `fields` are fields of the configuration."""
    if args.segmentation_head is not None:
        fields["segmentation_head"] = args.segmentation_head
    new_processor = segmentation_processor(ClusTRImageProcessor(), args.image_size or SHORT_SIDE, do_reduce_labels)
    if args.baseline is not None:
        model, processor = load_baseline(args, "segmenter", labels, new_processor, **fields)
    else:
        model, processor = load_model(
            args, labels, ClusTRForSemanticSegmentation, AutoModelForSemanticSegmentation, new_processor, **fields
        )
    keeps_size = not processor.do_center_crop and processor.size["shortest_edge"]  # unlike that of a classifier
    short_side = args.image_size or (None if keeps_size else SHORT_SIDE)
    return model, segmentation_processor(processor, short_side, do_reduce_labels)


def segmentation_processor(
    processor: ClusTRImageProcessor, short_side: int | None, do_reduce_labels: bool
) -> ClusTRImageProcessor:
    """The processor for whole images whose shorter side is resized to `short_side` pixels; None keeps its size."""
    settings = {**processor.to_dict(), "do_center_crop": False, "do_pad": True, "do_reduce_labels": do_reduce_labels}
    if short_side is not None:
        settings["size"] = {"shortest_edge": short_side, "longest_edge": LONGEST_RATIO * short_side}
    return type(processor).from_dict(settings)
