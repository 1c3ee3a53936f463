# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The handler of Inference Endpoints for all tasks, `handler.py` in a repository.

A request is an image (a body of type `image/...`), or JSON with a base64-encoded image file:

    {"inputs": "iVBORw0KGgo...", "parameters": {"top_k": 3}}

The handler never fetches URLs or opens paths. Files, images and lists that are too large are rejected before any image
is decoded. The limits of bytes, pixels and seconds apply to a whole request with any number of images. Every invalid
request raises a [`RequestError`], which servers answer with status 400.
"""

import base64
import io
import json
import reprlib
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import pipeline


# Class of the model -> task of its pipeline.
PIPELINE_TASKS = {
    "ClusTRForImageClassification": "image-classification",
    "ClusTRForSemanticSegmentation": "image-segmentation",
    "ClusTRForObjectDetection": "object-detection",
    "ClusTRForInstanceSegmentation": "image-segmentation",
    "ClusTRForPoseEstimation": "keypoint-detection",
    "ClusTRModel": "image-feature-extraction",
    "ClusTRBackbone": "image-feature-extraction",
}

# Limits of a request.
MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000  # a photograph of a camera; 100 MB when decoded
MAX_PIXELS_OF_MASKS = 12_500_000  # for answers with masks of the size of the image; a photograph of a phone
MAX_PIXELS_OF_ANSWER = 100_000_000  # of all masks together, which take a byte per pixel before PNG compression
MAX_PIXELS_TIMES_CLASSES = 320_000_000  # for semantic segmentation, which compares all classes at each pixel
MAX_IMAGES = 16
MAX_SECONDS = 60  # checked between images and between masks; no step is interrupted
# Limits of an image.
MAX_ASPECT_RATIO = 10  # processors enlarge the shorter side of a thin image, and with it the longer side
MAX_PIXELS_TIMES_SCANS = 450_000_000  # for JPEG, where each scan is a pass over all pixels
MAX_PIXELS_OF_LOSSLESS_WEBP = 10_000_000  # decoding a file of 300 kB may take 370 MB in addition to its pixels
MAX_BOXES = 100
MAX_NUMBER = 1e6  # magnitude of box coordinates in pixels
# Formats whose headers determine the cost of decoding.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")

# Limits of the current request, for the functions that its pipeline calls.
_LIMITS: ContextVar["RequestLimits | None"] = ContextVar("limits", default=None)
_REPR = reprlib.Repr()  # formats values in error messages in bounded time
_REPR.maxstring = _REPR.maxother = 80


class RequestError(ValueError):
    """An invalid request; the message names the expected and the actual value."""


@dataclass(frozen=True)
class Parameter:
    """Allowed values of a request parameter, as a description and as a test."""

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

# Task -> parameters that a request may set.
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
    Task of the pipeline for a checkpoint, given the content of its `config.json`.

    Raises:
        ValueError: if the class of the model is not in [`PIPELINE_TASKS`].
    """
    name = (config.get("architectures") or [None])[0]
    if name not in PIPELINE_TASKS:
        raise ValueError(f"`architectures` must be one of {sorted(PIPELINE_TASKS)} in the configuration, got {name}.")
    return PIPELINE_TASKS[name]


