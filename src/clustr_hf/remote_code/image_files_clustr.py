# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Scan image files for their size and format, and strip what PIL does not need, before PIL opens them.

PIL parses all metadata of a file when it opens it: a megabyte of tags, chunks, markers or comments can take gigabytes
or minutes. [`scan_file`] traverses a PNG, JPEG, WebP, GIF or TIFF file once, in linear time and without copying a part
twice. It rejects files with more parts than their size justifies or with tags that share values. It drops everything
that does not affect the first image: colour profiles, comments, thumbnails, further images and trailing data.
"""

import mmap
import re
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple


# Types that can be sliced, searched and unpacked.
Buffer = bytes | mmap.mmap

# A part is a chunk, a segment or a block. With few exceptions, encoders write parts of at least some hundred bytes.
MAX_PARTS, BYTES_OF_A_PART = 1000, 128
# Encoders write about 10 scans of a progressive JPEG. Each scan, however small, is a pass over all pixels.
MAX_SCANS = 64
MAX_TAGS = 4096
# Limits of the values of a TIFF tag, numbers or fractions, which PIL unpacks; a 16-bit palette has 196,608 numbers.
MAX_NUMBERS, MAX_FRACTIONS = 2**18, 4096
# JPEG limits EXIF to this size; XMP, which may hold the edit history of an image, can be larger.
MAX_EXIF_BYTES = 2**16
MAX_XMP_BYTES = 2**20

_SIGNATURES = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff",
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),
}

_PNG_CHUNK_NAME = re.compile(rb"\w{4}")
_PNG_CHUNKS = (b"PLTE", b"IEND", b"tRNS")
_PNG_XMP = b"XML:com.adobe.xmp\0"
# The last two are written by ImageMagick.
_PNG_METADATA = (b"eXIf", b"iTXt" + _PNG_XMP, b"tEXtRaw profile type exif\0", b"zTXtRaw profile type exif\0")

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # neither a stuffed byte, nor fill bytes, nor a restart
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_JPEG_TABLES = (0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD)  # Huffman, arithmetic, scan, quantisation, lines, restarts
_JPEG_METADATA = (b"JFIF\0", b"Adobe", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")

_WEBP_CHUNKS = (b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"VP8 ", b"VP8L")

# Type of a TIFF tag -> size of a value in bytes.
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WIDTH, _LENGTH, _SAMPLES = 256, 257, 277
_MAX_SAMPLES = 6  # PIL rejects more
_STRIPS_AND_TILES = (273, 279, 324, 325)
_TEXTS = (1, 2, 6, 7)  # byte types, which are not unpacked
_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability
_LAST_TAG_OF_PIXELS = 699


class ImageFileError(ValueError):
    """A file that is broken or would take excessive memory or time to read."""


@dataclass(frozen=True)
class ScannedFile:
    """
    Result of [`scan_file`].

    Args:
        format (`str` or `None`): PIL's name of the format, or None for formats that are not scanned.
        width, height (`int`): Size of the image in pixels as stored; 0 if the file does not contain it.
        content (`bytes`): The file for PIL, stripped if the format supports it.
        coding (`str`): `"arithmetic"` or `"lossless"`, which are unusual in JPEG files; `"lossless"` for WebP files
            with parts that are, or may be, lossless, including transparency; otherwise `""`.
        scans (`int`): Number of scans of a JPEG file.
    """

    format: str | None
    width: int
    height: int
    content: bytes
    coding: str = ""
    scans: int = 1


def scan_file(content: Buffer) -> ScannedFile:
    """
    Scan an image file.

    Args:
        content (`bytes` or `mmap.mmap`): Content of the file.

    Returns:
        [`ScannedFile`].

    Raises:
        ImageFileError: if the file has too many parts or scans, tags that share values, or a broken header.
    """
    name = find_format(content[:16])
    if name is None:
        return ScannedFile(None, 0, 0, content)
    try:
        return _SCANS[name](content)
    except (struct.error, IndexError) as error:
        raise ImageFileError("its header is truncated") from error


def find_format(start: bytes) -> str | None:
    """PIL's name of the format of a file, given its first 16 bytes; None unless [`scan_file`] supports it."""
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    return next((name for name, signatures in _SIGNATURES.items() if start.startswith(signatures)), None)


