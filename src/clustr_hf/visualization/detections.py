# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of boxes and masks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..remote_code.image_reading_clustr import to_rgb
from .colors import class_colors, readable_on
from .grids import plot_pairs


# Number of objects up to which `draw_detections` writes names by default.
MAX_TEXTS = 30


def draw_detections(
    image: Image.Image,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    names: Sequence[str],
    scores: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    with_text: bool | None = None,
) -> Image.Image:
    """
    Draw boxes, and masks if given, over an image in the colours of their classes.

    Args:
        image (`PIL.Image.Image`):
            The image.
        boxes (`torch.Tensor` of shape `(n, 4)`):
            Corners (x0, y0, x1, y1) in pixels.
        labels (`torch.LongTensor` of shape `(n,)`):
            Classes in `[0, len(names))`.
        names (`Sequence[str]`):
            Names of the classes.
        scores (`torch.Tensor` of shape `(n,)`, *optional*):
            Scores in [0, 1], written after the names.
        masks (`torch.BoolTensor` of shape `(n, height, width)`, *optional*):
            Masks of the objects. With masks, each object has its own colour instead of that of its class. Where masks
            overlap, the first one is on top.
        with_text (`bool`, *optional*):
            Whether to write names and scores. Default: only for up to 30 objects, since more text would hide them.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: if boxes, labels, scores and masks differ in number, or a label has no name.
    """
    for name, values in (("labels", labels), ("scores", scores), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"`{name}` must have one entry for each of the {len(boxes)} boxes, got {len(values)}.")
    image = to_rgb(image)
    if len(boxes) == 0:
        return image
    if not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(f"`labels` must be in [0, {len(names)}), got values from {labels.min()} to {labels.max()}.")
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), uint8
    palette = class_colors(max(len(names), len(boxes)) if masks is not None else len(names))
    colors = [tuple(palette[index].tolist()) for index in (range(len(boxes)) if masks is not None else labels.tolist())]
    if masks is not None:
        masks = masks.cpu()
        covered = masks.cumsum(dim=0) > 1  # pixels of an earlier mask; torchvision would paint overlaps black
        with torch.device("cpu"):  # torchvision creates tensors without naming a device
            picture = draw_segmentation_masks(picture, masks & ~covered, alpha=0.55, colors=colors)
    boxes = _with_positive_sides(boxes)
    width = max(1, round(min(image.size) / 250))
    with torch.device("cpu"):
        drawn = functional.to_pil_image(draw_bounding_boxes(picture, boxes, colors=colors, width=width))
    if with_text or (with_text is None and len(boxes) <= MAX_TEXTS):
        values = [""] * len(boxes) if scores is None else [f" {score:.2f}" for score in scores.tolist()]
        texts = [f"{names[label]}{value}" for label, value in zip(labels.tolist(), values)]
        font = ImageFont.truetype(findfont("DejaVu Sans"), max(10, round(min(image.size) / 28)))
        for box, text, color in reversed(list(zip(boxes.tolist(), texts, colors))):  # the first ones end up on top
            _write_label(drawn, box, text, color, font)
    return drawn


def _write_label(
    picture: Image.Image, box: Sequence[float], text: str, color: tuple[int, int, int], font: ImageFont.FreeTypeFont
):
    """Write on a background of the box's colour: above the box if there is room, else inside; never cut off."""
    canvas = ImageDraw.Draw(picture)
    margin = 2
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0, min(box[0], picture.width - width))
    y = box[1] - height if box[1] >= height else max(0, min(box[1], picture.height - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    canvas.text((x + margin - left, y + margin - top), text, fill=readable_on(color), font=font)


def _with_positive_sides(boxes: torch.Tensor) -> torch.Tensor:
    """Corners with x1 > x0 and y1 > y0, as torchvision requires."""
    boxes = boxes.detach().float().cpu()
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)


def plot_detections(
    images: Sequence[Image.Image],
    references: Sequence[Mapping[str, torch.Tensor]],
    predictions: Sequence[Mapping[str, torch.Tensor]],
    names: Sequence[str],
) -> Figure:
    """
    Ground truth and predictions side by side, one image per row.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        references (`Sequence[Mapping[str, torch.Tensor]]`): `boxes`, `labels` and, *optionally*, `masks` of each
            image, as in [`draw_detections`].
        predictions (`Sequence[Mapping[str, torch.Tensor]]`): The same with `scores`.
        names (`Sequence[str]`): Names of the classes.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    pairs = [
        [
            draw_detections(image, names=names, with_text=len(objects["boxes"]) <= MAX_TEXTS, **objects)
            for objects in both
        ]
        for image, *both in zip(images, references, predictions)
    ]
    return plot_pairs(pairs)