class EndpointHandler:
    """
    Serves the pipeline of a repository.

    Args:
        path (`str`): Folder of the repository. Its code is executed, so use only folders that you trust.
    """

    def __init__(self, path: str = "."):
        self.task = pipeline_task(json.loads((Path(path) / "config.json").read_text()))
        self.pipeline = pipeline(self.task, model=str(path), trust_remote_code=True)
        limit_masks(self.pipeline)
        if Path(__file__).name == "handler.py":  # endpoints open image bodies before they call the handler
            self.pipeline.image_processor.guard_pil(IMAGE_FORMATS, pixel_limit(self.pipeline), MAX_FILE_BYTES)

    def __call__(self, data: dict[str, Any]) -> list:
        """
        Answer a request.

        Args:
            data (`dict`):
                `inputs`: a PIL image, the bytes of an image file, or a base64-encoded image file (also as a `data:`
                URL); for `keypoint-detection` also a dictionary with such an `image` and `boxes`; or a list of up to 16
                of these. `parameters` (`dict`, *optional*): parameters of the task in [`PARAMETERS`].

        Returns:
            `list`: the answer of the pipeline, with masks as base64-encoded PNG files; for a list of inputs, a list of
            answers.

        Raises:
            RequestError: if the request is invalid or takes longer than [`MAX_SECONDS`].
        """
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise RequestError("the request must be a JSON object with `inputs`, or an image.")
        limits = RequestLimits(pixel_limit(self.pipeline))
        parameters = self._check_parameters(data.get("parameters"))
        inputs = data["inputs"]
        if not isinstance(inputs, (list, tuple)):
            return self._answer([self._open(inputs, limits)], parameters, limits)
        if not 1 <= len(inputs) <= MAX_IMAGES:
            raise RequestError(f"`inputs` must be 1 to {MAX_IMAGES} images, got {len(inputs)}.")
        if "boxes" in parameters:
            raise RequestError('`boxes` must be given for each image of a list: {"image": ..., "boxes": [...]}.')
        opened = [self._open(item, limits) for item in inputs]  # check all images before decoding the first
        opened.reverse()
        return [self._answer(opened, parameters, limits) for _ in inputs]

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

    def _open(self, item: Any, limits: "RequestLimits") -> tuple[Image.Image, list | None]:
        """Open an image of a request without decoding it; returns it and its boxes, or None without boxes."""
        if not isinstance(item, dict):
            return open_image(item, self.pipeline.image_processor, limits), None
        if self.task != "keypoint-detection":
            raise RequestError(f"`inputs` of {self.task} must be images, got an object.")
        if not {"image"} <= item.keys() <= {"image", "boxes"}:
            raise RequestError(f"`inputs` must have `image` and optionally `boxes`, got {_short(list(item))}.")
        if item.get("boxes") is not None:
            check_parameter("`boxes`", BOXES, item["boxes"])
        return open_image(item["image"], self.pipeline.image_processor, limits), item.get("boxes")

    def _answer(self, opened: list, parameters: dict[str, Any], limits: "RequestLimits") -> Any:
        """Remove the last image from the list and answer it; removing it frees the memory of its decoder."""
        image, boxes = opened.pop()
        if boxes is not None and "boxes" in parameters:
            raise RequestError("`boxes` must be in `inputs` or in `parameters`, got both.")
        limits.check_time()
        image = _decode(image, self.pipeline.image_processor)
        limits.check_time()
        token = _LIMITS.set(limits)
        try:
            answer = self.pipeline(image if boxes is None else {"image": image, "boxes": boxes}, **parameters)
        except ValueError as error:  # raised by pipelines, processors and models for invalid inputs
            raise RequestError(str(error)) from error
        finally:
            _LIMITS.reset(token)
        return _to_json(answer, limits)


