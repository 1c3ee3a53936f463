# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Image processors of other models as those of ClusTR, with the same `pixel_values` for RGB images."""

from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor

from ..remote_code.image_processing_clustr import ClusTRImageProcessor


# Settings that have the same meaning in ClusTR's image processor.
SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_reduce_labels"),
)
# (width, height) of the image on which both processors are compared, and the largest difference of their pixel values:
# libraries round resized pixels differently, by up to one of 255 steps.
COMPARED_SIZE, TOLERANCE = (90, 72), 0.05


def convert_image_processor(source: BaseImageProcessor) -> ClusTRImageProcessor:
    """
    ClusTR's image processor with the settings of another one, such as `PvtImageProcessor` or `SegformerImageProcessor`.

    Args:
        source (`BaseImageProcessor`): An image processor that resizes, crops, rescales and normalises.

    Raises:
        ValueError: if the source lacks the mean or the standard deviation of a normalisation, or its pixel values
            differ from those of the result, for example because of a setting that ClusTR's image processor lacks.
    """
    settings: dict[str, Any] = {"do_center_crop": False, "do_reduce_labels": False}
    settings |= {name: value for name, value in source.to_dict().items() if name in SETTINGS and value is not None}
    # Unset means off in the source, and on in ours.
    settings |= {name: bool(getattr(source, name, None)) for name in ("do_resize", "do_rescale", "do_normalize")}
    if settings["do_normalize"] and not {"image_mean", "image_std"} <= settings.keys():
        raise ValueError(f"`source` must have `image_mean` and `image_std`, got {type(source).__name__} without them.")
    converted = ClusTRImageProcessor(**settings)
    _compare(source, converted)
    return converted


def _compare(source: BaseImageProcessor, converted: ClusTRImageProcessor) -> None:
    """Raise a `ValueError` unless both processors return the same pixel values for an image."""
    width, height = COMPARED_SIZE
    generator = torch.Generator(device="cpu").manual_seed(0)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8, device="cpu")
    image = Image.fromarray(pixels.numpy())
    theirs, ours = (each(image, return_tensors="pt").pixel_values.float() for each in (source, converted))
    if theirs.shape != ours.shape:
        found = f"pixel values of shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
    elif (theirs - ours).abs().max() > TOLERANCE * max(1.0, theirs.std().item()):
        found = f"pixel values that differ by up to {(theirs - ours).abs().max():.3g}"
    else:
        return
    raise ValueError(
        f"`source` must be an image processor whose settings {type(converted).__name__} has, but "
        f"{type(source).__name__} returns {found}."
    )