class _Parts:
    """Counts the parts of a file and raises an error if there are too many."""

    def __init__(self, content: Buffer):
        self.number, self.limit = 0, MAX_PARTS + len(content) // BYTES_OF_A_PART

    def count(self):
        self.number += 1
        if self.number > self.limit:
            raise ImageFileError(f"it has more than {self.limit:,} parts, too many for its size")


# PNG: chunks of length, name, data, checksum


def _scan_png(content: Buffer) -> ScannedFile:
    kept, position, parts, size, seen = [content[:8]], 8, _Parts(content), None, set()
    while position + 8 <= len(content):
        parts.count()
        length, name = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content) or not _PNG_CHUNK_NAME.fullmatch(name):
            break  # as PIL does
        if name == b"IHDR" and size is None:
            size = struct.unpack_from(">II", content, position + 8)
            kept.append(content[position:end])
        elif name in _PNG_CHUNKS or (name == b"IDAT" and length) or _is_png_metadata(content, position, length, seen):
            kept.append(content[position:end])
        position = end
        if name == b"IEND":
            position = len(content)
    kept.append(content[position:])
    return ScannedFile("PNG", *(size or (0, 0)), b"".join(kept))


def _is_png_metadata(content: Buffer, position: int, length: int, seen: set[bytes]) -> bool:
    """Whether a chunk is the first of its kind that may contain the orientation."""
    name, data = content[position + 4 : position + 8], content[position + 8 : position + 8 + min(length, MAX_XMP_BYTES)]
    kind = next((kind for kind in _PNG_METADATA if (name + data[:32]).startswith(kind)), None)
    if kind is None or kind in seen:
        return False
    seen.add(kind)  # even if it is dropped, because examining a thousand chunks would take long
    if length > MAX_XMP_BYTES:
        return False
    if name == b"eXIf":
        return _is_modest_exif(data)
    if name == b"iTXt":
        return _text_of(data) is not None
    text = data[len(kind) - 4 :]
    text = _decompress(text[1:]) if name == b"zTXt" else text
    try:
        return text is not None and _is_modest_exif(bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode()))
    except ValueError:
        return False


def _text_of(chunk: bytes) -> bytes | None:
    """Text of an iTXt chunk; None if it is too long or malformed."""
    start = len(_PNG_XMP)  # two flags, then a language and a translated name, both null-terminated
    text = [*chunk[start + 2 :].split(b"\0", 2), b"", b""][2]
    return _decompress(text) if chunk[start : start + 1] == b"\x01" else text


def _decompress(data: bytes) -> bytes | None:
    """Decompressed data; None if it is malformed or exceeds PIL's limit."""
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(data, MAX_XMP_BYTES)
    except zlib.error:
        return None
    return None if decompressor.unconsumed_tail else text


# JPEG: segments of marker, length and data, and scans, which have no length


def _scan_jpeg(content: Buffer) -> ScannedFile:
    kept, position, parts = [b"\xff\xd8"], 2, _Parts(content)
    frame, scans, seen = None, 0, set()
    while found := _JPEG_MARKER.search(content, position):
        parts.count()
        start, code = found.start(), found[1][0]
        kept += [content[position:start]] if scans else []  # before the first scan this is junk or fill bytes
        position = start + 2
        if code == 0xD9 and scans:
            return _jpeg(frame, scans, [*kept, b"\xff\xd9"])
        if code < 0xC0 or code in (0xD8, 0xD9):
            if not scans and code < 0xC0:
                raise ImageFileError("its header is broken")
            kept += [content[start:position]] if scans else []
            continue
        end = position + max(2, int.from_bytes(content[position : position + 2], "big"))
        segment = content[start:end]
        position = end
        if code in _JPEG_FRAMES:
            if frame is not None or len(segment) < 10:
                raise ImageFileError("it must have one frame header of a JPEG image")
            frame = code, segment
        elif code == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageFileError(f"it has more than {MAX_SCANS} scans")
        elif code not in _JPEG_TABLES:
            if not (0xE0 <= code <= 0xEF or code == 0xFE):
                raise ImageFileError(f"it has a segment of the unknown marker FF{code:02X}")
            if scans or not _is_jpeg_metadata(segment, seen):
                continue
        kept.append(segment)
    return _jpeg(frame, scans, [*kept, content[position:] if scans else b""])


