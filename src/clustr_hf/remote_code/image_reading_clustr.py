# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Image files, PIL images and arrays as 8-bit RGB: what the image processors, the pipelines and the training scripts read.

Metadata never make an image unreadable: where EXIF or XMP are malformed, the image is read as if they were not there.
Files of PNG, JPEG, WebP, GIF and TIFF are looked through before PIL reads them ([`~image_files_clustr.scan_file`]), so
that none costs far more memory or time than its size and its pixels do. Files of other formats PIL reads unchecked.
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


# Tag of EXIF, and what its values ask for.
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

# PIL's modes for 16 bits of grey.
_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_TORCH_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)

# What is read from a URL, and of a text that may be base64, at most.
MAX_FETCHED_BYTES = 256 * 2**20
_WHITESPACE = b" \t\n\r\v\f"

PIXELS_AT_ONCE = 2**20  # of a large image that are converted together

# Greatest label of a map: resizing goes through float32, which holds larger integers no longer.
MAX_LABEL = 2**24 - 2


def read_image(image: Image.Image | str | os.PathLike | bytes, timeout: float | None = None) -> Image.Image:
    """
    An image as the models see it: upright by its EXIF or XMP orientation, 8-bit RGB, transparency on white.

    Args:
        image (`PIL.Image.Image`, `str`, `os.PathLike` or `bytes`): An image, or what [`open_image`] opens.
        timeout (`float`, *optional*): Seconds to wait for the server of a URL.

    Returns:
        `PIL.Image.Image`: a copy without metadata, which other libraries may stumble over or apply once more.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it cannot be decoded, would cost far more than its size and its pixels do, or its 32-bit grey
            values are beyond [0, 65535].
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        image = open_image(image, timeout)
    if not isinstance(image, Image.Image):
        raise TypeError(f"`images` must be PIL images, paths, URLs or bytes, got a {type(image).__name__}.")
    return to_rgb(image)


def open_image(source: str | os.PathLike | bytes, timeout: float | None = None) -> Image.Image:
    """
    A PIL image whose pixels are not decoded yet.

    Args:
        source (`str`, `os.PathLike` or `bytes`): Path, URL, image file in base64 (also as a `data:` URL), or the bytes
            of an image file.
        timeout (`float`, *optional*): Seconds to wait for the server of a URL.

    Raises:
        ValueError: if there is no such file, it has no format of PIL's, or it would cost far more to read than its size
            and its pixels do.
    """
    content = source if isinstance(source, bytes) else None
    name = "bytes" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, str) and not os.path.isfile(source):
        content = _fetch(source, timeout)
    try:
        return _open_path(name) if content is None else _open_content(content)
    except (ImageFileError, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from error
    except Exception as error:  # PIL's readers raise almost anything for broken files
        again = _open_avif_without_exif(name, content)
        if again is None:
            raise _unreadable(name, error) from error
        return again


def _open_path(path: str) -> Image.Image:
    """PIL's image of a file. TIFF files, which may be larger than memory, are looked through where they are."""
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
    """PIL's own limit of pixels, which it looks at when it has made room for those of a WebP image."""
    if Image.MAX_IMAGE_PIXELS is not None and scanned.width * scanned.height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{scanned.width} x {scanned.height} pixels may be a decompression bomb: they are more than twice "
            f"`PIL.Image.MAX_IMAGE_PIXELS`, {Image.MAX_IMAGE_PIXELS:,}"
        )


def guard_pil(formats: Sequence[str], most_pixels: int, most_bytes: int):
    """
    From now on, let `PIL.Image.open` in this whole process refuse all that [`open_image`] would, and more: for servers
    whose framework opens images before their own code sees them.

    Args:
        formats (`Sequence[str]`): PIL's names of the formats that it may read, of those that [`scan_file`] knows.
        most_pixels (`int`): The largest image, in pixels.
        most_bytes (`int`): The largest file.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = most_pixels // 2  # PIL refuses images of more than twice this
    for name in tuple(Image.OPEN):
        factory, accept = Image.OPEN.pop(name)
        Image.ID.remove(name)
        if name in formats:
            Image.register_open(name, functools.partial(_open_guarded, factory, most_bytes), accept)


def _open_guarded(factory: Callable, most_bytes: int, file: BinaryIO, filename: str | bytes) -> Image.Image:
    content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ImageFileError(f"An image file must have at most {most_bytes:,} bytes.")
    scanned = scan_file(content)
    _check_bomb(scanned)
    return factory(io.BytesIO(scanned.content), filename)


def _fetch(source: str, timeout: float | None) -> bytes:
    """The content of a URL, or of base64."""
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
            f"`images` must be readable, but {source[:200]!r} is no file, no URL and no image file in base64."
        ) from error


def _open_avif_without_exif(name: str, content: bytes | None) -> Image.Image | None:
    """An AVIF file that PIL refuses for its EXIF block; None for other files, and those with other faults."""
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
    The image, its pixels decoded; mode and orientation stay as they are (but PIL itself turns TIFF images upright).

    Raises:
        ValueError: if the pixels cannot be decoded.
    """
    try:
        image.load()
        return image
    except Exception as error:
        try:
            if image.format == "TIFF" and not image.tile:  # decoded: perhaps only the metadata are at fault
                return _load_tiff_without_metadata(image)
        except Exception:
            pass
        raise _unreadable(getattr(image, "filename", ""), error) from error


