# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
What Inference Endpoints run: `handler.py` of a repository, for every task.

A request is an image (a body of type `image/...`), or JSON with the file in base64:

    {"inputs": "iVBORw0KGgo...", "parameters": {"top_k": 3}}

Nothing is fetched for a caller and no path is opened; files, images and lists that are too large are refused before
any is decoded. Limits of bytes, pixels and seconds are those of a whole request, whatever the number of its images.
Whatever is wrong with a request is a [`RequestError`], which servers answer with status 400.
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

# Limits of a request.
MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000  # a camera's picture; decoded, 100 MB
MAX_PIXELS_OF_MASKS = 12_500_000  # where every answer is a mask of the image's size: a telephone's picture
MAX_PIXELS_OF_ANSWER = 100_000_000  # of all masks together: a byte each, until they are PNG files
MAX_PIXELS_TIMES_CLASSES = 320_000_000  # of semantic segmentation, which compares all classes at each pixel
MAX_IMAGES = 16
MAX_SECONDS = 60  # checked between images and between masks: no step is interrupted
# Limits of an image.
MAX_ASPECT_RATIO = 10  # processors enlarge the shorter side of a thin image, and the longer one with it
MAX_PIXELS_TIMES_SCANS = 450_000_000  # of a JPEG image: each scan is a pass over all pixels
MAX_PIXELS_OF_LOSSLESS_WEBP = 10_000_000  # a file of 300 kB may need 370 MB to decode, besides its pixels
MAX_BOXES = 100
MAX_NUMBER = 1e6  # pixels from the image's corner at which a box may begin or end
# Formats whose headers tell what decoding costs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")

# The limits of the request that is being answered, for what its pipeline calls.
_LIMITS: ContextVar["RequestLimits | None"] = ContextVar("limits", default=None)
_REPR = reprlib.Repr()  # writes values into errors, in bounded time
_REPR.maxstring = _REPR.maxother = 80


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
        limit_masks(self.pipeline)
        if Path(__file__).name == "handler.py":  # an endpoint opens bodies of an image type before it calls this
            self.pipeline.image_processor.guard_pil(IMAGE_FORMATS, most_pixels(self.pipeline), MAX_FILE_BYTES)

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
            RequestError: for a request that cannot be answered, or not within [`MAX_SECONDS`].
        """
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise RequestError("the request must be a JSON object with `inputs`, or an image.")
        limits = RequestLimits(most_pixels(self.pipeline))
        parameters = self._check_parameters(data.get("parameters"))
        inputs = data["inputs"]
        if not isinstance(inputs, (list, tuple)):
            return self._answer([self._open(inputs, limits)], parameters, limits)
        if not 1 <= len(inputs) <= MAX_IMAGES:
            raise RequestError(f"`inputs` must be 1 to {MAX_IMAGES} images, got {len(inputs)}.")
        if "boxes" in parameters:
            raise RequestError('`boxes` must stand beside each image of a list: {"image": ..., "boxes": [...]}.')
        opened = [self._open(item, limits) for item in inputs]  # all of them before the first is decoded
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
        """An image of a request, not yet decoded, and its boxes, if it has some."""
        if not isinstance(item, dict):
            return open_image(item, self.pipeline.image_processor, limits), None
        if self.task != "keypoint-detection":
            raise RequestError(f"`inputs` of {self.task} must be images, got an object.")
        if not {"image"} <= item.keys() <= {"image", "boxes"}:
            raise RequestError(f"`inputs` must have `image` and perhaps `boxes`, got {_short(list(item))}.")
        if item.get("boxes") is not None:
            check_parameter("`boxes`", BOXES, item["boxes"])
        return open_image(item["image"], self.pipeline.image_processor, limits), item.get("boxes")

    def _answer(self, opened: list, parameters: dict[str, Any], limits: "RequestLimits") -> Any:
        """To the last image of a list, which loses it: what decodes a file needs much memory."""
        image, boxes = opened.pop()
        if boxes is not None and "boxes" in parameters:
            raise RequestError("`boxes` must come in `inputs` or in `parameters`, got both.")
        limits.check_time()
        image = _decode(image, self.pipeline.image_processor)
        limits.check_time()
        token = _LIMITS.set(limits)
        try:
            answer = self.pipeline(image if boxes is None else {"image": image, "boxes": boxes}, **parameters)
        except ValueError as error:  # what pipelines, processors and models say of inputs
            raise RequestError(str(error)) from error
        finally:
            _LIMITS.reset(token)
        return _to_json(answer, limits)


class RequestLimits:
    """
    What is left of the limits of a request.

    Args:
        most_pixels (`int`): The limit of the pixels of all its images together.
    """

    def __init__(self, most_pixels: int = MAX_PIXELS):
        self.most_pixels, self.pixels, self.bytes, self.mask_pixels = most_pixels, 0, 0, 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def add_file(self, size: int):
        """Count the bytes of a file, and raise a [`RequestError`] if that is one too many."""
        self.bytes += size
        if self.bytes > MAX_FILE_BYTES:
            raise RequestError(
                f"`inputs` must be files of at most {MAX_FILE_BYTES:,} bytes together, got {self.bytes:,} or more."
            )

    def add_image(self, width: int, height: int):
        """Count the pixels of an image, and raise a [`RequestError`] if that is too many, or too thin an image."""
        if width < 1 or height < 1 or width * height > self.most_pixels:
            raise RequestError(
                f"`inputs` must be an image of 1 to {self.most_pixels:,} pixels, got {width} x {height}."
            )
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise RequestError(
                f"`inputs` must be at most {MAX_ASPECT_RATIO} times as long as wide, got {width} x {height} pixels."
            )
        self.pixels += width * height
        if self.pixels > self.most_pixels:
            raise RequestError(
                f"`inputs` must be images of at most {self.most_pixels:,} pixels together, got {self.pixels:,} or more."
            )

    def add_masks(self, number: int, height: int, width: int):
        """Count the pixels of masks that are to be drawn, and raise a [`RequestError`] if that is too many."""
        self.mask_pixels += number * height * width
        if self.mask_pixels > MAX_PIXELS_OF_ANSWER:
            raise RequestError(
                f"the masks of an answer must have at most {MAX_PIXELS_OF_ANSWER:,} pixels together, got "
                f"{self.mask_pixels:,} or more: send smaller images, or, for objects, a higher `threshold`."
            )

    def check_time(self):
        """Raise a [`RequestError`] if time is up."""
        if time.monotonic() > self.deadline:
            raise RequestError(
                f"the request must be answered within {MAX_SECONDS} s, but is not: send fewer or smaller images."
            )


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
        RequestError: if it is none of these, no image of [`IMAGE_FORMATS`], broken, too large or too thin, or if it
            would cost far more than its size and its pixels do.
    """
    return _decode(open_image(item, processor, RequestLimits(most_pixels)), processor)


