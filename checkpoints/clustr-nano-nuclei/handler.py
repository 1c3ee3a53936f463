# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
What Inference Endpoints run: `handler.py` of a repository, for every task.

A request is an image (a body of type `image/...`), or JSON with the file in base64:

    {"inputs": "iVBORw0KGgo...", "parameters": {"top_k": 3}}

Nothing is fetched for a caller and no path is opened; files, images and lists that are too large are refused before
they are decoded. Whatever is wrong with a request is a [`RequestError`], which servers answer with status 400.
"""

import base64
import binascii
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from transformers import pipeline


# Class of a checkpoint -> the pipeline that runs it.
PIPELINE_TASKS = {
    "ClusTRForImageClassification": "image-classification",
    "ClusTRForSemanticSegmentation": "image-segmentation",
    "ClusTRForObjectDetection": "object-detection",
    "ClusTRForInstanceSegmentation": "image-segmentation",
    "ClusTRForPoseEstimation": "keypoint-detection",
    "ClusTRModel": "image-feature-extraction",
    "ClusTRBackbone": "image-feature-extraction",
}

MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 32_000_000  # a camera's picture; decoded, 96 MB
MAX_PIXELS_OF_MASKS = 16_000_000  # where every answer is a mask of the image's size; 100 of them, 1.6 GB
MAX_ASPECT_RATIO = 10  # processors enlarge the shorter side of a thin image, and the longer one with it
MAX_IMAGES = 16
MAX_BOXES = 100
MAX_NUMBER = 1e6  # pixels from the image's corner at which a box may begin or end
# No others: formats that PIL hands to other programs, or that few need, are no risk to take.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


class RequestError(ValueError):
    """A request that cannot be answered; the message names what was expected and what came."""


@dataclass(frozen=True)
class Parameter:
    """What a parameter of a request may be, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -MAX_NUMBER <= value <= MAX_NUMBER  # false for NaN


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_boxes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= MAX_BOXES and all(map(_is_box, value))


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 1


_SHARE = Parameter("a number in [0, 1]", _is_share)
_FLAG = Parameter("true or false", lambda value: isinstance(value, bool))
BOXES = Parameter(f"at most {MAX_BOXES} boxes [x, y, width, height] in pixels, at least 1 wide and high", _are_boxes)
_FUNCTIONS = ("softmax", "sigmoid", "none")

# Task -> what a request may set.
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "image-classification": {
        "top_k": Parameter("a positive whole number", _is_count),
        "function_to_apply": Parameter(f"one of {list(_FUNCTIONS)}", lambda value: value in _FUNCTIONS),
    },
    "image-segmentation": {
        "threshold": _SHARE,
        "mask_threshold": _SHARE,
        "overlap_mask_area_threshold": _SHARE,
    },
    "object-detection": {"threshold": _SHARE},
    "keypoint-detection": {"threshold": _SHARE, "flip_test": _FLAG, "boxes": BOXES},
    "image-feature-extraction": {"pool": _FLAG},
}


def pipeline_task(config: dict[str, Any]) -> str:
    """
    The pipeline that runs a checkpoint, by its configuration as a dictionary.

    Raises:
        ValueError: if its class is none of [`PIPELINE_TASKS`].
    """
    name = (config.get("architectures") or [None])[0]
    if name not in PIPELINE_TASKS:
        raise ValueError(f"`architectures` must be one of {sorted(PIPELINE_TASKS)} in the configuration, got {name}.")
    return PIPELINE_TASKS[name]


