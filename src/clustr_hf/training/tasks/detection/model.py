# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Detectors and their image processors."""

from typing import Any

from transformers import PreTrainedModel

from .... import ClusTRDetectionImageProcessor
from ...models import ModelArguments, load_model


# Sides of images in pixels (Table A4 of the paper): the shorter one, and the maximum of the longer one.
SHORT_SIDE, LONG_SIDE = 800, 1333


def load_detector(
    args: ModelArguments, labels: list[str], model_class: type[PreTrainedModel], auto_class: type, **fields: Any
) -> tuple[PreTrainedModel, ClusTRDetectionImageProcessor]:
    """A detector for the labels, and its image processor; `fields` are fields of the configuration."""
    processor = ClusTRDetectionImageProcessor()
    model, loaded = load_model(args, labels, model_class, auto_class, processor, **fields)
    if not hasattr(loaded, "post_process_object_detection"):  # the processor of a classifier
        loaded = processor
    return model, detection_processor(loaded, args.image_size)


def detection_processor(processor: ClusTRDetectionImageProcessor, short_side: int | None):
    """The processor that resizes the shorter side to `short_side` pixels; None keeps its size."""
    if short_side is None:
        return processor
    size = {"shortest_edge": short_side, "longest_edge": round(short_side * LONG_SIDE / SHORT_SIDE)}
    return type(processor).from_dict({**processor.to_dict(), "size": size})
