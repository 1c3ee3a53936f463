# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Figures that are grids of pictures."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image


# Maximum ratio of the sides of a cell; without it, the picture of a slim image would take gigabytes.
MAX_ASPECT = 4


def make_grid(number: int, columns: int, cell: tuple[float, float]) -> tuple[Figure, list]:
    """
    A figure with room for `number` pictures, and their axes.

    Args:
        number (`int`): Number of pictures.
        columns (`int`): Maximum number of pictures in a row.
        cell (`tuple[float, float]`): (width, height) of a picture in inches; the height is limited by `MAX_ASPECT`.

    Raises:
        ValueError: if there are no pictures.
    """
    if number == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    columns = min(columns, number)
    rows, width = math.ceil(number / columns), cell[0]
    height = min(max(cell[1], width / MAX_ASPECT), width * MAX_ASPECT)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes[:number]


def plot_pairs(pairs: Sequence[Sequence[Image.Image]]) -> Figure:
    """Pictures of the ground truth and of the predictions side by side, one pair per row."""
    aspect = pairs[0][0].height / pairs[0][0].width if pairs else 1.0
    figure, axes = make_grid(2 * len(pairs), 2, (6.4, 6.4 * aspect))
    for axis, picture in zip(axes, (picture for pair in pairs for picture in pair)):
        axis.imshow(picture)
    for axis, title in zip(axes, ("truth", "prediction")):
        axis.set_title(title)
    return figure
