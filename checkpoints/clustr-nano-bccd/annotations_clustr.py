# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Validation and decoding of COCO annotations: boxes, classes, polygons and run-length encodings.

Sizes are (height, width).
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from .image_reading_clustr import MAX_COORDINATE


try:  # required for polygons only
    from faster_coco_eval.core import mask as coco_mask
except ImportError:
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        coco_mask = None


# Limit of the coordinates of polygons, in multiples of the longer side of the image: some objects exceed their image.
MAX_RELATIVE_COORDINATE = 100
# Limit of the outline of polygons in pixels for images of any size. (COCO's functions draw it in fifths of a pixel.)
MAX_OUTLINE = 1_000_000
# Maximum number of characters per number in a compressed run-length encoding; 35 bits exceed the pixels of any image.
MAX_CHARACTERS = 7


def encode_mask(mask: torch.Tensor) -> dict[str, list[int]]:
    """
    Encode a mask as COCO's uncompressed run-length encoding.

    Args:
        mask (`torch.BoolTensor` of shape `(height, width)`): Mask of the object.

    Returns:
        `dict`: `size` [height, width] and `counts`, the alternating lengths of runs of 0 and 1 in column-major order.
    """
    pixels = mask.cpu().numpy().T.flatten()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(pixels)]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(pixels) and pixels[0] else counts}


def decode_segmentation(segmentation: Mapping[str, Any] | Sequence, size: tuple[int, int]) -> torch.Tensor:
    """
    Decode the mask of an object.

    Args:
        segmentation (`dict` or `list[list[float]]`): A COCO run-length encoding, compressed or not, or polygons, with
            alternating x and y of their corners or pairs (x, y). Polygons of fewer than three corners are ignored if
            there are others.
        size (`tuple[int, int]`): (height, width) of the image.

    Returns:
        `torch.BoolTensor` of shape `(height, width)`, on the CPU.

    Raises:
        ImportError: for polygons, if neither faster-coco-eval nor pycocotools is installed.
        ValueError: if the segmentation is missing, malformed or of another size: values that are not numbers, not
            finite or far outside the image, no polygon of three corners, or run lengths that do not fill the image.
    """
    if isinstance(segmentation, Mapping) and segmentation:
        counts = run_lengths(segmentation, size)
        pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return torch.from_numpy(pixels.reshape(size[::-1]).T.copy())
    polygons = _read_polygons(segmentation, size)
    if coco_mask is None:
        raise ImportError("decoding polygons requires a package: pip install faster-coco-eval")
    return torch.from_numpy(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool))


def run_lengths(encoding: Mapping[str, Any], size: tuple[int, int] | None = None) -> np.ndarray:
    """
    Alternating lengths of runs of 0 and 1, in column-major order, from a COCO run-length encoding, compressed or not.

    Args:
        encoding (`Mapping`): `size` [height, width] and `counts`, numbers or a string.
        size (`tuple[int, int]`, *optional*): Expected `size`.

    Returns:
        `np.ndarray` of int64, non-negative, with sum height x width.

    Raises:
        ValueError: if the encoding is malformed or has another size.
    """
    stated, counts = (encoding.get(key) if isinstance(encoding, Mapping) else None for key in ("size", "counts"))
    stated = _as_numbers(stated)
    if stated is None or len(stated) != 2 or not _are_whole(stated, 1, 2**31) or math.prod(map(int, stated)) > 2**40:
        raise ValueError(
            "`annotations` must have run-length encodings with 'size', [height, width], and 'counts', got "
            f"{reprlib.repr(encoding)}."
        )
    if size is not None and tuple(map(int, stated)) != tuple(size):
        raise ValueError(
            f"`annotations` must have masks of the size of their upright image, {tuple(size)}, got {encoding['size']}."
        )
    number = math.prod(map(int, stated))
    lengths = _decompress(counts, number) if isinstance(counts, (str, bytes)) else _as_numbers(counts)
    if lengths is None or not _are_whole(lengths, 0, number) or int(lengths.sum()) != number:
        length = f" of {len(counts)} characters" if isinstance(counts, (str, bytes)) else ""
        raise ValueError(
            f"`annotations` must have run lengths of {number} pixels in total, got {reprlib.repr(counts)}{length}."
        )
    return lengths.astype(np.int64)


def _as_numbers(values: Any) -> np.ndarray | None:
    """A list, tuple, array or tensor of numbers as an array (n,) of integers or floats; None for anything else."""
    if not isinstance(values, (list, tuple, np.ndarray, torch.Tensor)):
        return None
    try:
        numbers = np.asarray(values)
    except (OverflowError, RuntimeError, TypeError, ValueError):  # ragged, or not on the CPU
        return None
    return numbers if numbers.ndim == 1 and numbers.dtype.kind in "iuf" else None


