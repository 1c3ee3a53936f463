"""
Image files within the size limit of a request that are expensive to read: tags that share their values, metadata in
millions of parts, streams that grow when decompressed, false image sizes, and images of the maximum size.

`FILES` maps names to functions without arguments that make the files, independently of the code that refuses them.
"""

import io
import struct
import zlib
from functools import lru_cache, partial

import numpy as np
from PIL import Image


LARGE = 2_000_000  # bytes
LARGEST = 19_000_000  # bytes; the limit of a request is 20 MiB
GROWN = 100_000_000  # size of a decompressed stream in bytes
SIDE = 5000  # pixels; side of the largest accepted image
FILES = {}


def hostile(name: str, make, *arguments):
    assert name not in FILES
    FILES[name] = partial(make, *arguments)


def repeat(part: bytes, size: int = LARGE) -> bytes:
    return part * (size // len(part))


@lru_cache
def encode(format: str, size=(64, 48), mode="RGB", **settings) -> bytes:
    """A grey image."""
    buffer = io.BytesIO()
    Image.new(mode, size, 1 if mode == "1" else (90, 91, 92, 93)[: len(mode)]).save(buffer, format, **settings)
    return buffer.getvalue()


@lru_cache
def noise(format: str, size, mode="RGB", **settings) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **settings)
    return buffer.getvalue()


# TIFF, and EXIF


def shared_tags(number: int, size: int, kind: int = 7, first: int = 40000, order: str = "<") -> bytes:
    """A TIFF image of 20 x 20 pixels, or EXIF data, with a directory of tags that all point to one region."""
    rows = [(256, 4, 1, 20), (257, 4, 1, 20), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, size)]
    rows += [(277, 3, 1, 1), (278, 4, 1, 20), (279, 4, 1, 400)]
    rows += [(first + index, kind, size, 100) for index in range(number)]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(rows))
    return head + b"".join(struct.pack(order + "HHII", *row) for row in rows) + bytes(4 + size + 12 * number)


def nested_tags(number: int, size: int) -> bytes:
    """Shared tags in the EXIF directory of a TIFF image, which PIL reads when it decodes the pixels."""
    rows = [(256, 4, 1, 20), (257, 4, 1, 20), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 10)]
    rows += [(277, 3, 1, 1), (278, 4, 1, 20), (279, 4, 1, 400), (0x8769, 4, 1, 8 + 2 + 12 * 10 + 4)]
    content = b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows)
    content += bytes(4) + struct.pack("<H", number)
    content += b"".join(struct.pack("<HHII", 40000 + index, 7, size, 100) for index in range(number))
    return content + bytes(4 + size)


def long_tag(tag: int, kind: int, count: int, size: int) -> bytes:
    """One tag with millions of values that PIL unpacks."""
    shorts = {256: 20, 257: 20, 258: 8, 259: 1, 262: 1, 277: 1, 278: 20}
    rows = [(name, 3, 1, struct.pack("<HH", value, 0)) for name, value in shorts.items() if name != tag]
    rows += [(273, 4, 1, struct.pack("<I", 200)), (279, 4, 1, struct.pack("<I", 400))]
    rows = [row for row in rows if row[0] != tag] + [(tag, kind, count, struct.pack("<I", 200))]
    content = b"II*\0" + struct.pack("<IH", 8, len(rows))
    content += b"".join(struct.pack("<HHI4s", *row) for row in sorted(rows)) + bytes(4)
    return content.ljust(200, b"\0") + struct.pack("<I", 1) * (count * size // 4)


def big_tiff(number: int, size: int) -> bytes:
    rows = [(256, 4, 1, 20), (257, 4, 1, 20), *((40000 + index, 7, size, 100) for index in range(number))]
    content = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(rows))
    return content + b"".join(struct.pack("<HHQQ", *row) for row in rows) + bytes(size)


