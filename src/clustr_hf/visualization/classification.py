# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of the predictions of a classifier."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from ..remote_code.image_reading_clustr import to_rgb
from .colors import GREEN, RED
from .grids import make_grid


def plot_predictions(
    images: Sequence[Image.Image], predicted: Sequence[str], expected: Sequence[str], columns: int = 8
) -> Figure:
    """
    A grid of images titled with the predicted class; wrong predictions in red, followed by the true class.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        predicted, expected (`Sequence[str]`): Predicted and true class names.
        columns (`int`, defaults to 8): Images in a row.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    figure, axes = make_grid(len(images), columns, (1.3, 1.5))
    for axis, image, guess, truth in zip(axes, images, predicted, expected):
        axis.imshow(to_rgb(image))
        is_correct = guess == truth
        title = guess if is_correct else f"{guess}, is {truth}"
        axis.set_title(title, color=GREEN if is_correct else RED, fontsize=10)
    return figure
