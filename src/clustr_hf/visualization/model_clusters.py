# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The clusters of a model in one figure (as in Figure A3)."""

from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from transformers import PreTrainedModel

from .cluster_maps import coarsen_clusters, find_cluster_maps, prepare_image
from .clusters import plot_clusters


def plot_model_clusters(
    model: PreTrainedModel, processor: Any, image: Image.Image, shorter_side: int = 320, coarser: float = 1
) -> Figure:
    """
    An image next to the clusters of the last block of every clustered stage.

    Args:
        model (`PreTrainedModel`): Any ClusTR model, including those loaded with remote code.
        processor (`BaseImageProcessor`): The model's image processor.
        image (`PIL.Image.Image`): The image.
        shorter_side (`int`, defaults to 320): Length of the shorter side in pixels to which the image is resized.
        coarser (`float`, defaults to 1): Factor by which the average number of tokens in a cluster grows, see
            [`coarsen_clusters`]; large images are easier to read with larger clusters.

    Returns:
        `matplotlib.figure.Figure`.
    """
    image, pixel_values = prepare_image(image, processor, shorter_side)
    maps = find_cluster_maps(coarsen_clusters(model, coarser), pixel_values)
    last = [found for found in maps if found.block == model.config.depths[found.stage - 1]]
    titled = {f"stage {each.stage}, scale {each.scale}": (each.cluster_index, each.grid_size) for each in last}
    return plot_clusters(image, titled)