EXIF = b"Exif\0\0" + shared_tags(2000, 10_000)  # 2 MB in 58 kB
LONG_EXIF = b"Exif\0\0" + shared_tags(1500, 1_000_000)
hostile("tiff with shared values", shared_tags, 1500, 1_000_000)
hostile("big-endian tiff with shared values", shared_tags, 1500, 1_000_000, 7, 40000, ">")
hostile("tiff with a shared directory of exif", nested_tags, 1500, 1_000_000)
hostile("tiff with many tags", shared_tags, 20_000, 8)
hostile("big tiff with shared values", big_tiff, 1500, 1_000_000)
hostile("tiff with millions of strips", long_tag, 273, 4, LARGE // 4, 4)
hostile("tiff with millions of resolutions", long_tag, 282, 5, LARGE // 8, 8)
hostile("tiff with millions of sample formats", long_tag, 339, 3, LARGE // 2, 2)


# GIF and other formats that requests must not have


def gif(*blocks: bytes) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    return head + b"".join(blocks) + b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x02\x8c\x0a\0;"


def bmp_of_runs(side: int) -> bytes:
    """Run-length encoded: PIL decodes it in Python."""
    data = b"\x01\x00" * (side * side)
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + head + bytes(1024) + data


hostile("gif with a comment in bytes", lambda: gif(b"!\xfe" + repeat(b"\x01x", 2_000_000) + b"\0"))
hostile("gif with an application block in bytes", lambda: gif(b"!\xff" + repeat(b"\x01x") + b"\0"))
hostile("gif with many comments", lambda: gif(repeat(b"!\xfe\0")))
hostile("gif of frames", lambda: gif(repeat(b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x01\x44\0")))
hostile("gif with junk", lambda: gif(repeat(b"\x01")))
hostile("bmp of runs", bmp_of_runs, 1200)
hostile("ppm in text", lambda: b"P3 1000 1000 255 " + repeat(b"1 "))
hostile("eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + repeat(b"%\n"))
hostile(
    "icon of a png file",
    lambda: b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, LARGE, 22) + png(chunk(b"aaAa") * 200_000),
)


# PNG


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(before=b"", after=b"", size=(64, 48), kind=(8, 2, 0), rows: bytes | None = None, end=b"") -> bytes:
    """An image of zeros, with chunks before and after its pixels."""
    if rows is None:
        rows = zlib.compress(bytes(size[1] * (1 + size[0] * 3)), 9)
    depth, colors, interlaced = kind
    head = struct.pack(">IIBBBBB", *size, depth, colors, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", rows) + after + chunk(b"IEND") + end


@lru_cache
def zeros(size: int) -> bytes:
    """Compressed zeros: `size` bytes in a thousandth of that."""
    compressor = zlib.compressobj(9)
    parts = [compressor.compress(bytes(10**6)) for _ in range(size // 10**6)]
    return b"".join(parts) + compressor.flush()


def png_in_pieces(length: int) -> bytes:
    rows = zlib.compress(np.random.default_rng(0).integers(0, 256, 64 * 193, dtype=np.uint8).tobytes(), 0)
    pieces = b"".join(chunk(b"IDAT", rows[at : at + max(1, length)]) for at in range(0, len(rows), max(1, length)))
    filling = repeat(chunk(b"IDAT", b"" if length == 0 else bytes(length)), LARGE)
    return png()[:33] + (filling + pieces if length == 0 else pieces + filling) + chunk(b"IEND")


FRAME = struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 1, 0, 0)
for place in ("before", "after"):
    for name in (b"aaAa", b"tEXt", b"gAMA"):
        data = {b"tEXt": b"a\0", b"gAMA": bytes(4)}.get(name, b"")
        hostile(f"png, many {name.decode()} {place}", lambda p=place, n=name, d=data: png(**{p: repeat(chunk(n, d))}))
hostile("png, many chunks, 19 MB", lambda: png(repeat(chunk(b"aaAa"), LARGEST)))
for place in ("before", "after"):
    for name in (b"zTXt", b"iTXt"):
        text = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[name] + zeros(10**6)
        hostile(
            f"png, {name.decode()} that grows {place}", lambda p=place, n=name, t=text: png(**{p: repeat(chunk(n, t))})
        )
    hostile(f"png, profile that grows {place}", lambda p=place: png(**{p: chunk(b"iCCP", b"a\0\0" + zeros(GROWN))}))
    hostile(f"png, long text {place}", lambda p=place: png(**{p: chunk(b"tEXt", b"a\0".ljust(LARGE, b"a"))}))
    hostile(f"png, exif with shared values {place}", lambda p=place: png(**{p: chunk(b"eXIf", LONG_EXIF[6:])}))
for name in ("tEXt", "zTXt"):
    text = b"\nexif\n 1\n" + LONG_EXIF.hex().encode()
    text = b"\0" + zlib.compress(text) if name == "zTXt" else text
    text = b"Raw profile type exif\0" + text
    hostile(f"png, exif in {name}", lambda n=name, t=text: png(chunk(n.encode(), t)))
hostile(
    "png, many texts that grow and may be exif",
    lambda: png(repeat(chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(10**6)))),
)
hostile("png, xmp that grows", lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(GROWN))))
hostile("png, long xmp", lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + repeat(b"tiff:Orientation"))))
hostile("png, many chromaticities", lambda: png(chunk(b"cHRM", bytes(LARGE))))
hostile("png, long palette", lambda: png(chunk(b"PLTE", bytes(LARGE - LARGE % 3))))
hostile("png, long transparency", lambda: png(chunk(b"tRNS", bytes(LARGE))))
hostile("png, empty pieces", png_in_pieces, 0)
hostile("png, pieces of a byte", png_in_pieces, 1)
hostile("png, pixels that grow", lambda: png(rows=zeros(GROWN)))
hostile("png, deflate blocks of nothing", lambda: png(rows=b"\x78\x01" + repeat(b"\0\0\0\xff\xff")))
hostile(
    "png, frames",
    lambda: png(
        chunk(b"acTL", struct.pack(">II", 10**6, 0)) + chunk(b"fcTL", FRAME),
        repeat(chunk(b"fcTL", FRAME) + chunk(b"fdAT", bytes(4))),
    ),
)
hostile("png, 60,000 pixels wide", lambda: png(size=(60_000, 60_000), rows=b""))
hostile("png, two billion pixels wide", lambda: png(size=(2**31 - 1, 2**31 - 1), rows=b""))
hostile("png, two heads", lambda: png(png(size=(60_000, 60_000), rows=b"")[8:33]))
hostile("png, chunk longer than the file", lambda: png(struct.pack(">I", 2**31 - 1) + b"iCCP" + bytes(LARGE)))
hostile("png, much behind it", lambda: png(end=repeat(chunk(b"tEXt", b"a\0"))))
hostile("png, large, one bit a pixel", lambda: encode("PNG", (SIDE, SIDE), "1"))
hostile(
    "png, large, 16 bits, transparent, interlaced",
    lambda: png(size=(SIDE, SIDE), kind=(16, 6, 1), rows=zeros(8 * SIDE * SIDE + 10**6)),
)
hostile("png, noise", lambda: noise("PNG", (2500, 2500), compress_level=0))


# JPEG


def segment(code: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, code, 2 + len(data)) + data


def jpeg(head: bytes = b"", before_scan: bytes = b"", in_scan: bytes = b"", end: bytes = b"", of: bytes | None = None):
    """A JPEG file with bytes inserted after its first marker, before its first scan, before its end, and after it."""
    of = of or encode("JPEG")
    scan = of.index(b"\xff\xda")
    return of[:2] + head + of[2:scan] + before_scan + of[scan:-2] + in_scan + of[-2:] + end


def progressive(scans: int, side: int) -> bytes:
    """A progressive image whose last scan is repeated."""
    of = encode("JPEG", (side, side), progressive=True)
    last = of[of.rindex(b"\xff\xda") : -2]
    return of[:-2] + last * scans + of[-2:]


def with_frame(code: int, size: tuple[int, int] | None = None, side: int = 64) -> bytes:
    of = encode("JPEG", (side, side))
    at = of.index(b"\xff\xc0")
    width, height = size or (side, side)
    return of[:at] + bytes([0xFF, code]) + of[at + 2 : at + 5] + struct.pack(">HH", height, width) + of[at + 9 :]


TABLE = segment(0xDB, b"\0" + bytes(range(1, 65)))
LONG_SEGMENT = segment(0xE1, b"Exif\0\0" + bytes(65_000))
for name, part in {
    "filling": b"\xff",
    "zeros": b"\0",
    "stuffed bytes": b"\xff\0",
    "restarts": b"\xff\xd0",
    "comments": segment(0xFE),
    "exif": segment(0xE1, b"Exif\0\0"),
    "long exif": LONG_SEGMENT,
    "shared exif": segment(0xE1, EXIF),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    "profiles": segment(0xE2, b"ICC_PROFILE\0\1\1"),
    "resources": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\0\0\0\0\0\0\0" * 5000),
    "tables": TABLE,
    "codes": segment(0xC4),
    "frames": segment(0xC0, struct.pack(">BHHB", 8, 48, 64, 3) + b"\1\x11\0\2\x11\0\3\x11\0"),
    "restart intervals": segment(0xDD, b"\0\0"),
}.items():
    hostile(f"jpeg, {name} in the head", lambda p=part: jpeg(repeat(p)))
    if name in ("filling", "zeros", "stuffed bytes", "restarts", "comments", "tables", "long exif"):
        hostile(f"jpeg, {name} behind the scan", lambda p=part: jpeg(in_scan=repeat(p)))
hostile("jpeg, filling, 19 MB", lambda: jpeg(repeat(b"\xff", LARGEST)))
hostile("jpeg, exif in parts", lambda: jpeg(segment(0xE1, EXIF) + repeat(LONG_SEGMENT)))
hostile("jpeg, pictures with shared tags", lambda: jpeg(segment(0xE2, b"MPF\0" + shared_tags(2000, 10_000))))
hostile("jpeg, 1000 scans", progressive, 1000, 2500)
hostile("jpeg, 50 scans", progressive, 50, 2500)
hostile("jpeg, scans of nothing", lambda: jpeg(in_scan=repeat(segment(0xDA, b"\1\1\0\0\x3f\0"))))
hostile("jpeg, arithmetic", with_frame, 0xC9, None, 4000)
hostile("jpeg, progressive arithmetic", with_frame, 0xCA, None, 4000)
hostile("jpeg, lossless", with_frame, 0xC3, None, 4000)
hostile("jpeg, 65,535 pixels wide", with_frame, 0xC0, (65_535, 65_535))
hostile("jpeg, without pixels", with_frame, 0xC0, (SIDE, SIDE))
hostile("jpeg, without height", with_frame, 0xC0, (64, 0))
hostile("jpeg, much behind it", lambda: jpeg(end=repeat(b"\xff\xda")))
hostile("jpeg, large, progressive, four colours", lambda: encode("JPEG", (SIDE, SIDE), "CMYK", progressive=True))
hostile("jpeg, noise", lambda: noise("JPEG", (2500, 2500), quality=90, subsampling=0))
hostile(
    "jpeg, large and turned",
    lambda: jpeg(
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"), of=encode("JPEG", (SIDE, SIDE))
    ),
)


# WebP


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


def picture(size=(64, 48), **settings) -> tuple[bytes, bytes]:
    content = encode("WEBP", size, **settings)
    return content[12:16], content[20:]


def frame(size=(64, 48)) -> tuple[bytes, bytes]:
    name, data = picture(size)
    sides = (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little")
    return b"ANMF", bytes(6) + sides + bytes(4) + name + struct.pack("<I", len(data)) + data


def many(part: tuple[bytes, bytes], size: int = LARGE) -> list[tuple[bytes, bytes]]:
    return [part] * (size // (8 + len(part[1]) + len(part[1]) % 2))


class Bits:
    """A stream of numbers of a few bits, the lowest first."""

    def __init__(self):
        self.bits = []

    def put(self, *pairs: tuple[int, int]):
        for value, number in pairs:
            self.bits += [value >> at & 1 for at in range(number)]

    def put_even_code(self, symbols: int):
        """A prefix code of 8 bits for the first 256 symbols."""
        lengths = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]  # of the codes for lengths 0 and 8, in the order of the format
        self.put((0, 1), (len(lengths) - 4, 4), *((length, 3) for length in lengths), (0, 1))
        self.put(*((int(symbol < 256), 1) for symbol in range(symbols)))

    def content(self) -> bytes:
        return np.packbits(np.array(self.bits, dtype=np.uint8), bitorder="little").tobytes()


def many_codes(size: tuple[int, int], bits: int) -> bytes:
    """A lossless WebP image with a set of prefix codes for each block: 3 bytes of the file become tables of 5 kB."""
    number = (-size[0] >> bits) * (-size[1] >> bits)
    codes = min(number, 2**16)
    stream = Bits()
    stream.put((0x2F, 8), (size[0] - 1, 14), (size[1] - 1, 14), (0, 4), (0, 1), (0, 1), (1, 1), (bits - 2, 3), (0, 1))
    stream.put_even_code(280)
    stream.put_even_code(256)
    for symbol in (0, 255, 0):  # blue, transparency, distance: one symbol
        stream.put((1, 1), (0, 1), (1, 1), (symbol, 8))
    reverse = [int(f"{value:08b}"[::-1], 2) for value in range(256)]
    for index in range(number):
        code = min(index, codes - 1)
        stream.put((reverse[code & 255], 8), (reverse[code >> 8], 8))
    stream.bits += [1, 0, 0, 0] * (5 * codes)
    return webp((b"VP8L", stream.content()))


ANIMATION = (b"ANIM", bytes(6))
hostile("webp, large canvas", lambda: webp(canvas(2**24, 100), picture()))
hostile("webp, 16,384 pixels wide", lambda: webp(canvas(16_384, 16_384), picture()))
hostile("webp, large frame of nothing", lambda: webp((b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f")))
hostile("webp, large lossless frame of nothing", lambda: webp((b"VP8L", b"\x2f" + b"\xff" * 9)))
hostile("webp, large canvas of an animation", lambda: webp(canvas(SIDE, SIDE, 2), ANIMATION, *[frame()] * 100))
hostile("webp, frames", lambda: webp(canvas(64, 48, 2), ANIMATION, *many(frame((8, 8)))))
hostile("webp, empty chunks", lambda: webp(canvas(64, 48), *many((b"abcd", b""), 8_000_000), picture()))
hostile("webp, empty chunks behind", lambda: webp(canvas(64, 48), picture(), *many((b"abcd", b""), 8_000_000)))
hostile("webp, pictures", lambda: webp(canvas(64, 48), *many(picture())))
hostile("webp, exif with shared values", lambda: webp(canvas(64, 48, 8), picture(), (b"EXIF", LONG_EXIF)))
hostile("webp, short exif with shared values", lambda: webp(canvas(64, 48, 8), picture(), (b"EXIF", EXIF)))
hostile("webp, long xmp", lambda: webp(canvas(64, 48, 4), picture(), (b"XMP ", repeat(b"tiff:Orientation"))))
hostile("webp, long profile", lambda: webp(canvas(64, 48, 32), (b"ICCP", bytes(LARGE)), picture()))
hostile("webp, much behind it", lambda: webp(picture()) + bytes(LARGE))
hostile("webp, large", lambda: encode("WEBP", (SIDE, SIDE), quality=1, method=0))
hostile("webp, lossless", lambda: encode("WEBP", (3000, 3000), lossless=True, method=0, quality=0))
hostile("webp, lossless, too large", lambda: encode("WEBP", (SIDE, SIDE), lossless=True, method=0, quality=0))
hostile("webp, noise", lambda: noise("WEBP", (1200, 1200), quality=80, method=0))
hostile("webp, a code for each block", many_codes, (2048, 2048), 3)
