# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Image processors of other models as those of ClusTR, with the same `pixel_values` for RGB images."""

from typing import Any

from transformers import BaseImageProcessor

from ..remote_code.image_processing_clustr import ClusTRImageProcessor


# Settings that have the same meaning in ClusTR's image processor.
SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_reduce_labels"),
)


def convert_image_processor(source: BaseImageProcessor) -> ClusTRImageProcessor:
    """
    ClusTR's image processor with the settings of another one, such as `PvtImageProcessor` or `SegformerImageProcessor`.

    Args:
        source (`BaseImageProcessor`): An image processor that resizes, crops, rescales and normalises.

    Raises:
        ValueError: if the source lacks the mean or the standard deviation of a normalisation.
    """
    settings: dict[str, Any] = {"do_center_crop": False, "do_reduce_labels": False}
    settings |= {name: value for name, value in source.to_dict().items() if name in SETTINGS and value is not None}
    if settings.get("do_normalize", True) and not {"image_mean", "image_std"} <= settings.keys():
        raise ValueError(f"`source` must have `image_mean` and `image_std`, got {type(source).__name__} without them.")
    return ClusTRImageProcessor(**settings)