class RequestLimits:
    """
    Counts the resources that a request uses and enforces their limits.

    Args:
        max_pixels (`int`): Maximum number of pixels of all images together.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS):
        self.max_pixels, self.pixels, self.bytes, self.mask_pixels = max_pixels, 0, 0, 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def add_file(self, size: int) -> None:
        """Count the bytes of a file; raises a [`RequestError`] beyond the limit."""
        self.bytes += size
        if self.bytes > MAX_FILE_BYTES:
            raise RequestError(
                f"`inputs` must be files of at most {MAX_FILE_BYTES:,} bytes together, got {self.bytes:,} or more."
            )

    def add_image(self, width: int, height: int) -> None:
        """Count the pixels of an image; raises a [`RequestError`] beyond the limit or for an extreme aspect ratio."""
        if width < 1 or height < 1 or width * height > self.max_pixels:
            raise RequestError(f"`inputs` must be an image of 1 to {self.max_pixels:,} pixels, got {width} x {height}.")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise RequestError(
                f"`inputs` must be at most {MAX_ASPECT_RATIO} times as long as wide, got {width} x {height} pixels."
            )
        self.pixels += width * height
        if self.pixels > self.max_pixels:
            raise RequestError(
                f"`inputs` must be images of at most {self.max_pixels:,} pixels together, got {self.pixels:,} or more."
            )

    def add_masks(self, number: int, height: int, width: int) -> None:
        """Count the pixels of masks before they are drawn; raises a [`RequestError`] beyond the limit."""
        self.mask_pixels += number * height * width
        if self.mask_pixels > MAX_PIXELS_OF_ANSWER:
            raise RequestError(
                f"the masks of an answer must have at most {MAX_PIXELS_OF_ANSWER:,} pixels together, got "
                f"{self.mask_pixels:,} or more: send smaller images, or, for objects, a higher `threshold`."
            )

    def check_time(self) -> None:
        """Raise a [`RequestError`] after the time limit."""
        if time.monotonic() > self.deadline:
            raise RequestError(
                f"the request must be answered within {MAX_SECONDS} s, but is not: send fewer or smaller images."
            )


def check_parameter(name: str, parameter: Parameter, value: Any) -> None:
    """Raise a [`RequestError`] that names the parameter, the allowed and the given value, if the value is invalid."""
    if not parameter.accepts(value):
        raise RequestError(f"{name} must be {parameter.expected}, got {_short(value)}.")


def read_image(item: Any, processor: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Decode the image of a request to upright 8-bit RGB, provided that file and image are small enough.

    Args:
        item (`PIL.Image.Image`, `bytes` or `str`): An image, an image file, or a base64-encoded image file.
        processor (`BaseImageProcessor`): The model's image processor, which decodes the image. (Pipelines would clip
            16-bit greyscale and drop transparency.)
        max_pixels (`int`): Maximum number of pixels.

    Raises:
        RequestError: if it is not an image in one of [`IMAGE_FORMATS`], is broken, too large or too thin, or would
            require excessive memory or time.
    """
    return _decode(open_image(item, processor, RequestLimits(max_pixels)), processor)


def open_image(item: Any, processor: Any, limits: RequestLimits) -> Image.Image:
    """
    Open the image of a request without decoding it.

    Args:
        item, processor: As in [`read_image`].
        limits ([`RequestLimits`]): Limits of the request.

    Raises:
        RequestError: as in [`read_image`].
    """
    if isinstance(item, str):
        item = _decode_base64(item, limits)
    if isinstance(item, Image.Image):
        limits.add_image(*item.size)
        return item
    if not isinstance(item, (bytes, bytearray)):
        raise RequestError(f"`inputs` must be an image, or a base64-encoded image file, got {_name(item)}.")
    if not item:
        raise RequestError("`inputs` must be an image file, but the file is empty.")
    limits.add_file(len(item))
    name = processor.find_format(bytes(item[:16]))
    if name not in IMAGE_FORMATS:
        raise _wrong_format(name or "another format")
    try:
        scanned = processor.scan_file(bytes(item))
    except ValueError as error:
        raise RequestError(f"`inputs` must be a complete image file of regular structure, but {error}.") from error
    if name == "JPEG" and scanned.coding:
        raise _wrong_format(f"{scanned.coding} JPEG")
    limits.add_image(scanned.width, scanned.height)
    if scanned.coding and scanned.width * scanned.height > MAX_PIXELS_OF_LOSSLESS_WEBP:
        raise RequestError(
            f"`inputs` must be an image of at most {MAX_PIXELS_OF_LOSSLESS_WEBP:,} pixels, if it is WebP and lossless, "
            f"transparent or animated, got {scanned.width} x {scanned.height}."
        )
    if scanned.scans * scanned.width * scanned.height > MAX_PIXELS_TIMES_SCANS:
        raise RequestError(
            f"`inputs` must have at most {MAX_PIXELS_TIMES_SCANS:,} pixels in all scans of a JPEG image together, got "
            f"{scanned.scans} of {scanned.width} x {scanned.height}."
        )
    try:
        return Image.open(io.BytesIO(scanned.content), formats=(scanned.format,))  # does not decode the pixels
    except Exception as error:  # PIL raises many kinds of exceptions for broken files
        raise RequestError(f"`inputs` must be a whole image file: {error}") from error


