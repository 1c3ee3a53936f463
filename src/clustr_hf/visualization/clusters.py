# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of clusters (as in Figure A3)."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..remote_code.image_reading_clustr import to_rgb
from .grids import make_grid


def draw_clusters(
    image: Image.Image, cluster_index: torch.Tensor, grid_size: tuple[int, int], highlighted: int | None = None
) -> Image.Image:
    """
    Paint every token of an image in the mean colour of its cluster, with lines between clusters (as in Figure A3).

    Args:
        image (`PIL.Image.Image`):
            The image as the model saw it: resized and cropped, but not normalised.
        cluster_index (`torch.LongTensor` of shape `(N,)`):
            Cluster of each token in row-major order.
        grid_size (`tuple[int, int]`):
            (height, width) of the token grid; N is their product.
        highlighted (`int`, *optional*):
            A cluster to highlight: its tokens stay as they are, all others are darkened.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: if `cluster_index` does not fill the grid.
    """
    height, width = grid_size
    if cluster_index.shape != (height * width,):
        raise ValueError(
            f"`cluster_index` must have shape ({height * width},) for a grid of {height} x {width} tokens, "
            f"got {tuple(cluster_index.shape)}."
        )
    picture = to_rgb(image)
    labels = cluster_index.cpu().numpy().astype(np.int32).reshape(height, width)
    labels = np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.asarray(picture, dtype=np.float64).reshape(-1, 3)
    if highlighted is not None:
        shade = np.where(labels == highlighted, 1.0, 0.2).reshape(-1, 1)
        return Image.fromarray((pixels * shade).round().astype(np.uint8).reshape(*labels.shape, 3))
    flat = labels.ravel()
    num_pixels = np.maximum(np.bincount(flat), 1)
    mean = np.stack([np.bincount(flat, weights=channel) / num_pixels for channel in pixels.T], axis=-1)
    painted = mean[labels]
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    painted[border] = 255
    return Image.fromarray(painted.round().astype(np.uint8))


def plot_clusters(
    image: Image.Image, cluster_maps: Mapping[str, tuple[torch.Tensor, tuple[int, int]]], columns: int = 3
) -> Figure:
    """
    An image next to its clusters in several blocks or scales.

    Args:
        image (`PIL.Image.Image`):
            The image as the model saw it.
        cluster_maps (`Mapping[str, tuple[torch.LongTensor, tuple[int, int]]]`):
            Title -> cluster of each token `(N,)`, and the (height, width) of the token grid.
        columns (`int`, defaults to 3):
            Number of pictures in a row.

    Returns:
        `matplotlib.figure.Figure`.
    """
    pictures = {"image": to_rgb(image)}
    for title, (cluster_index, grid_size) in cluster_maps.items():
        number = len(cluster_index.unique())
        pictures[f"{title}: {number} clusters"] = draw_clusters(image, cluster_index, grid_size)
    figure, axes = make_grid(len(pictures), columns, (4.2, 4.2 * image.height / image.width + 0.4))
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title)
    return figure
