# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The clusters that a model finds in an image, models with coarser clusters, and images prepared for both."""

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from ..remote_code.image_processing_clustr_pose import PIXEL_SETTINGS
from ..remote_code.image_reading_clustr import to_rgb


@dataclass(frozen=True)
class ClusterMap:
    """
    The clusters that one scale of one block finds in an image.

    Args:
        stage, block, scale (`int`): Numbers counted from 1; blocks are counted within their stage.
        cluster_index (`torch.LongTensor` of shape `(N,)`): Cluster of each token in row-major order.
        grid_size (`tuple[int, int]`): (height, width) of the token grid; N is their product.
        num_unmerged (`int`, *optional*):
            Number of clusters before any were merged, with `cluster_count="content"`.
    """

    stage: int
    block: int
    scale: int
    cluster_index: torch.Tensor
    grid_size: tuple[int, int]
    num_unmerged: int | None = None

    @property
    def num_clusters(self) -> int:
        """`int`: Number of clusters that are not empty."""
        return len(self.cluster_index.unique())


@torch.no_grad()
def find_cluster_maps(model: nn.Module, pixel_values: torch.Tensor) -> list[ClusterMap]:
    """
    The clusters of every block in the clustered stages of a model's backbone (as in Figure A3).

    The image is not padded, whereas models for dense prediction pad images whose sides are not multiples of the total
    stride.

    Args:
        model (`PreTrainedModel`): Any ClusTR model, including those loaded with remote code.
        pixel_values (`torch.Tensor` of shape `(1, num_channels, H, W)`): One image, as its processor returns it.

    Returns:
        `list[ClusterMap]`: ordered by stage, block and scale.

    Raises:
        ValueError: if the batch does not hold exactly one image.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[0] != 1:
        raise ValueError(f"`pixel_values` must be of one image, (1, C, H, W), got {tuple(pixel_values.shape)}.")
    maps, hooks = [], []

    def record(stage: int, block: int, module, inputs, output):
        for scale, clusters in enumerate(output[1] or (), start=1):
            labels, num_unmerged = clusters, None
            if hasattr(clusters, "num_merged"):  # a `MergedClusters`, maybe of remote code
                labels, num_unmerged = clusters.cluster_index, int(clusters.num_merged[0].sum())
            maps.append(ClusterMap(stage, block, scale, labels[0].cpu(), tuple(inputs[1]), num_unmerged))

    for stage_number, stage in enumerate(model.base_model.stages, start=1):
        for block_number, block in enumerate(stage.blocks, start=1):
            hooks.append(block.register_forward_hook(functools.partial(record, stage_number, block_number)))
    try:
        model.base_model(pixel_values.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def coarsen_clusters(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    """
    A copy of a model with fewer clusters in its clustered stages, for images larger than those it was trained on.

    The copy has the same weights, since no weight depends on the reduction ratios.

    Args:
        model (`PreTrainedModel`): Any ClusTR model, including those loaded with remote code.
        factor (`float`): Positive factor by which the average number of tokens in a cluster grows.

    Raises:
        ValueError: for a factor that is not positive, or a model without clusters.
    """
    if not factor > 0:
        raise ValueError(f"`factor` must be positive, got {factor}.")
    attention_type = getattr(model.config, "attention_type", "clustered")  # older remote code lacks the field
    if attention_type != "clustered":
        raise ValueError(f"`model` must have clusters, got one with `attention_type` {attention_type!r}.")
    config = copy.deepcopy(model.config)
    config.reduction_ratios = coarsen_ratios(config.reduction_ratios, factor)
    coarse = type(model)(config).eval()
    coarse.load_state_dict(model.state_dict())
    return coarse.to(device=model.device, dtype=model.dtype)


def coarsen_ratios(reduction_ratios: list[list[float]], factor: float) -> list[list[float]]:
    """Reduction ratios of each stage and scale, times a factor in the stages that cluster."""
    return [[ratio * factor for ratio in ratios] if max(ratios) > 1 else ratios for ratios in reduction_ratios]


def prepare_image(
    image: Image.Image, processor: Any, shorter_side: int, longest_side: int = 1024
) -> tuple[Image.Image, torch.Tensor]:
    """
    Resize an image, without cropping it, and normalise it for [`find_cluster_maps`].

    Args:
        image (`PIL.Image.Image`): The image.
        processor (`BaseImageProcessor`): The model's image processor.
        shorter_side (`int`): Length of the shorter side in pixels.
        longest_side (`int`, defaults to 1024): Maximum length of the longer side in pixels.

    Returns:
        `tuple[PIL.Image.Image, torch.Tensor]`: the upright RGB image at the size that the model sees, for drawing, and
        its `pixel_values` `(1, 3, H, W)`.
    """
    image = to_rgb(image)
    scale = min(shorter_side / min(image.size), longest_side / max(image.size))
    size = [max(1, round(extent * scale)) for extent in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), uint8
    settings = {name: getattr(processor, name) for name in PIXEL_SETTINGS}
    return image, processor.rescale_and_normalize(pixels[None], **settings)