def _load_tiff_without_metadata(image: Image.Image) -> Image.Image:
    """PIL reads EXIF and XMP of a TIFF image when it decodes it; here nothing but the orientation is read."""
    frame = image.tell()
    image.fp.seek(0)
    again = Image.open(image.fp, formats=("TIFF",))
    again.seek(frame)
    transposition = TRANSPOSITIONS.get(again.tag_v2.get(ORIENTATION))
    again.getexif = Image.Exif
    again.load()
    return again.copy() if transposition is None else again.transpose(transposition)


def to_rgb(image: Image.Image) -> Image.Image:
    """As [`read_image`] gives it, of a PIL image."""
    rgb = as_rgb(image)
    rgb = rgb.convert("RGB") if rgb is image else rgb  # a copy, and no longer an image of a file
    rgb.info = {}
    return rgb


def as_rgb(image: Image.Image) -> Image.Image:
    """As [`to_rgb`], but the image itself, with its metadata, if it is upright RGB already: a copy costs memory."""
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
    """An RGB image as uint8 (3, height, width), some rows at a time: whole, it would be in memory twice more."""
    width, height = image.size
    tensor = torch.empty(3, height, width, dtype=torch.uint8, device="cpu")
    rows = max(1, PIXELS_AT_ONCE // max(1, width))
    for top in range(0, height, rows):
        part = np.array(image.crop((0, top, width, min(height, top + rows))))
        tensor[:, top : top + rows] = torch.from_numpy(part).permute(2, 0, 1)
    return tensor


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image on white, some rows at a time: whole, it would be in memory five times."""
    width, height = image.size
    rgb, rows = Image.new("RGB", image.size), max(1, PIXELS_AT_ONCE // max(1, width))
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return rgb


def find_transposition(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright; None where it is so already, and where its metadata cannot be read."""
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
    32-bit greyscale as 8-bit. No tag says what its values mean, but they do: floats up to 1 are shares, anything up to
    255 is 8-bit, anything up to 65535 is 16-bit.
    """
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 65535):  # false for NaN, too
        raise ValueError(f"`images` must have grey values in [0, 65535], got values from {least} to {most}.")
    if np.issubdtype(values.dtype, np.floating) and most <= 1:
        values = values * 255
    elif most > 255:
        values = values / 257
    return Image.fromarray(np.round(values).astype(np.uint8))


def _unreadable(name: Any, error: Exception) -> ValueError:
    return ValueError(
        f"`images` must be readable, but {name or 'an image without a file name'} could not be decoded: {error}."
    )


def read_array(image: np.ndarray | torch.Tensor, highest: float | None = 255.0) -> torch.Tensor:
    """
    An image array of any kind as a tensor of the same shape.

    Args:
        image (`np.ndarray` or `torch.Tensor`): bool, integer or float.
        highest (`float`, *optional*): The largest value that is allowed; the smallest is 0. None allows any finite
            float, and integers in [0, 255].

    Returns:
        `torch.Tensor`: uint8 of uint8, of bool as 0 and 255, of uint16 in [0, 65535] as the nearest of [0, 255], and of
        other integers in [0, 255]; else float32, also of bool, as 0 and 1, if `highest` is less than 255.

    Raises:
        ValueError: for another dtype, NaN, infinity, and values out of range.
    """
    tensor = _as_tensor("images", image)
    if tensor.dtype == torch.bool:
        is_share = highest is None or highest < 255
        return tensor.to(torch.float32) if is_share else tensor.to(torch.uint8) * 255
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
    least, most = tensor.min().item(), tensor.max().item()
    slack = 1e-5 * highest if tensor.is_floating_point() else 0  # of rounding
    if least < -slack or most > highest + slack:
        kind = "" if tensor.dtype != torch.uint8 or dtype == "uint8" else ", which count as 8-bit,"
        advice = " that `do_rescale=False` normalises" if highest <= 1 else ""
        raise ValueError(
            f"`images` must have values in [0, {highest:g}]{advice}, got an array of dtype {dtype}{kind} with values "
            f"from {least:g} to {most:g}."
        )


def read_label_map(label_map: np.ndarray | torch.Tensor) -> torch.Tensor:
    """
    A map of labels, of any dtype that holds whole numbers, as an int64 tensor of the same shape.

    Raises:
        ValueError: for another dtype, NaN, infinity, fractions, and labels that are negative or larger than
            [`MAX_LABEL`].
    """
    tensor = _as_tensor("segmentation_maps", label_map)
    dtype = _dtype_name(label_map)
    if tensor.is_floating_point() and not (tensor.isfinite().all() and (tensor == tensor.round()).all()):
        raise ValueError(f"`segmentation_maps` must hold whole numbers, got a map of dtype {dtype} with others.")
    tensor = tensor.to(torch.int64)
    if tensor.numel() and not 0 <= tensor.min() <= tensor.max() <= MAX_LABEL:
        raise ValueError(
            f"`segmentation_maps` must have labels in [0, {MAX_LABEL}], 255 where a pixel does not count, got a map of "
            f"dtype {dtype} with labels from {tensor.min()} to {tensor.max()}."
        )
    return tensor


def _as_tensor(name: str, values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The values as a tensor; numpy's half and long floats, other byte orders and strides, too."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        if values.dtype.kind == "f":
            values = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
        native = values.dtype.newbyteorder("=")
        values = torch.from_numpy(np.require(values, dtype=native, requirements=("C", "W")))
    if not isinstance(values, torch.Tensor) or values.is_complex() or values.is_quantized:
        raise ValueError(f"`{name}` must be of bool, integers or floats, got an array of dtype {_dtype_name(values)}.")
    return values


def _dtype_name(values: np.ndarray | torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
