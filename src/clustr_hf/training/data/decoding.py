# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Image columns as PIL images; a broken image raises an error that names its sample."""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...remote_code.image_reading_clustr import find_transposition, load_image, open_image


class UnreadableSample(Exception):
    """A sample whose file is broken. The message names the sample."""


def decode_image(image: Any, name: str) -> Image.Image:
    """
    Decode an image column.

    Args:
        image (`dict` or `PIL.Image.Image`): Value of `datasets.Image(decode=False)`, with `bytes` or a `path`.
        name (`str`): Name of the sample in error messages.

    Raises:
        UnreadableSample: if the image cannot be decoded, for whatever reason.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, Mapping) or (image.get("bytes") is None and image.get("path") is None):
        raise UnreadableSample(f"{name}: must be an image, with its bytes or its path, got {reprlib.repr(image)}")
    try:
        return load_image(open_image(Path(image["path"]) if image.get("bytes") is None else image["bytes"]))
    except Exception as error:  # PIL's plugins raise almost anything for broken files
        raise _unreadable(image, name, error) from error


def decode_rgb(image: Any, name: str, processor: Any) -> Image.Image:
    """
    Decode an image column as an upright RGB image, rotated and converted as the image processor does.

    Args:
        image, name: As in [`decode_image`].
        processor (`BaseImageProcessor`): Converts images that are not RGB.

    Raises:
        UnreadableSample: if the image cannot be decoded or converted.
    """
    decoded = decode_image(image, name)
    if decoded.mode == "RGB" and find_transposition(decoded) is None:
        return decoded  # the common case; the processor would copy the image twice
    try:
        pixels = processor.process_image(decoded, do_convert_rgb=True)
    except Exception as error:
        raise _unreadable(image, name, error) from error
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _unreadable(image: Any, name: str, error: Exception) -> UnreadableSample:
    path = f" ({image['path']})" if isinstance(image, dict) and image.get("path") else ""
    error = error.__cause__ or error  # PIL's own error, if there is one
    reason = re.sub(r" <_io\.BytesIO object at \w+>", "", str(error))  # so that all processes report the same message
    return UnreadableSample(f"{name}{path}: {reason}")