def _are_whole(numbers: np.ndarray, low: int, high: int) -> bool:
    """Whether all numbers are integers of any type in [low, high]; False for NaN."""
    return bool(((numbers >= low) & (numbers <= high)).all() and (numbers == np.floor(numbers)).all())


def _decompress(counts: str | bytes, number: int) -> np.ndarray | None:
    """
    Decode COCO's compressed run lengths; None if the string is malformed, in which case COCO's own functions read out
    of bounds, or longer than any mask with this number of pixels requires. Each character holds 5 bits of a number,
    lowest first, and a bit that is set if more characters follow; the last one holds the sign. From the fourth number
    on, the string stores differences to the number two positions before.
    """
    if len(counts) > MAX_CHARACTERS * (number + 1):
        return None
    try:
        codes = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(int) - 48
    except UnicodeEncodeError:
        return None
    if len(codes) == 0 or codes.min() < 0 or codes.max() >= 64 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if digits.max() >= MAX_CHARACTERS:
        return None
    lengths = np.add.reduceat((codes & 31) << 5 * digits, starts)
    lengths -= np.where(codes[ends] & 16, 1 << 5 * (digits[ends] + 1), 0)
    for first in (1, 2):
        lengths[first::2] = lengths[first::2].cumsum()
    return lengths


def _read_polygons(segmentation: Any, size: tuple[int, int]) -> list[list[float]]:
    """Polygons with at least three corners as alternating x and y, which COCO's functions can draw."""
    if isinstance(segmentation, (np.ndarray, torch.Tensor)):
        segmentation = segmentation.tolist()
    if not segmentation:
        raise ValueError(
            "`annotations` must have 'segmentation' for masks, polygons or a run-length encoding, got none."
        )
    if not isinstance(segmentation, (list, tuple)):
        raise ValueError(
            "`annotations` must have 'segmentation' as a list of polygons or a run-length encoding, got "
            f"{reprlib.repr(segmentation)}."
        )
    if all(isinstance(value, Real) for value in segmentation):
        raise ValueError("`annotations` must have 'segmentation' as a list of polygons, got one list of numbers.")
    polygons = [_read_polygon(polygon, size) for polygon in join_pairs(segmentation)]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        raise ValueError(
            "`annotations` must have 'segmentation' with a polygon of at least three corners, got "
            f"{reprlib.repr(segmentation)}."
        )
    return polygons


def join_pairs(segmentation: Sequence[Any]) -> list[Any]:
    """Convert polygons, or a single one, from pairs (x, y) to alternating x and y; others are returned unchanged."""
    if all(map(_is_pair, segmentation)):  # a single polygon, rather than several polygons of one corner
        segmentation = [segmentation]
    return [_join_corners(polygon) for polygon in segmentation]


def _join_corners(polygon: Any) -> Any:
    if isinstance(polygon, (list, tuple)) and polygon and all(map(_is_pair, polygon)):
        return [value for pair in polygon for value in _as_numbers(pair).tolist()]
    return polygon


def _is_pair(corner: Any) -> bool:
    numbers = _as_numbers(corner)
    return numbers is not None and len(numbers) == 2


def _read_polygon(polygon: Any, size: tuple[int, int]) -> list[float]:
    """Corners of a polygon as alternating x and y."""
    if isinstance(polygon, (np.ndarray, torch.Tensor)) and polygon.ndim == 2 and polygon.shape[1] == 2:
        polygon = polygon.reshape(-1)
    corners = _as_numbers(polygon)
    if corners is None or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError(
            "`annotations` must have 'segmentation' with polygons of finite numbers, alternating x and y, got "
            f"{reprlib.repr(polygon)}."
        )
    corners = corners.astype(np.float64)
    x, y = corners[0::2], corners[1::2]
    outline = np.maximum(abs(x - np.roll(x, 1)), abs(y - np.roll(y, 1))).sum()
    limit = MAX_RELATIVE_COORDINATE * max(size)
    if abs(corners).max(initial=0) > limit or outline > max(MAX_OUTLINE, math.prod(size)):
        raise ValueError(
            f"`annotations` must have 'segmentation' with polygons in or near their image of {size} pixels, got "
            f"coordinates from {corners.min()} to {corners.max()}."
        )
    return corners.tolist()