def _jpeg(frame: tuple[int, bytes] | None, scans: int, kept: list[bytes]) -> ScannedFile:
    code, segment = frame or (0xC0, bytes(10))
    height, width = struct.unpack_from(">HH", segment, 5)
    coding = "arithmetic" if code > 0xC8 else "" if code <= 0xC2 else "lossless"
    return ScannedFile("JPEG", width, height, b"".join(kept), coding, scans)


def _is_jpeg_metadata(segment: bytes, seen: set[bytes]) -> bool:
    """Whether a segment is the first of its kind that affects colours or orientation."""
    name = next((name for name in _JPEG_METADATA if segment[4:].startswith(name)), None)
    if name is None or name in seen:
        return False
    seen.add(name)
    return name != b"Exif\0\0" or _is_modest_exif(segment[4:])


# WebP: chunks of name, length, data, padded to an even length


def _scan_webp(content: Buffer) -> ScannedFile:
    position, parts, kept, size, seen = 12, _Parts(content), {}, None, set()
    while position + 8 <= len(content):
        parts.count()
        name, length = struct.unpack_from("<4sI", content, position)
        end = position + 8 + length + length % 2
        start = position + 8
        data = content[start : start + min(length, MAX_XMP_BYTES + 1)]
        if name not in seen and (name in _WEBP_CHUNKS or _is_webp_metadata(name, data)):
            kept[name] = content[position:end]
        seen.add(name)
        if size is None:
            size = _webp_size(name, data)
        position = end
        if name in (b"VP8 ", b"VP8L") and b"VP8X" not in kept:
            break
    if b"VP8X" in kept:
        flags = kept[b"VP8X"][8] & 0x12  # transparency, animation
        flags |= 0x08 * (b"EXIF" in kept) | 0x04 * (b"XMP " in kept)
        kept[b"VP8X"] = kept[b"VP8X"][:8] + bytes([flags]) + kept[b"VP8X"][9:]
    chunks = b"".join(kept.values())
    chunks += bytes(len(chunks) % 2)
    coding = "lossless" if kept.keys() & {b"ALPH", b"ANMF", b"VP8L"} else ""
    content = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    return ScannedFile("WEBP", *(size or (0, 0)), content, coding)


def _webp_size(name: bytes, data: bytes) -> tuple[int, int] | None:
    """Width and height from the first chunk of a file."""
    data = data[:10].ljust(10, b"\0")
    if name == b"VP8X":
        return tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (4, 7))
    if name == b"VP8 ":
        return tuple(extent & 0x3FFF for extent in struct.unpack_from("<HH", data, 6))
    if name == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _is_webp_metadata(name: bytes, data: bytes) -> bool:
    return (name == b"XMP " and len(data) <= MAX_XMP_BYTES) or (name == b"EXIF" and _is_modest_exif(data))


# GIF: blocks, some of them with sub-blocks of up to 255 bytes


