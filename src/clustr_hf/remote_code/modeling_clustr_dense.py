# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
What the models for dense prediction share: maps of all stages, whole strides, and images that were padded.

B images of H x W pixels; maps (B, C, h, w). Sizes are (height, width).
"""

import math

import torch
from torch.nn.functional import pad
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)
from transformers.utils import logging

from .configuration_clustr import ClusTRConfig
from .modeling_clustr import ClusTRModel, ClusTRModelOutput, ClusTRPreTrainedModel, select_states


logger = logging.get_logger(__name__)

# What a model cannot return of images that it sees one by one.
RECORDED = ("output_hidden_states", "output_attentions", "output_clusters")

# The pipelines for these tasks log an error for classes whose names are not here. They copy the dictionaries, and so do
# not see what is registered with the Auto classes.
MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES.setdefault(
    ClusTRConfig.model_type, ("ClusTRForSemanticSegmentation", "ClusTRForInstanceSegmentation")
)
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(ClusTRConfig.model_type, "ClusTRForObjectDetection")


class ClusTRDensePredictor(ClusTRPreTrainedModel):
    """A head on the maps of all stages."""

    def __init__(self, config):
        super().__init__(config)
        self.clustr = ClusTRModel(config)

    def _stage_maps(self, pixel_values: torch.Tensor, **kwargs) -> tuple[list[torch.Tensor], ClusTRModelOutput]:
        """Maps of all stages, the finest first, and what else the backbone gives; hidden states only if wanted."""
        wanted = kwargs.pop("output_hidden_states", None)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        features = self.base_model(pixel_values, output_hidden_states=True, return_dict=True, **kwargs)
        stage_maps = list(features.hidden_states[-len(self.config.depths) :])
        features.hidden_states = select_states(features.hidden_states, wanted) if wanted else None
        return stage_maps, features

    def _whole_strides(self, size: tuple[int, int]) -> tuple[int, int]:
        """The least multiples of the product of the strides that hold an image of the given size."""
        stride = math.prod(self.config.strides)
        return tuple(-(-extent // stride) * stride for extent in size)

    def _refuse_recorded(self, kwargs: dict):
        """Raise a `ValueError` if something is to be returned that differs in size from image to image."""
        for name in RECORDED:
            if kwargs.get(name, getattr(self.config, name, False)):
                raise ValueError(f"`{name}` must be False for a `pixel_mask` that pads: images differ in size.")


def image_sizes(pixel_mask: torch.Tensor | None, pixel_values: torch.Tensor) -> list[tuple[int, int]]:
    """
    Size of each image in a batch.

    Args:
        pixel_mask (`torch.LongTensor` of shape `(B, H, W)`, *optional*): 1 where there is an image, 0 in the padding.
        pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): The images.

    Raises:
        ValueError: if the mask has another shape, or is not 1 in one rectangle from the upper left corner on.
    """
    batch_size, height, width = pixel_values.shape[0], *pixel_values.shape[-2:]
    if pixel_mask is None:
        return [(height, width)] * batch_size
    if pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"`pixel_mask` must have shape {(batch_size, height, width)}, as `pixel_values`, "
            f"got {tuple(pixel_mask.shape)}."
        )
    heights, widths = pixel_mask[:, :, 0].sum(dim=1), pixel_mask[:, 0].sum(dim=1)
    extents = torch.stack([heights, widths, pixel_mask.sum(dim=(1, 2))], dim=1).tolist()
    for index, (height, width, area) in enumerate(extents):
        if area != height * width or area == 0:
            raise ValueError(f"`pixel_mask` must be 1 in a rectangle from the upper left corner, not so in {index}.")
    return [(int(height), int(width)) for height, width, _ in extents]


def warn_of_padding(pixel_values: torch.Tensor):
    """
    Say that a mask is missing where images (B, num_channels, H, W) seem to be padded: where one ends in a row or a
    column of zeros, as hardly ever a picture does.
    """
    if torch.compiler.is_compiling() or pixel_values.is_meta or pixel_values.ndim != 4 or pixel_values.numel() == 0:
        return
    sides = torch.stack([pixel_values[..., -1, :].any(dim=-1), pixel_values[..., -1].any(dim=-1)], dim=-1)
    ends_in_zeros = ~sides.any(dim=1).all(dim=-1)
    if pixel_values[ends_in_zeros].any():
        logger.warning_once(
            "The images seem to be padded with zeros, but there is no `pixel_mask`: what is predicted refers to the "
            "padded images. Pass `pixel_mask` as the image processor gives it."
        )


def pad_to(maps: torch.Tensor, size: tuple[int, int], value: float = 0.0) -> torch.Tensor:
    """Maps (..., h, w) with a value on the right and below, up to the given size."""
    return pad(maps, (0, size[1] - maps.shape[-1], 0, size[0] - maps.shape[-2]), value=value)


__all__ = ["ClusTRDensePredictor", "image_sizes", "pad_to", "warn_of_padding"]
