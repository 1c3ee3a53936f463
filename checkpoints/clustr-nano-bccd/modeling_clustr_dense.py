# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Shared base of the models for dense prediction: maps of all stages, padding to whole strides, padded batches.

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
from .modeling_clustr import ClusTRModel, ClusTRModelOutput, ClusTRPreTrainedModel
from .modeling_clustr_attention import requested_states
from .modeling_clustr_calls import select_states


logger = logging.get_logger(__name__)

# Outputs that are not supported when images are processed one at a time.
RECORDED = ("output_hidden_states", "output_attentions", "output_clusters")

# The pipelines of these tasks log an error for class names that are missing here. They copy the dictionaries, so
# registering with the Auto classes is not enough.
MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES.setdefault(
    ClusTRConfig.model_type, ("ClusTRForSemanticSegmentation", "ClusTRForInstanceSegmentation")
)
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(ClusTRConfig.model_type, "ClusTRForObjectDetection")


class ClusTRDensePredictor(ClusTRPreTrainedModel):
    """Base of the models with a head on the maps of all stages."""

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self.clustr = ClusTRModel(config)

    def _stage_maps(self, pixel_values: torch.Tensor, **kwargs) -> tuple[list[torch.Tensor], ClusTRModelOutput]:
        """Maps of all stages, finest first, and the output of the backbone, with hidden states if requested."""
        requested = requested_states(kwargs, self.config)
        kwargs["output_hidden_states"] = True
        features = self.base_model(pixel_values, return_dict=True, **kwargs)
        stage_maps = list(features.hidden_states[-len(self.config.depths) :])
        features.hidden_states = select_states(features.hidden_states, requested)
        return stage_maps, features

    def _whole_strides(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest multiples of the total stride that hold an image of the given size."""
        stride = math.prod(self.config.strides)
        return tuple(-(-extent // stride) * stride for extent in size)

    def _reject_recorded(self, kwargs: dict):
        """Raise a `ValueError` if an output is requested whose size would differ from image to image."""
        for name in RECORDED:
            if kwargs.get(name, getattr(self.config, name, False)):
                raise ValueError(f"`{name}` must be False with padded images: their outputs differ in size.")


def image_sizes(pixel_mask: torch.Tensor | None, pixel_values: torch.Tensor) -> list[tuple[int, int]]:
    """
    Size of each image in a batch.

    Args:
        pixel_mask (`torch.LongTensor` of shape `(B, H, W)`, *optional*): 1 for pixels of the image, 0 for padding.
        pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): The images.

    Raises:
        ValueError: if the mask has another shape, or is not 1 in exactly a rectangle in the upper left corner.
    """
    batch_size, height, width = pixel_values.shape[0], *pixel_values.shape[-2:]
    if pixel_mask is None:
        return [(height, width)] * batch_size
    if pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"`pixel_mask` must have shape {(batch_size, height, width)}, like `pixel_values`, "
            f"got {tuple(pixel_mask.shape)}."
        )
    heights, widths = pixel_mask[:, :, 0].sum(dim=1), pixel_mask[:, 0].sum(dim=1)
    extents = torch.stack([heights, widths, pixel_mask.sum(dim=(1, 2))], dim=1).tolist()
    for index, (height, width, area) in enumerate(extents):
        if area != height * width or area == 0:
            raise ValueError(
                f"`pixel_mask` must be 1 in a rectangle that starts in the upper left corner, not so for image {index}."
            )
    return [(int(height), int(width)) for height, width, _ in extents]


def warn_of_padding(pixel_values: torch.Tensor) -> None:
    """
    Warn about a missing mask if images (B, num_channels, H, W) seem to be padded: if one of them ends in a row or a
    column of zeros, which is very unlikely without padding.
    """
    if torch.compiler.is_compiling() or pixel_values.is_meta or pixel_values.ndim != 4 or pixel_values.numel() == 0:
        return
    sides = torch.stack([pixel_values[..., -1, :].any(dim=-1), pixel_values[..., -1].any(dim=-1)], dim=-1)
    ends_in_zeros = ~sides.any(dim=1).all(dim=-1)
    if pixel_values[ends_in_zeros].any():
        logger.warning_once(
            "The images seem to be padded with zeros, but `pixel_mask` is missing: predictions refer to the padded "
            "images. Pass the `pixel_mask` that the image processor returns."
        )


def pad_to(maps: torch.Tensor, size: tuple[int, int], value: float = 0.0) -> torch.Tensor:
    """Pad maps (..., h, w) on the right and bottom up to the given size."""
    return pad(maps, (0, size[1] - maps.shape[-1], 0, size[0] - maps.shape[-2]), value=value)


__all__ = ["ClusTRDensePredictor", "image_sizes", "pad_to", "warn_of_padding"]