class EndpointHandler:
    """
    The pipeline of a repository behind an endpoint.

    Args:
        path (`str`): Folder of the repository. Its code is run: use folders that you trust.
    """

    def __init__(self, path: str = "."):
        self.task = pipeline_task(json.loads((Path(path) / "config.json").read_text()))
        self.pipeline = pipeline(self.task, model=str(path), trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list:
        """
        Answer a request.

        Args:
            data (`dict`):
                `inputs`: a PIL image, the bytes of an image file, or these in base64 (`data:` URLs too); for
                `keypoint-detection` also a dictionary with such an `image` and `boxes`; or a list of at most 16 of
                these. `parameters` (`dict`, *optional*): those of [`PARAMETERS`] for the task.

        Returns:
            `list`: what the pipeline returns, with masks as PNG files in base64; a list of these for a list.

        Raises:
            RequestError: for a request that cannot be answered.
        """
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise RequestError("the request must be a JSON object with `inputs`, or an image.")
        parameters = self._check_parameters(data.get("parameters"))
        inputs = data["inputs"]
        if not isinstance(inputs, (list, tuple)):
            return _to_json(self._run(self._read(inputs), parameters))
        if not 1 <= len(inputs) <= MAX_IMAGES:
            raise RequestError(f"`inputs` must be 1 to {MAX_IMAGES} images, got {len(inputs)}.")
        if "boxes" in parameters:
            raise RequestError('`boxes` must stand beside each image of a list: {"image": ..., "boxes": [...]}.')
        return [_to_json(self._run(self._read(item), parameters)) for item in inputs]

    def _check_parameters(self, parameters: Any) -> dict[str, Any]:
        allowed = PARAMETERS[self.task]
        if parameters is None:
            return {}
        if not isinstance(parameters, dict):
            raise RequestError(f"`parameters` must be an object, got {_name(parameters)}.")
        for name, value in parameters.items():
            if name not in allowed:
                raise RequestError(f"`parameters` of {self.task} may be {sorted(allowed)}, got {_short(name)}.")
            check_parameter(f"`parameters`: `{name}`", allowed[name], value)
        return dict(parameters)

    def _read(self, item: Any) -> Any:
        """The image of a request; for poses with boxes, what that pipeline takes."""
        if not isinstance(item, dict):
            return self._read_image(item)
        if self.task != "keypoint-detection":
            raise RequestError(f"`inputs` of {self.task} must be images, got an object.")
        if not {"image"} <= item.keys() <= {"image", "boxes"}:
            raise RequestError(f"`inputs` must have `image` and perhaps `boxes`, got {_short(list(item))}.")
        image = self._read_image(item["image"])
        if item.get("boxes") is None:
            return image
        check_parameter("`boxes`", BOXES, item["boxes"])
        return {"image": image, "boxes": item["boxes"]}

    def _read_image(self, item: Any) -> Image.Image:
        most = MAX_PIXELS_OF_MASKS if self.task == "image-segmentation" else MAX_PIXELS
        return read_image(item, self.pipeline.image_processor, most)

    def _run(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        if isinstance(inputs, dict) and "boxes" in parameters:
            raise RequestError("`boxes` must come in `inputs` or in `parameters`, got both.")
        try:
            return self.pipeline(inputs, **parameters)
        except ValueError as error:  # what pipelines, processors and models say of inputs
            raise RequestError(str(error)) from error


def check_parameter(name: str, parameter: Parameter, value: Any):
    """Raise a [`RequestError`] that names the parameter, what it must be and what came, if it is something else."""
    if not parameter.accepts(value):
        raise RequestError(f"{name} must be {parameter.expected}, got {_short(value)}.")


def read_image(item: Any, processor: Any, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    The image of a request, upright and in 8-bit RGB, decoded only if file and image are small enough.

    Args:
        item (`PIL.Image.Image`, `bytes` or `str`): An image, an image file, or one in base64.
        processor (`BaseImageProcessor`): The model's. It decodes: pipelines would cut off deep grey values, and show
            what lies behind transparency.
        most_pixels (`int`): The largest image, in pixels.

    Raises:
        RequestError: if it is none of these, no image of a known format, broken, too large or too thin.
    """
    if isinstance(item, str):
        item = _decode_base64(item)
    if isinstance(item, (bytes, bytearray)):
        image = _open(bytes(item))
    elif isinstance(item, Image.Image):
        image = item
    else:
        raise RequestError(f"`inputs` must be an image, or an image file in base64, got {_name(item)}.")
    _check_size(image, most_pixels)
    try:
        pixels = processor.process_image(image, do_convert_rgb=True)
    except Exception as error:  # PIL's readers raise many kinds for files that are broken
        raise RequestError(f"`inputs` must be a whole image file: {error}") from error
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _decode_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:20]:
        raise RequestError("`inputs` must be an image file in base64: URLs are not fetched.")
    if len(text) > 4 * MAX_FILE_BYTES // 3 + 4:
        raise RequestError(f"`inputs` must be a file of at most {MAX_FILE_BYTES:,} bytes, got about {len(text):,}.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"`inputs` must be an image file in base64: {error}.") from error


def _open(content: bytes) -> Image.Image:
    if not content:
        raise RequestError("`inputs` must be an image file, got none: it is empty.")
    if len(content) > MAX_FILE_BYTES:
        raise RequestError(f"`inputs` must be a file of at most {MAX_FILE_BYTES:,} bytes, got {len(content):,}.")
    try:
        return Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)  # reads the size, not yet the pixels
    except Image.DecompressionBombError as error:
        raise RequestError(f"`inputs` must be an image of at most {MAX_PIXELS:,} pixels, got far more.") from error
    except UnidentifiedImageError as error:
        raise RequestError(f"`inputs` must be an image file ({', '.join(IMAGE_FORMATS)}), got no such one.") from error
    except Exception as error:
        raise RequestError(f"`inputs` must be an image file that can be read: {error}") from error


def _check_size(image: Image.Image, most_pixels: int):
    width, height = image.size
    if width < 1 or height < 1 or width * height > most_pixels:
        raise RequestError(f"`inputs` must be an image of 1 to {most_pixels:,} pixels, got {width} x {height}.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            f"`inputs` must be at most {MAX_ASPECT_RATIO} times as long as wide, got {width} x {height} pixels."
        )


def _to_json(answer: Any) -> Any:
    """The pipeline's answer with images as PNG files in base64."""
    if isinstance(answer, Image.Image):
        buffer = io.BytesIO()
        answer.save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()
    if isinstance(answer, dict):
        return {name: _to_json(value) for name, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [_to_json(value) for value in answer]
    return answer


def _name(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["BOXES", "EndpointHandler", "RequestError", "check_parameter", "pipeline_task", "read_image"]