def open_image(item: Any, processor: Any, limits: RequestLimits) -> Image.Image:
    """
    The image of a request, not yet decoded.

    Args:
        item, processor: As in [`read_image`].
        limits ([`RequestLimits`]): What is left of those of the request.

    Raises:
        RequestError: as in [`read_image`].
    """
    if isinstance(item, str):
        item = _decode_base64(item, limits)
    if isinstance(item, Image.Image):
        limits.add_image(*item.size)
        return item
    if not isinstance(item, (bytes, bytearray)):
        raise RequestError(f"`inputs` must be an image, or an image file in base64, got {_name(item)}.")
    if not item:
        raise RequestError("`inputs` must be an image file, got none: it is empty.")
    limits.add_file(len(item))
    name = processor.find_format(bytes(item[:16]))
    if name not in IMAGE_FORMATS:
        raise _wrong_format(name or "no such one")
    try:
        scanned = processor.scan_file(bytes(item))
    except ValueError as error:
        raise RequestError(f"`inputs` must be a whole image file of usual build, but {error}.") from error
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
        return Image.open(io.BytesIO(scanned.content), formats=(scanned.format,))  # not yet the pixels
    except Exception as error:  # PIL's readers raise many kinds for files that are broken
        raise RequestError(f"`inputs` must be a whole image file: {error}") from error


def _wrong_format(name: str) -> RequestError:
    return RequestError(f"`inputs` must be an image file ({', '.join(IMAGE_FORMATS)}), got {name}.")


def _decode_base64(text: str, limits: RequestLimits) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:20]:
        raise RequestError("`inputs` must be an image file in base64: URLs are not fetched.")
    content = text.encode("ascii", "replace").translate(None, b" \t\n\r\v\f")
    if len(content) > 4 * MAX_FILE_BYTES // 3 + 4:
        limits.add_file(3 * len(content) // 4)
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise RequestError(f"`inputs` must be an image file in base64: {error}.") from error


def _decode(image: Image.Image, processor: Any) -> Image.Image:
    try:
        return processor.read_image(image)
    except Exception as error:
        raise RequestError(f"`inputs` must be a whole image file: {error}") from error


def most_pixels(run: Any) -> int:
    """The limit of the pixels of all images of a request together, for a pipeline."""
    if run.task != "image-segmentation":
        return MAX_PIXELS
    classes = 1 if _draws_objects(run.image_processor) else run.model.config.num_labels
    return min(MAX_PIXELS_OF_MASKS, MAX_PIXELS_TIMES_CLASSES // classes)


def limit_masks(run: Any):
    """
    Let a pipeline of image segmentation count the masks of an answer before it draws them, and raise a
    [`RequestError`] for too many pixels: of a request to [`EndpointHandler`], or of a call of its own.
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
    """That of an image's objects, at most; or of the classes on its map, which is drawn small."""
    if _draws_objects(processor):
        sizes = outputs["target_size"]
        [found] = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return len(found["scores"])
    height, width = outputs["logits"].shape[2:]
    [classes] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(2 * height, 2 * width)])
    return len(classes.unique())


def _to_json(answer: Any, limits: RequestLimits) -> Any:
    """The pipeline's answer with images as PNG files in base64."""
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
    "most_pixels",
    "open_image",
    "pipeline_task",
    "read_image",
]
