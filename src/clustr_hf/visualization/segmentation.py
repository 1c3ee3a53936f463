# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of label maps."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ..remote_code.image_reading_clustr import to_rgb
from .colors import class_colors
from .grids import make_grid


def draw_segmentation(
    image: Image.Image, segmentation: torch.Tensor, num_labels: int, opacity: float = 0.6
) -> Image.Image:
    """
    Overlay an image with the colours of its pixels' classes.

    Args:
        image (`PIL.Image.Image`):
            The image.
        segmentation (`torch.LongTensor` of shape `(height, width)`):
            Class of each pixel; pixels with values outside `[0, num_labels)` are darkened.
        num_labels (`int`):
            Number of classes.
        opacity (`float`, defaults to 0.6):
            Opacity of the colours, in [0, 1].

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: if the map differs in size from the image.
    """
    image = to_rgb(image)
    if segmentation.shape != (image.height, image.width):
        raise ValueError(
            f"`segmentation` must have the size of `image`, (height, width) = {(image.height, image.width)}, "
            f"got {tuple(segmentation.shape)}."
        )
    labels = segmentation.cpu().numpy()
    valid = (labels >= 0) & (labels < num_labels)
    colors = class_colors(num_labels)[np.where(valid, labels, 0)] * valid[..., None]
    painted = (1 - opacity) * np.asarray(image, dtype=np.float64) + opacity * colors
    return Image.fromarray(painted.round().astype(np.uint8))


def plot_segmentation(
    images: Sequence[Image.Image],
    references: Sequence[torch.Tensor],
    predictions: Sequence[torch.Tensor],
    labels: Sequence[str],
    most_in_legend: int = 30,
) -> Figure:
    """
    Image, ground truth and prediction side by side, one image per row, with a legend of the classes that occur.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        references, predictions (`Sequence[torch.LongTensor]`): Label maps `(height, width)` of the images' sizes.
        labels (`Sequence[str]`): Names of the classes.
        most_in_legend (`int`, defaults to 30): Maximum number of classes in the legend, which names those with
            the largest areas.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    aspect = images[0].height / images[0].width if images else 1.0
    figure, axes = make_grid(3 * len(images), 3, (4.2, 4.2 * aspect))
    for row, (image, reference, prediction) in enumerate(zip(images, references, predictions)):
        columns = {"image": image, "truth": reference, "prediction": prediction}
        for axis, (title, content) in zip(axes[3 * row :], columns.items()):
            is_map = isinstance(content, torch.Tensor)
            axis.imshow(draw_segmentation(image, content, len(labels)) if is_map else to_rgb(content))
            if row == 0:
                axis.set_title(title)
    values = torch.cat([label_map.flatten().cpu() for label_map in (*references, *predictions)])
    areas = torch.bincount(values[(values >= 0) & (values < len(labels))], minlength=len(labels))
    shown = sorted(areas.argsort(descending=True)[:most_in_legend].tolist())
    colors = class_colors(len(labels)) / 255
    handles = [Patch(color=colors[index], label=labels[index]) for index in shown if areas[index] > 0]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, max(1, len(handles))))
    return figure
