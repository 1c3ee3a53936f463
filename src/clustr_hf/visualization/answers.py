# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of the outputs of pipelines."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes

from ..remote_code.image_reading_clustr import to_rgb
from .detections import draw_detections
from .keypoints import draw_keypoints
from .segmentation import draw_segmentation


def draw_answers(image: Image.Image, answers: Sequence[Mapping[str, Any]], config: Any) -> Image.Image:
    """
    Draw the output of a pipeline over its image: segments, boxes, instances or skeletons.

    Args:
        image (`PIL.Image.Image`): The input of the pipeline; its EXIF orientation is applied, as pipelines do.
        answers (`Sequence[Mapping[str, Any]]`): Output of the pipeline: `label`, `score`, and `mask`, `box` or
            `keypoints` of each segment, object or person.
        config (`ClusTRConfig`): The model's configuration, with the names of its classes or keypoints.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: for any other output, such as that of a classifier.
    """
    names = list(config.id2label.values())
    image = to_rgb(image)
    if not answers:
        return image
    if "keypoints" in answers[0]:
        return _draw_persons(image, answers, names, config.edges or ())
    tensor = functools.partial(torch.tensor, device="cpu")
    labels = tensor([names.index(answer["label"]) for answer in answers]) if "label" in answers[0] else None
    if labels is not None and "mask" in answers[0]:
        masks = torch.from_numpy(np.stack([np.array(answer["mask"]) > 0 for answer in answers]))
        if answers[0].get("score") is None:  # semantic segments have no score
            painted = (masks * (labels + 1)[:, None, None]).amax(dim=0) - 1
            return draw_segmentation(image, painted, len(names))
        kept = masks.flatten(1).any(dim=1)  # an empty mask has no box
        scores = tensor([answer["score"] for answer in answers])
        boxes = masks_to_boxes(masks[kept])
        return draw_detections(image, boxes, labels[kept], names, scores[kept], masks[kept])
    if labels is not None and "box" in answers[0]:
        boxes = [[answer["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for answer in answers]
        scores = tensor([answer["score"] for answer in answers])
        boxes = tensor(boxes, dtype=torch.float32)
        return draw_detections(image, boxes, labels, names, scores)
    raise ValueError(f"`answers` must have masks, boxes or keypoints, got {sorted(answers[0])}.")


def _draw_persons(
    image: Image.Image, persons: Sequence[Mapping[str, Any]], names: list[str], edges: Sequence[tuple[int, int]]
) -> Image.Image:
    """Skeletons of all keypoints that the pipeline returned, whatever their scores."""
    keypoints = torch.full((len(persons), len(names), 2), math.nan, device="cpu")
    for person, answer in enumerate(persons):
        for point in answer["keypoints"]:
            keypoints[person, names.index(point["label"])] = torch.tensor([point["x"], point["y"]], device="cpu")
    return draw_keypoints(image, keypoints, names, edges)
