# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of skeletons."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ..remote_code.image_reading_clustr import to_rgb
from .colors import BLUE, GREEN, ORANGE
from .grids import plot_pairs


def draw_keypoints(
    image: Image.Image,
    keypoints: torch.Tensor,
    names: Sequence[str],
    edges: Sequence[tuple[int, int]],
    scores: torch.Tensor | None = None,
    threshold: float = 0.3,
) -> Image.Image:
    """
    Draw skeletons over an image: the person's left side in blue, the right side in orange, the rest in green.

    Args:
        image (`PIL.Image.Image`):
            The image.
        keypoints (`torch.Tensor` of shape `(n, K, 2)`):
            (x, y) in pixels of the keypoints of n persons.
        names (`Sequence[str]` of length K):
            Names of the keypoints; those on one side begin with `left_` or `right_`.
        edges (`Sequence[tuple[int, int]]`):
            Pairs of keypoints connected by a line.
        scores (`torch.Tensor` of shape `(n, K)`, *optional*):
            Scores or visibilities of the keypoints.
        threshold (`float`, defaults to 0.3):
            Only keypoints with a higher score are drawn.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: for keypoints or scores of another shape, or edges between unknown keypoints.
    """
    keypoints = _as_tensor(keypoints)
    shape = (len(keypoints), len(names))
    if len(keypoints) and tuple(keypoints.shape) != (*shape, 2):
        raise ValueError(f"`keypoints` must have shape {(*shape, 2)}, like `names`, got {tuple(keypoints.shape)}.")
    if scores is not None:
        scores = _as_tensor(scores)
        if len(keypoints) and tuple(scores.shape) != shape:
            raise ValueError(f"`scores` must have shape {shape}, like `keypoints`, got {tuple(scores.shape)}.")
    if any(not 0 <= index < len(names) for edge in edges for index in edge):
        raise ValueError(f"`edges` must hold pairs of keypoints in [0, {len(names)}), got {list(edges)}.")
    picture = to_rgb(image)
    canvas = ImageDraw.Draw(picture)
    colors = [_side_color((name,)) for name in names]
    for person, is_visible in zip(keypoints.tolist(), _visible(keypoints, scores, threshold)):
        seen = [point for point, visible in zip(person, is_visible) if visible]
        if not seen:
            continue
        extent = max(max(values) - min(values) for values in zip(*seen))
        width = max(1, round(extent / 120))
        for first, second in edges:
            if is_visible[first] and is_visible[second]:
                ends = [tuple(person[first]), tuple(person[second])]
                thickness = min(width, max(1, round(math.dist(*ends) / 8)))  # keeps the lines of a face apart
                canvas.line(ends, fill=_side_color((names[first], names[second])), width=thickness)
        radius = width * (1.5 if len(names) < 30 else 0.5)  # keeps many points apart
        for (x, y), color, visible in zip(person, colors, is_visible):
            if visible:
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return picture


def _as_tensor(values: Any) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(values, device="cpu")


def _visible(keypoints: torch.Tensor, scores: torch.Tensor | None, threshold: float) -> list[list[bool]]:
    is_finite = keypoints.isfinite().all(dim=-1)
    return (is_finite if scores is None else is_finite & (scores > threshold).to(is_finite.device)).tolist()


def _side_color(names: Iterable[str]) -> str:
    """Colour of a keypoint, or of a line between two; a line from one side to the other has neither side's colour."""
    sides = {name.split("_")[0] for name in names} & {"left", "right"}
    return {"left": BLUE, "right": ORANGE}[sides.pop()] if len(sides) == 1 else GREEN


def plot_keypoints(
    images: Sequence[Image.Image],
    references: Sequence[torch.Tensor],
    predictions: Sequence[torch.Tensor],
    names: Sequence[str],
    edges: Sequence[tuple[int, int]],
    threshold: float = 0.3,
) -> Figure:
    """
    True and predicted skeletons side by side, one image per row.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        references, predictions (`Sequence[torch.Tensor]`): Keypoints `(n, K, 3)` of each image: (x, y) in pixels, and
            the visibility (drawn where positive) or the score.
        names, edges: As in [`draw_keypoints`].
        threshold (`float`, defaults to 0.3): Only predicted keypoints with a higher score are drawn.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    pairs = [
        [
            draw_keypoints(image, persons[..., :2], names, edges, persons[..., 2], minimum)
            for persons, minimum in ((reference, 0.0), (prediction, threshold))
        ]
        for image, reference, prediction in zip(images, references, predictions)
    ]
    return plot_pairs(pairs)
