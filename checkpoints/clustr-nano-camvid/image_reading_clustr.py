# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Decode image files, PIL images and arrays to 8-bit RGB, for image processors, pipelines and training.

Malformed EXIF or XMP is ignored, so it never makes an image unreadable. PNG, JPEG, WebP, GIF and TIFF files are scanned
before PIL reads them ([`~image_files_clustr.scan_file`]), so the memory and time to decode a file are bounded by its
size and its pixels. PIL reads files of other formats without a scan.
"""

import base64
import functools
import io
import mmap
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from .image_files_clustr import ImageFileError, ScannedFile, find_format, scan_file


try:  # transformers' own client
    import httpx
except ImportError:
    httpx = None


# EXIF tag of the orientation, and the transposition for each of its values.
ORIENTATION = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(r'tiff:Orientation(?:="|>)([0-9])')
# The entry of an AVIF file that declares its EXIF block (ISO/IEC 23008-12): version, id, protection, type.
_AVIF_EXIF_ENTRY = re.compile(rb"(infe\x02.{7})Exif", flags=re.DOTALL)

# PIL's modes of 16-bit greyscale.
_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_TORCH_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)

# Maximum size of a file that is read from a URL.
MAX_FETCHED_BYTES = 256 * 2**20
_WHITESPACE = b" \t\n\r\v\f"

# Large images are converted in blocks of this number of pixels to limit memory.
PIXELS_AT_ONCE = 2**20

# Limit of coordinates in pixels: float32 cannot represent all larger integers, and no image is that large.
MAX_COORDINATE = 2**24
# Largest label of a map, which is resized in float32.
MAX_LABEL = 2**24 - 2


def read_image(image: Image.Image | str | os.PathLike[str] | bytes, timeout: float | None = None) -> Image.Image:
    """
    Decode an image as the models see it: rotated by its EXIF or XMP orientation, 8-bit RGB, blended with white.

    Args:
        image (`PIL.Image.Image`, `str`, `os.PathLike` or `bytes`): An image, or a source for [`open_image`].
        timeout (`float`, *optional*): Timeout of a URL's server in seconds.

    Returns:
        `PIL.Image.Image`: a copy without metadata, which other libraries may fail on or apply a second time.

    Raises:
        TypeError: if `image` has another type.
        ValueError: if the image cannot be decoded, would require excessive memory or time, or has 32-bit grey values
            outside [0, 65535].
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        image = open_image(image, timeout)
    if not isinstance(image, Image.Image):
        raise TypeError(f"`images` must be PIL images, paths, URLs or bytes, got a {type(image).__name__}.")
    return to_rgb(image)


def open_image(source: str | os.PathLike[str] | bytes, timeout: float | None = None) -> Image.Image:
    """
    Open an image with PIL without decoding its pixels.

    Args:
        source (`str`, `os.PathLike` or `bytes`): Path, URL, base64-encoded image file (also as a `data:` URL), or the
            bytes of an image file.
        timeout (`float`, *optional*): Timeout of a URL's server in seconds.

    Raises:
        ValueError: if the file does not exist, has no format that PIL supports, or would require excessive memory or
            time.
    """
    content = source if isinstance(source, bytes) else None
    name = "bytes" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, str) and not os.path.isfile(source):
        content = _fetch(source, timeout)
    try:
        return _open_path(name) if content is None else _open_content(content)
    except (ImageFileError, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from error
    except Exception as error:  # PIL raises almost any exception for broken files
        again = _open_avif_without_exif(name, content)
        if again is None:
            raise _unreadable(name, error) from error
        return again


def _open_path(path: str) -> Image.Image:
    """Open a file with PIL. TIFF files may be larger than memory, so they are scanned on disk."""
    with open(path, "rb") as file:
        start = file.read(16)
        name = find_format(start)
        if name == "TIFF":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_bomb(scan_file(content))
        elif name is not None:
            image = _open_content(start + file.read())
            image.filename = path
            return image
    return Image.open(path)


def _open_content(content: bytes) -> Image.Image:
    scanned = scan_file(content)
    _check_bomb(scanned)
    return Image.open(io.BytesIO(scanned.content), formats=scanned.format and (scanned.format,))


def _check_bomb(scanned: ScannedFile):
    """Apply PIL's own limit of pixels early: for WebP, PIL checks it only after allocating the pixels."""
    if Image.MAX_IMAGE_PIXELS is not None and scanned.width * scanned.height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{scanned.width} x {scanned.height} pixels may be a decompression bomb: they are more than twice "
            f"`PIL.Image.MAX_IMAGE_PIXELS`, {Image.MAX_IMAGE_PIXELS:,}"
        )