def _scan_gif(content: Buffer) -> ScannedFile:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position, parts = 13 + _table_bytes(flags), _Parts(content)
    kept = [content[:position]]
    while position < len(content) and content[position] != 0x3B:
        parts.count()
        start = position
        if content[start] == 0x2C:  # an image
            left, top, w, h, flags = struct.unpack_from("<HHHHB", content, start + 1)
            end = _end_of_blocks(content, start + 11 + _table_bytes(flags), parts)
            kept += [content[start:end], b";"] if end <= len(content) else [content[start:]]
            return ScannedFile("GIF", max(width, left + w), max(height, top + h), b"".join(kept))
        position += 1
        if content[start] == 0x21:
            position = _end_of_blocks(content, start + 2, parts)
            if content[start + 1 : start + 3] == b"\xf9\x04":  # transparency
                kept.append(content[start:position])
    return ScannedFile("GIF", width, height, b"".join(kept))


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(content: Buffer, position: int, parts: _Parts) -> int:
    """Position after the empty sub-block; beyond the end of the file if there is no such sub-block."""
    while position < len(content):
        parts.count()
        length = content[position]
        position += 1 + length
        if length == 0:
            return position
    return len(content) + 1


# TIFF, and EXIF, which has the same structure: directories of tags that point to their values


def _scan_tiff(content: Buffer) -> ScannedFile:
    tags, shared = _read_directory(content)
    for name in _DIRECTORIES:
        if not shared and name in tags:
            inner, shared = _read_directory(content, tags[name].value)
            tags = {**inner, **tags}
    if shared:
        raise ImageFileError("its tags share values: they have more bytes than the file")
    width, height, samples = (max(1, tags[tag].value) if tag in tags else 1 for tag in (_WIDTH, _LENGTH, _SAMPLES))
    max_strips = 16 + min(samples, _MAX_SAMPLES) * max(height, width * height // 64)
    for name, tag in tags.items():
        limit = max_strips if name in _STRIPS_AND_TILES else MAX_FRACTIONS if tag.kind in (5, 10) else MAX_NUMBERS
        if name <= _LAST_TAG_OF_PIXELS and tag.kind not in _TEXTS and tag.count > limit:
            raise ImageFileError(f"it has {tag.count:,} values of tag {name}, more than {limit:,}")
    return ScannedFile("TIFF", width, height, content)


class _Tag(NamedTuple):
    """A TIFF tag; `value` is its first value, or the position of its values in the file."""

    kind: int
    count: int
    value: int


def _read_directory(content: Buffer, position: int | None = None) -> tuple[dict[int, _Tag], bool]:
    """
    Tags of the directory at a position (default: the first directory), and whether their values have more bytes than
    the file. Like PIL, it stops at a value beyond the end of the file.
    """
    order = "<" if content[:2] == b"II" else ">"
    is_big = content[2] == 43
    head, entry, word, inline = ("Q", "HHQ8s", "Q", 8) if is_big else ("H", "HHI4s", "I", 4)
    head, entry = struct.Struct(order + head), struct.Struct(order + entry)
    tags, total = {}, 0
    if position is None:
        (position,) = struct.unpack_from(order + word, content, 8 if is_big else 4)
    if not 0 <= position <= len(content) - head.size:
        return tags, False
    (number,) = head.unpack_from(content, position)
    for index in range(number):
        start = position + head.size + index * entry.size
        if start + entry.size > len(content):
            break
        if index >= MAX_TAGS:
            raise ImageFileError(f"it has more than {MAX_TAGS:,} tags in a directory")
        name, kind, count, value = entry.unpack_from(content, start)
        if kind not in _TAG_SIZES:
            continue
        size = count * _TAG_SIZES[kind]
        value = value if size > inline else value[: _TAG_SIZES[kind]]
        value = int.from_bytes(value, "little" if order == "<" else "big")
        if size > inline:
            if value + size > len(content):
                break
            total += size
        tags[name] = _Tag(kind, count, value)
    return tags, total > len(content)


def _is_modest_exif(block: bytes) -> bool:
    """Whether PIL can read an EXIF block without using more memory than the size of the block."""
    if len(block) > MAX_EXIF_BYTES:
        return False
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    try:
        return not _read_directory(block)[1]
    except (ImageFileError, IndexError, struct.error):
        return len(block) < 256  # too small to be harmful; PIL handles it


_SCANS = {"PNG": _scan_png, "JPEG": _scan_jpeg, "WEBP": _scan_webp, "GIF": _scan_gif, "TIFF": _scan_tiff}

__all__ = ["ImageFileError", "ScannedFile", "find_format", "scan_file"]