def _wrong_format(name: str) -> RequestError:
    return RequestError(f"`inputs` must be an image file ({', '.join(IMAGE_FORMATS)}), got {name}.")


def _decode_base64(text: str, limits: RequestLimits) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:20]:
        raise RequestError("`inputs` must be a base64-encoded image file: URLs are not fetched.")
    content = text.encode("ascii", "replace").translate(None, b" \t\n\r\v\f")
    if len(content) > 4 * MAX_FILE_BYTES // 3 + 4:
        limits.add_file(3 * len(content) // 4)
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise RequestError(f"`inputs` must be a base64-encoded image file: {error}.") from error


def _decode(image: Image.Image, processor: Any) -> Image.Image:
    try:
        return processor.read_image(image)
    except Exception as error:
        raise RequestError(f"`inputs` must be a whole image file: {error}") from error


def pixel_limit(run: Any) -> int:
    """Maximum number of pixels of all images of a request, for the pipeline `run`."""
    if run.task != "image-segmentation":
        return MAX_PIXELS
    classes = 1 if _draws_objects(run.image_processor) else run.model.config.num_labels
    return min(MAX_PIXELS_OF_MASKS, MAX_PIXELS_TIMES_CLASSES // classes)


def limit_masks(run: Any) -> None:
    """
    Make an image-segmentation pipeline count the pixels of its masks before it draws them, and raise a [`RequestError`]
    if a request to [`EndpointHandler`], or a direct call of the pipeline, exceeds the limit.
    """
    if run.task != "image-segmentation":
        return
    draw = run.postprocess

    def postprocess(outputs: Any, threshold: float = 0.9, **parameters) -> Any:
        height, width = map(int, outputs["target_size"][0])
        limits = _LIMITS.get() or RequestLimits()
        limits.add_masks(_number_of_masks(run.image_processor, outputs, threshold), height, width)
        return draw(outputs, threshold=threshold, **parameters)

    run.postprocess = postprocess


def _draws_objects(processor: Any) -> bool:
    return hasattr(processor, "post_process_instance_segmentation")


def _number_of_masks(processor: Any, outputs: Any, threshold: float) -> int:
    """Number of objects of an image, or of classes in its segmentation map, which is computed at low resolution."""
    if _draws_objects(processor):  # one for each score, as Mask R-CNN returns them
        return int((outputs["logits"].float().sigmoid() > threshold).sum())
    height, width = outputs["logits"].shape[2:]
    [classes] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(2 * height, 2 * width)])
    return len(classes.unique())


def _to_json(answer: Any, limits: RequestLimits) -> Any:
    """The answer of the pipeline with images as base64-encoded PNG files."""
    if isinstance(answer, Image.Image):
        limits.check_time()
        buffer = io.BytesIO()
        answer.save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()
    if isinstance(answer, dict):
        return {name: _to_json(value, limits) for name, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [_to_json(value, limits) for value in answer]
    return answer


def _name(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _short(value: Any) -> str:
    text = _REPR.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = [
    "BOXES",
    "EndpointHandler",
    "RequestError",
    "RequestLimits",
    "check_parameter",
    "limit_masks",
    "open_image",
    "pipeline_task",
    "pixel_limit",
    "read_image",
]