def guard_pil(formats: Sequence[str], max_pixels: int, max_bytes: int) -> None:
    """
    Make `PIL.Image.open` apply the checks of [`open_image`] and stricter limits in the whole process, for servers whose
    framework opens images before any code of the repository runs.

    Args:
        formats (`Sequence[str]`): PIL's names of the allowed formats, which [`scan_file`] must support.
        max_pixels (`int`): Maximum number of pixels of an image.
        max_bytes (`int`): Maximum size of a file.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # PIL rejects images with more than twice as many
    for name in tuple(Image.OPEN):
        factory, accept = Image.OPEN.pop(name)
        Image.ID.remove(name)
        if name in formats:
            Image.register_open(name, functools.partial(_open_guarded, factory, max_bytes), accept)


def _open_guarded(factory: Callable, max_bytes: int, file: BinaryIO, filename: str | bytes) -> Image.Image:
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ImageFileError(f"An image file must have at most {max_bytes:,} bytes.")
    scanned = scan_file(content)
    _check_bomb(scanned)
    return factory(io.BytesIO(scanned.content), filename)


def _fetch(source: str, timeout: float | None) -> bytes:
    """Content of a URL or a base64 string."""
    if source.startswith(("http://", "https://")):
        content = bytearray()
        with httpx.stream("GET", source, timeout=timeout, follow_redirects=True) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_FETCHED_BYTES:
                    raise ValueError(f"`images` must be files of at most {MAX_FETCHED_BYTES:,} bytes, got {source}.")
        return bytes(content)
    text = source.partition(",")[2] if source.startswith("data:image/") else source
    try:
        return base64.b64decode(text.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except ValueError as error:
        raise ValueError(
            f"`images` must be readable, but {source[:200]!r} is neither a file, nor a URL, nor a base64-encoded image."
        ) from error


def _open_avif_without_exif(name: str, content: bytes | None) -> Image.Image | None:
    """Open an AVIF file that PIL rejects due to its EXIF block; None for any other file or error."""
    try:
        if content is None:
            with open(name, "rb") as file:
                content = file.read(32)
                content = content + file.read() if b"avi" in content else b""
        if content[4:8] != b"ftyp":
            return None
        return Image.open(io.BytesIO(_AVIF_EXIF_ENTRY.sub(rb"\1skip", content)))
    except Exception:
        return None


def load_image(image: Image.Image) -> Image.Image:
    """
    Decode the pixels of an image. Mode and orientation are unchanged, except that PIL rotates TIFF images itself.

    Raises:
        ValueError: if the pixels cannot be decoded.
    """
    try:
        image.load()
        return image
    except Exception as error:
        try:
            if image.format == "TIFF" and not image.tile:  # the pixels are decoded: the metadata may be malformed
                return _load_tiff_without_metadata(image)
        except Exception:
            pass
        raise _unreadable(getattr(image, "filename", ""), error) from error


def _load_tiff_without_metadata(image: Image.Image) -> Image.Image:
    """Decode a TIFF image with its orientation as the only metadata; PIL also parses EXIF and XMP."""
    frame = image.tell()
    image.fp.seek(0)
    again = Image.open(image.fp, formats=("TIFF",))
    again.seek(frame)
    transposition = TRANSPOSITIONS.get(again.tag_v2.get(ORIENTATION))
    again.getexif = Image.Exif
    again.load()
    return again.copy() if transposition is None else again.transpose(transposition)


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as returned by [`read_image`]."""
    rgb = as_rgb(image)
    rgb = rgb.convert("RGB") if rgb is image else rgb  # a copy that is independent of the file
    rgb.info = {}
    return rgb


def as_rgb(image: Image.Image) -> Image.Image:
    """As [`to_rgb`], but returns an upright RGB image itself, with its metadata, which saves the memory of a copy."""
    image = load_image(image)
    transposition = find_transposition(image)
    image = image if transposition is None else image.transpose(transposition)
    if image.mode in _DEEP_GREY_MODES:
        image = Image.fromarray(_from_16_bit(np.asarray(image)))
    elif image.mode in ("I", "F"):
        image = _from_32_bit(np.asarray(image))
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> uint8 (3, height, width), converted in blocks of rows; at once, it would take two more copies."""
    width, height = image.size
    tensor = torch.empty(3, height, width, dtype=torch.uint8, device="cpu")
    rows = max(1, PIXELS_AT_ONCE // max(1, width))
    for top in range(0, height, rows):
        part = np.array(image.crop((0, top, width, min(height, top + rows))))
        tensor[:, top : top + rows] = torch.from_numpy(part).permute(2, 0, 1)
    return tensor


def _on_white(image: Image.Image) -> Image.Image:
    """Blend a transparent image with white in blocks of rows; at once, it would take five copies in memory."""
    width, height = image.size
    rgb, rows = Image.new("RGB", image.size), max(1, PIXELS_AT_ONCE // max(1, width))
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return rgb


def find_transposition(image: Image.Image) -> Image.Transpose | None:
    """Transposition that rotates an image upright; None if it is upright or its metadata cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION)
        transposition = TRANSPOSITIONS.get(orientation)
    except Exception:  # PIL raises SyntaxError, struct.error, TypeError and others for malformed blocks
        orientation, transposition = None, None
    if orientation is not None:
        return transposition
    for key in ("XML:com.adobe.xmp", "xmp"):
        xmp = image.info.get(key)
        xmp = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp
        found = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, str) else None
        if found is not None:
            return TRANSPOSITIONS.get(int(found[1]))
    return None