def check_annotations(annotations: Any, num_images: int) -> list[Mapping[str, Any]]:
    """
    Check the argument `annotations` of the image processor.

    Raises:
        ValueError: unless it has one dictionary per image, with `image_id` and a list `annotations`.
    """
    annotations = [annotations] if isinstance(annotations, Mapping) else annotations
    if not isinstance(annotations, (list, tuple)) or len(annotations) != num_images:
        got = len(annotations) if isinstance(annotations, (list, tuple)) else reprlib.repr(annotations)
        raise ValueError(
            "`annotations` must be a dictionary, or a list with one for each image, but the number of images "
            f"({num_images}) and annotations ({got}) do not match."
        )
    for index, target in enumerate(annotations):
        is_whole = isinstance(target, Mapping) and "image_id" in target
        if not is_whole or not isinstance(target.get("annotations"), (list, tuple)):
            raise ValueError(
                f"`annotations[{index}]` must be a dictionary with 'image_id' and 'annotations', a list of COCO "
                f"annotations, got {reprlib.repr(target)}."
            )
        for number, annotation in enumerate(target["annotations"]):
            if not isinstance(annotation, Mapping):
                raise ValueError(
                    f"image {target['image_id']}: `annotations[{number}]` must be a dictionary, got "
                    f"{reprlib.repr(annotation)}."
                )
    return list(annotations)


def decode_masks(annotations: Sequence[tuple[int, Mapping[str, Any]]], size: tuple[int, int]) -> torch.Tensor:
    """
    Masks of objects as a `torch.BoolTensor` of shape `(n, height, width)` on the CPU. Each annotation comes with its
    index, which the errors of [`decode_segmentation`] then name.
    """
    masks = []
    for index, annotation in annotations:
        try:
            masks.append(decode_segmentation(annotation.get("segmentation"), size))
        except ValueError as error:
            raise ValueError(f"annotation {index}: {error}") from error
    return torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool, device="cpu")


def clean_annotation(annotation: Mapping[str, Any], index: int) -> dict[str, Any]:
    """
    Validate and normalise a COCO annotation.

    Args:
        annotation (`Mapping`): `bbox`, `category_id`, and optionally `area`, `iscrowd` and `segmentation`, which may be
            None. Numbers may have any type, including 0-d arrays and tensors and integers written as floats; the box
            may be an array or tensor.
        index (`int`): Index among the annotations of the image, for error messages.

    Returns:
        `dict`: the annotation without entries that are None, with floats for the box and the area, and with ints for
        the class and for `iscrowd`, which is 0 or 1.

    Raises:
        ValueError: if the box is not four finite numbers of magnitude at most 2**24 with non-negative width and height,
            the class is not a non-negative integer, the area is negative or not finite, or `iscrowd` is not 0 or 1.
    """
    name = f"`annotations[{index}]"
    if not isinstance(annotation, Mapping):
        raise ValueError(f"{name}` must be a dictionary, got {reprlib.repr(annotation)}.")
    cleaned = {key: value for key, value in annotation.items() if value is not None}
    box = cleaned.get("bbox")
    box = box.tolist() if isinstance(box, (np.ndarray, torch.Tensor)) else box
    box = [_as_number(value) for value in box] if isinstance(box, (list, tuple)) else []
    if len(box) != 4 or None in box or min(box[2:]) < 0 or max(map(abs, box)) > MAX_COORDINATE:
        raise ValueError(
            f"{name}['bbox']` must be (x, y, width, height), got {reprlib.repr(annotation.get('bbox'))}: expected "
            f"four numbers of at most {MAX_COORDINATE}, with non-negative width and height."
        )
    category, area, is_crowd = (
        _as_number(cleaned.get(key, default)) for key, default in (("category_id", None), ("area", 0), ("iscrowd", 0))
    )
    if category is None or category != int(category) or not 0 <= category < 2**63:
        raise ValueError(
            f"{name}['category_id']` must be the index of a class, got {reprlib.repr(annotation.get('category_id'))}."
        )
    if area is None or area < 0:
        raise ValueError(
            f"{name}['area']` must be a non-negative number of pixels, got {reprlib.repr(annotation['area'])}."
        )
    if is_crowd not in (0, 1):
        raise ValueError(f"{name}['iscrowd']` must be 0 or 1, got {reprlib.repr(annotation['iscrowd'])}.")
    cleaned.update(bbox=list(map(float, box)), category_id=int(category), iscrowd=int(is_crowd))
    return {**cleaned, "area": float(area)} if "area" in cleaned else cleaned


def clean_image_id(image_id: Any) -> int:
    """
    Id of an image as an int.

    Raises:
        ValueError: unless the id is an integer, of any numeric type.
    """
    number = _as_number(image_id)
    if number is None or number != int(number) or not -(2**63) <= number < 2**63:
        raise ValueError(f"`annotations` must have an integer as 'image_id', got {reprlib.repr(image_id)}.")
    return int(number)


def _as_number(value: Any) -> Real | None:
    """A Python number from a number, 0-d array or tensor that is finite in float32; None for anything else."""
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) and value.ndim == 0:
        value = value.item()
    is_number = isinstance(value, Real) and abs(value) <= torch.finfo(torch.float32).max  # False for NaN
    return value if is_number else None


__all__ = [
    "check_annotations",
    "clean_annotation",
    "clean_image_id",
    "decode_masks",
    "decode_segmentation",
    "encode_mask",
    "join_pairs",
    "run_lengths",
]