def _from_16_bit(values: np.ndarray) -> np.ndarray:
    return np.round(np.arange(2**16) / 257).astype(np.uint8)[values.astype(np.uint16)]


def _from_32_bit(values: np.ndarray) -> Image.Image:
    """
    32-bit greyscale as 8-bit. The range is inferred from the values: floats up to 1 are in [0, 1], other values up to
    255 are 8-bit, and values up to 65535 are 16-bit.
    """
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # False for NaN, too
        raise ValueError(f"`images` must have grey values in [0, 65535], got values from {low} to {high}.")
    if np.issubdtype(values.dtype, np.floating) and high <= 1:
        values = values * 255
    elif high > 255:
        values = values / 257
    return Image.fromarray(np.round(values).astype(np.uint8))


def _unreadable(name: Any, error: Exception) -> ValueError:
    return ValueError(
        f"`images` must be readable, but {name or 'an image without a file name'} could not be decoded: {error}."
    )


def read_array(image: np.ndarray | torch.Tensor, highest: float | None = 255.0) -> torch.Tensor:
    """
    Convert an image array of any dtype to a tensor of the same shape.

    Args:
        image (`np.ndarray` or `torch.Tensor`): bool, integer or float.
        highest (`float`, *optional*): Largest valid value; the smallest is 0. None allows any finite float, and
            integers in [0, 255].

    Returns:
        `torch.Tensor`: uint8 for uint8, for bool (0 and 255), for uint16 (rescaled from [0, 65535] to [0, 255]) and for
        other integers in [0, 255]; float32 for everything else, and for bool (0 and 1) if `highest` is below 255.

    Raises:
        ValueError: for other dtypes, NaN, infinity and values out of range.
    """
    tensor = _as_tensor("images", image)
    if tensor.dtype == torch.bool:
        is_float = highest is None or highest < 255
        return tensor.to(torch.float32) if is_float else tensor.to(torch.uint8) * 255
    if tensor.dtype == torch.uint16:
        tensor, dtype = (tensor.to(torch.float32) / 257).round().to(torch.uint8), "uint16"
    else:
        dtype = _dtype_name(image)
        integers = tensor.dtype in _TORCH_INTEGERS
        tensor = tensor if tensor.dtype == torch.uint8 else tensor.to(torch.int64 if integers else torch.float32)
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"`images` must be finite, got NaN or infinity in an image array of dtype {dtype}.")
    if tensor.numel() == 0 or (highest is None and tensor.dtype != torch.int64):
        return tensor
    _check_range(tensor, dtype, 255.0 if highest is None else highest)
    if tensor.dtype == torch.int64:
        tensor = tensor.to(torch.uint8 if tensor.max() <= 255 else torch.float32)
    return tensor


def _check_range(tensor: torch.Tensor, dtype: str, highest: float):
    low, high = tensor.min().item(), tensor.max().item()
    tolerance = 1e-5 * highest if tensor.is_floating_point() else 0  # for rounding errors
    if low < -tolerance or high > highest + tolerance:
        kind = "" if tensor.dtype != torch.uint8 or dtype == "uint8" else " (read as 8-bit)"
        advice = " with `do_rescale=False`" if highest <= 1 else ""
        raise ValueError(
            f"`images` must have values in [0, {highest:g}]{advice}, got an array of dtype {dtype}{kind} with values "
            f"from {low:g} to {high:g}."
        )


def read_label_map(label_map: np.ndarray | torch.Tensor) -> torch.Tensor:
    """
    Convert a label map of any dtype that holds integers to an int64 tensor of the same shape.

    Raises:
        ValueError: for other dtypes, NaN, infinity, fractions, and labels that are negative or above [`MAX_LABEL`].
    """
    tensor = _as_tensor("segmentation_maps", label_map)
    dtype = _dtype_name(label_map)
    if tensor.is_floating_point() and not (tensor.isfinite().all() and (tensor == tensor.round()).all()):
        raise ValueError(f"`segmentation_maps` must hold whole numbers, got a map of dtype {dtype} with other values.")
    tensor = tensor.to(torch.int64)
    if tensor.numel() and not 0 <= tensor.min() <= tensor.max() <= MAX_LABEL:
        raise ValueError(
            f"`segmentation_maps` must have labels in [0, {MAX_LABEL}], with 255 for ignored pixels, got a map of "
            f"dtype {dtype} with labels from {tensor.min()} to {tensor.max()}."
        )
    return tensor


def _as_tensor(name: str, values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The values as a tensor, including numpy's half and long floats, other byte orders and strides."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        if values.dtype.kind == "f":
            values = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
        native = values.dtype.newbyteorder("=")
        values = torch.from_numpy(np.require(values, dtype=native, requirements=("C", "W")))
    if not isinstance(values, torch.Tensor) or values.is_complex() or values.is_quantized:
        raise ValueError(f"`{name}` must be bool, integers or floats, got an array of dtype {_dtype_name(values)}.")
    return values


def _dtype_name(values: np.ndarray | torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
