"""Malformed metadata of images are ignored; arrays that are not images are rejected."""

import base64
import functools
import io
import itertools
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hub_repositories import make_model, make_processor
from PIL import Image, features
from transformers import pipeline

from clustr_hf import ClusTRConfig, ClusTRImageProcessor
from clustr_hf.remote_code.handler_clustr import read_image as read_request
from clustr_hf.remote_code.image_reading_clustr import MAX_LABEL, find_transposition, read_image, read_label_map
from clustr_hf.visualization import draw_answers, prepare_image


PIXELS = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((36, 24))
)
FORMATS = ["PNG", "WEBP", "JPEG", "MPO", "TIFF", *(["AVIF"] if features.check("avif") else [])]
ORIENTATION, EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER, XMP = 0x0112, 0x8769, 0x8825, 0xA005, 700
SHORT, LONG, RATIONAL, ASCII, SIGNED_LONG = 3, 4, 5, 2, 9


def entry(tag: int, kind: int, count: int, value: bytes | int) -> bytes:
    value = struct.pack("<I", value) if isinstance(value, int) else value
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def directory(*entries: bytes, count: int | None = None, following: int = 0) -> bytes:
    """The single directory (IFD) of an EXIF block."""
    number = len(entries) if count is None else count
    head = b"II*\0" + struct.pack("<IH", 8, number)
    return head + b"".join(entries) + struct.pack("<I", following)


UPRIGHT = entry(ORIENTATION, SHORT, 1, 1)
TURNED = entry(ORIENTATION, SHORT, 1, 6)

MALFORMED = {
    "no header": b"\x00\x08\x00\x02\x01\x12\x00\x03",
    "zeros": bytes(40),
    "wrong byte order": b"XX*\0\x08\0\0\0" + bytes(8),
    "cut in the byte order": b"II",
    "cut in the header": b"II*\0",
    "cut before the directory": b"II*\0\x08\0\0\0",
    "cut in the directory": directory(UPRIGHT, UPRIGHT)[:20],
    "big TIFF": b"II+\0\x08\0\0\0" + bytes(8),
    "offset far beyond the end": b"II*\0" + struct.pack("<I", 10**9),
    "greatest offset": b"II*\0\xff\xff\xff\xff",
    "more entries than there are": directory(UPRIGHT, count=500),
    "endless loop": directory(UPRIGHT, following=8),
    "directory in itself": directory(entry(EXIF_POINTER, LONG, 1, 8)),
    "nested directory beyond the end": directory(entry(EXIF_POINTER, LONG, 1, 10**8)),
    "nested directory of text": directory(entry(EXIF_POINTER, ASCII, 4, b"abcd")),
    "unknown type": directory(entry(ORIENTATION, 99, 1, 6)),
    "orientation as text": directory(entry(ORIENTATION, ASCII, 2, b"6\0")),
    "orientation beyond the end": directory(entry(ORIENTATION, RATIONAL, 1, 10**6)),
    "orientation of no values": directory(entry(ORIENTATION, SHORT, 0, 6)),
    "orientation of too many values": directory(entry(ORIENTATION, SHORT, 2**31, 6)),
    "orientation that is none": directory(entry(ORIENTATION, SHORT, 1, 9)),
}
# Metadata of a TIFF file that PIL reads when it decodes the pixels.
MALFORMED_IN_TIFF = {
    "nested directory without its parent": entry(INTEROPERABILITY_POINTER, LONG, 1, 8),
    "negative offset": entry(EXIF_POINTER, SIGNED_LONG, 1, b"\xff\xff\xff\xff"),
    "great offset": entry(GPS_POINTER, 16, 1, 8),
    "nested directory in itself": entry(EXIF_POINTER, LONG, 1, 8),
    "nested directory beyond the end": entry(EXIF_POINTER, LONG, 1, 2**31),
    "XMP that is a number": entry(XMP, SHORT, 1, 7),
    "XMP that is several numbers": entry(XMP, SHORT, 2, 7),
    "XMP that is text": entry(XMP, ASCII, 4, b"abc\0"),
    "XMP that is a fraction": entry(XMP, RATIONAL, 1, 8),
}
# These are read up to the malformed part, which comes after the orientation.
TURNED_THOUGH_MALFORMED = {
    "entries after it beyond the end": directory(TURNED, entry(0x011A, RATIONAL, 1, 10**6)),
    "nested directory beyond the end": directory(TURNED, entry(EXIF_POINTER, LONG, 1, 10**8)),
    "more entries than there are": directory(TURNED, count=40),
    "text beyond the end": directory(TURNED, entry(0x0131, ASCII, 9, 2**32 - 1)),
}


@functools.cache
def plain_file(image_format: str) -> bytes:
    return with_exif(image_format, None)


@functools.cache
def with_exif(image_format: str, block: bytes | None) -> bytes:
    """An image file with the EXIF block, byte by byte; PIL writes only valid blocks in some formats."""
    if image_format == "TIFF":
        assert block is None
        return tiff()
    if image_format == "PNG" and block is not None:
        content = plain_file("PNG")
        chunk = b"eXIf" + block
        return (
            content[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
        )
    settings = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1])]} if image_format == "MPO" else {}
    settings |= {"lossless": True} if image_format == "WEBP" else {}
    if block is not None:
        placeholder = directory(entry(0x0131, ASCII, max(8, len(block)), 26)) + b"x" * max(8, len(block))
        placeholder = placeholder if image_format == "AVIF" else block
        settings["exif"] = b"Exif\0\0" + placeholder
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, image_format, **settings)
    content = buffer.getvalue()
    if block is not None and image_format == "AVIF":
        assert content.count(placeholder) == 1
        content = content.replace(placeholder, block.ljust(len(placeholder), b"\0"))
    return content


def tiff(*entries: bytes, compression: int = 1) -> bytes:
    """The image as a TIFF file with additional entries."""
    pixels = PIXELS.tobytes() if compression == 1 else zlib.compress(PIXELS.tobytes())
    height, width = PIXELS.shape[:2]
    shorts = {256: width, 257: height, 258: 8, 259: compression, 262: 2, 277: 3, 278: height}
    start = 8 + 2 + 12 * (len(shorts) + 2 + len(entries)) + 4
    own = [entry(tag, SHORT, 1, value) for tag, value in shorts.items()]
    own += [entry(273, LONG, 1, start), entry(279, LONG, 1, len(pixels))]
    rows = sorted([*own, *entries], key=lambda row: struct.unpack("<H", row[:2]))
    return directory(*rows) + pixels


def pixels_of(content: bytes) -> np.ndarray:
    """Read by PIL from a file without metadata."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("image_format", [name for name in FORMATS if name != "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's error for truncated files
def test_malformed_exif_is_as_none(image_format, name):
    content = with_exif(image_format, MALFORMED[name])
    np.testing.assert_array_equal(read_image(content), pixels_of(plain_file(image_format)))


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("name", MALFORMED_IN_TIFF)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_malformed_metadata_of_tiff_are_as_none(name, compression, tmp_path):
    for orientation, expected in ((), PIXELS), ((TURNED,), np.rot90(PIXELS, -1)):
        content = tiff(*orientation, MALFORMED_IN_TIFF[name], compression=compression)
        (tmp_path / "image.tif").write_bytes(content)
        np.testing.assert_array_equal(read_image(content), expected)
        np.testing.assert_array_equal(read_image(tmp_path / "image.tif"), expected)


def test_tiff_whose_pixels_are_cut_is_refused_whatever_its_metadata():
    for compression in (1, 8):
        content = tiff(MALFORMED_IN_TIFF["XMP that is a number"], compression=compression)
        with pytest.raises(ValueError, match="could not be decoded"):
            read_image(content[:-400])


@pytest.mark.parametrize("name", TURNED_THOUGH_MALFORMED)
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG", "MPO"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_orientation_before_what_is_malformed_counts(image_format, name):
    content = with_exif(image_format, TURNED_THOUGH_MALFORMED[name])
    np.testing.assert_array_equal(read_image(content), np.rot90(pixels_of(plain_file(image_format)), -1))


UPRIGHT_BY_NUMPY = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT_BY_NUMPY)
@pytest.mark.parametrize("image_format", FORMATS)
def test_valid_orientations_turn_the_image(image_format, orientation):
    row = entry(ORIENTATION, SHORT, 1, orientation)
    if image_format == "AVIF":  # the orientation is an image property that PIL writes from EXIF
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(PIXELS).save(buffer, "AVIF", exif=exif)
        content = buffer.getvalue()
    else:
        content = tiff(row) if image_format == "TIFF" else with_exif(image_format, directory(row))
    read = read_image(content)
    np.testing.assert_array_equal(read, UPRIGHT_BY_NUMPY[orientation](pixels_of(plain_file(image_format))))
    assert read.info == {} and not read.getexif()  # or it would be rotated twice
    np.testing.assert_array_equal(read_image(read), read)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("form", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_xmp_turns_the_image_where_exif_says_nothing_or_is_malformed(image_format, form):
    expected = np.rot90(pixels_of(plain_file(image_format)), -1)
    for block in (None, MALFORMED["no header"]):
        image = Image.open(io.BytesIO(with_exif(image_format, block)))
        image.info["xmp"] = form.encode()
        np.testing.assert_array_equal(read_image(image), expected)


@pytest.mark.parametrize("xmp", [b"\xff\xfe", b"tiff:Orientation", 'tiff:Orientation="0"', (b"a", b"b"), 7, None])
def test_malformed_xmp_is_as_none(xmp):
    for key in ("xmp", "XML:com.adobe.xmp"):
        image = Image.fromarray(PIXELS)
        image.info[key] = xmp
        np.testing.assert_array_equal(read_image(image), PIXELS)


def test_a_raw_profile_that_is_none_is_as_none():
    """EXIF in PNG as written by ImageMagick: hexadecimal text."""
    for text in ("", "\nexif\n      4\nzzzz", "\n\n\n", "\nexif\n 8\n4949"):
        image = Image.fromarray(PIXELS)
        image.info["Raw profile type exif"] = text
        np.testing.assert_array_equal(read_image(image), PIXELS)


BROKEN_BLOCK = MALFORMED["no header"]


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_everything_that_reads_images_reads_it(image_format, tmp_path):
    content, expected = with_exif(image_format, BROKEN_BLOCK), pixels_of(plain_file(image_format))
    clean, path = Image.fromarray(expected), tmp_path / "image.bin"
    path.write_bytes(content)
    for kind in ("classification", "semantic_fpn", "detection", "poses"):
        processor = make_processor(kind)
        right = processor(clean, return_tensors="pt").pixel_values
        for image in (path, str(path), Image.open(path)):
            torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, right, rtol=0, atol=0)
        for request in (content, base64.b64encode(content).decode(), Image.open(path)):
            np.testing.assert_array_equal(read_request(request, processor), expected)
        np.testing.assert_array_equal(processor.read_image(path), expected)
    picture, pixel_values = prepare_image(Image.open(path), make_processor("classification"), 32)
    right_picture, right = prepare_image(clean, make_processor("classification"), 32)
    np.testing.assert_array_equal(picture, right_picture)
    assert torch.equal(pixel_values, right)
    np.testing.assert_array_equal(draw_answers(Image.open(path), [], ClusTRConfig()), expected)


def test_what_people_give_is_read(tmp_path):
    content = plain_file("PNG")
    (tmp_path / "image.png").write_bytes(content)
    text = base64.b64encode(content).decode()
    for source in (content, tmp_path / "image.png", str(tmp_path / "image.png"), text, f"data:image/png;base64,{text}"):
        np.testing.assert_array_equal(read_image(source), PIXELS)
    with pytest.raises(ValueError, match="'no such file' is neither a file, nor a URL, nor a base64-encoded image"):
        read_image("no such file")
    with pytest.raises(TypeError, match="got a int"):
        read_image(3)


class Answer:
    """A stand-in for httpx's streams with any number of parts."""

    def __init__(self, parts):
        self.parts = parts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def iter_bytes(self):
        return iter(self.parts)


def test_urls_are_read(monkeypatch):
    from clustr_hf.remote_code import image_reading_clustr

    content, parts = with_exif("PNG", BROKEN_BLOCK), []

    class Client:
        @staticmethod
        def stream(method, url, timeout, follow_redirects):
            assert (method, url, timeout, follow_redirects) == ("GET", "https://example.com/image", 2.0, True)
            return Answer(parts)

    monkeypatch.setattr(image_reading_clustr, "httpx", Client)
    parts += [content[:50], content[50:]]
    np.testing.assert_array_equal(read_image("https://example.com/image", timeout=2.0), PIXELS)
    parts = itertools.repeat(content)  # a server that never ends
    monkeypatch.setattr(image_reading_clustr, "MAX_FETCHED_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"files of at most 100,000 bytes, got https://example\.com/image"):
        read_image("https://example.com/image", timeout=2.0)


# Arrays


@pytest.fixture
def plain():
    """Without resizing, cropping or normalisation: the input as RGB in [0, 1]."""
    return ClusTRImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False)


NUMPY_INTEGERS = ["int8", "int16", "int32", "int64", "uint32", "uint64"]
TORCH_INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = ["float16", "float32", "float64", torch.float16, torch.bfloat16, torch.float32, torch.float64]


def as_type(array: np.ndarray, dtype) -> np.ndarray | torch.Tensor:
    return torch.from_numpy(np.array(array)).to(dtype) if isinstance(dtype, torch.dtype) else array.astype(dtype)


@pytest.mark.parametrize("dtype", [*NUMPY_INTEGERS, ">i2", ">u4", ">f4", "longdouble", *TORCH_INTEGERS, *FLOATS])
def test_arrays_of_any_dtype_are_the_image(plain, dtype):
    values = PIXELS // 2 if dtype in ("int8", torch.int8) else PIXELS
    expected = plain(values, return_tensors="pt").pixel_values
    found = plain(as_type(values, dtype), return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found = plain(as_type(values, dtype)[::1, :, ...], return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "detection", "poses"])
@pytest.mark.parametrize(
    "dtype, value",
    [
        *[(dtype, value) for dtype in ("int16", torch.int16, "int64", torch.int32) for value in (-1, 256, 30000)],
        *[("int8", -1), (torch.int8, -128), ("uint32", 2**31), ("uint64", 256)],
        *[(dtype, value) for dtype in ("float32", torch.float32, torch.bfloat16) for value in (-1.0, 300.0)],
        *[("float64", 1e30), ("float16", -0.5)],
    ],
)
def test_arrays_beyond_their_range_are_refused(kind, dtype, value):
    image = np.full((24, 36, 3), 7.0)
    image[3, 4, 1] = value
    name = re.escape(str(dtype).removeprefix("torch."))
    lowest = f"{min(7.0, value):g}"
    expected = rf"`images` must have values in \[0, 255\], got an array of dtype {name} with values from {lowest}"
    if value > 2**31:
        expected = f"`images` must .*{name}"
    with pytest.raises(ValueError, match=expected):
        make_processor(kind)(as_type(image, dtype), return_tensors="pt")


@pytest.mark.parametrize("kind", ["classification", "detection", "poses"])
def test_without_rescaling_values_are_shares(kind):
    processor, shares = make_processor(kind), PIXELS.astype(np.float32) / 255
    right = processor(PIXELS, return_tensors="pt").pixel_values
    found = processor(shares, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, right, rtol=0, atol=0.1)  # 8-bit images are rounded when they are resized
    for wrong in (1.01 * shares / shares.max(), shares - 0.01, PIXELS, PIXELS.astype(np.uint16) * 257, shares * 255):
        with pytest.raises(ValueError, match=r"`images` must have values in \[0, 1\] with `do_rescale=False`"):
            processor(wrong, do_rescale=False)
    with pytest.raises(ValueError, match=r"in \[0, 1\] with `do_rescale=False`, got .* uint8"):
        processor(Image.fromarray(PIXELS), do_rescale=False)


def test_masks_are_black_and_white_in_any_unit(plain):
    mask = PIXELS[..., 0] > 127
    expected = torch.from_numpy(mask).float().expand(1, 3, -1, -1)
    for image in (mask, torch.from_numpy(mask)):
        for settings in ({}, {"do_rescale": False}, {"rescale_factor": 1 / 1000}):
            found = plain(image, return_tensors="pt", **settings).pixel_values
            torch.testing.assert_close(found, expected * (255 / 1000 if "rescale_factor" in settings else 1))


def test_settings_say_what_an_array_may_hold(plain):
    """Images whose values have another unit."""
    deep = PIXELS.astype(np.int16) * 16
    found = plain(deep, rescale_factor=1 / 4080, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, plain(PIXELS, return_tensors="pt").pixel_values)
    with pytest.raises(ValueError, match=r"\[0, 4000\], got an array of dtype int16"):
        plain(deep, rescale_factor=1 / 4000)
    as_they_are = np.linspace(-1000, 1000, 5 * 12, dtype=np.float32).reshape(5, 4, 3)
    found = plain(as_they_are, do_rescale=False, return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(found, as_they_are.transpose(2, 0, 1))
    mean, std = [100.0, 110.0, 120.0], [50.0] * 3
    settings = {"do_normalize": True, "do_rescale": False, "image_mean": mean, "image_std": std}
    found = plain(PIXELS, return_tensors="pt", **settings).pixel_values[0]
    expected = (torch.from_numpy(PIXELS.copy()).permute(2, 0, 1) - torch.tensor(mean)[:, None, None]) / 50
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", ["int16", "int64", "float32", torch.int32, torch.float64, "uint8"])
def test_transparent_arrays_of_any_dtype_are_laid_on_white(plain, dtype):
    image = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 51, dtype=np.uint8)])
    expected = torch.from_numpy((0.2 * PIXELS + 0.8 * 255) / 255).permute(2, 0, 1)
    found = plain(as_type(image, dtype), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("kind", ["classification", "detection", "poses"])
@pytest.mark.parametrize("image", [np.zeros((24, 36, 3), dtype=complex), torch.zeros(3, 24, 36, dtype=torch.complex64)])
def test_arrays_that_are_no_numbers_are_refused(kind, image):
    with pytest.raises(ValueError, match="`images` must be bool, integers or floats, got an array of dtype complex"):
        make_processor(kind)(image)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_named_with_their_dtype(plain, dtype):
    image = np.zeros((5, 6, 3))
    for value in (np.nan, np.inf, -np.inf):
        image[1, 2, 0] = value
        for settings in ({}, {"do_rescale": False}, {"do_convert_rgb": False}):
            with pytest.raises(ValueError, match="`images` must be finite, got NaN or infinity in an"):
                plain(as_type(image, dtype), **settings)


def test_floats_that_look_like_shares_are_named(plain, caplog):
    import transformers

    transformers.utils.logging.enable_propagation()
    try:
        plain(PIXELS.astype(np.float32) / 255)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "values in [0, 1], but `do_rescale=True` expects values in [0, 255]" in caplog.text


LABELS = np.random.default_rng(1).integers(0, 100, (24, 36))


@pytest.mark.parametrize(
    "dtype", [*NUMPY_INTEGERS, "uint8", "uint16", ">u2", ">i4", *FLOATS, *TORCH_INTEGERS, torch.uint8, torch.uint16]
)
def test_label_maps_of_any_dtype_are_labels(plain, dtype):
    for reduce in (False, True):
        [labels] = plain([PIXELS], [as_type(LABELS, dtype)], do_reduce_labels=reduce).labels
        assert labels.dtype == torch.int64
        expected = np.where(LABELS == 0, 255, LABELS - 1) if reduce else LABELS
        np.testing.assert_array_equal(labels, expected)


def test_large_labels_survive_resizing():
    processor = ClusTRImageProcessor(size={"height": 12, "width": 18}, do_center_crop=False)
    large = MAX_LABEL - LABELS
    [labels] = processor([PIXELS], [large]).labels
    assert set(labels.unique().tolist()) <= set(large.flatten().tolist())


def test_binary_maps_and_those_of_deep_files_are_labels(plain):
    [labels] = plain([PIXELS], [LABELS > 50]).labels
    np.testing.assert_array_equal(labels, LABELS > 50)
    for mode in (np.int32, np.float32, np.uint16):
        [labels] = plain([PIXELS], [Image.fromarray(LABELS.astype(mode))]).labels
        np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    "value, dtype, message",
    [
        (np.nan, "float32", "must hold whole numbers, got a map of dtype float32"),
        (np.inf, torch.float64, "must hold whole numbers, got a map of dtype float64"),
        (0.5, "float64", "must hold whole numbers, got a map of dtype float64"),
        (-1, "int16", r"must have labels in \[0, \d+\], with 255 .*, got a map of dtype int16 with labels from -1 to"),
        (-100, torch.int64, r"must have labels in \[0, \d+\].* int64 with labels from -100 to"),
        (2**31, "int64", r"must have labels in .* to 2147483648"),
        (2**32 + 5, "uint64", r"must have labels in .* to 4294967301"),
        (1, "complex64", "must be bool, integers or floats, got an array of dtype complex64"),
    ],
)
def test_label_maps_that_hold_no_labels_are_refused(plain, value, dtype, message):
    label_map = LABELS.astype(np.float64)
    label_map[2, 3] = value
    with pytest.raises(ValueError, match=f"`segmentation_maps` {message}"):
        plain([PIXELS], [as_type(label_map, dtype)])


def test_images_without_pixels_are_none():
    assert read_label_map(np.zeros((0, 3), dtype=np.int16)).shape == (0, 3)
    assert find_transposition(Image.fromarray(PIXELS)) is None


def test_pipelines_take_what_the_processor_reads(tmp_path):
    """transformers' own reading raises an error; if that changes, update docs/known_limits.md and the docstring."""
    path = tmp_path / "image.png"
    path.write_bytes(with_exif("PNG", BROKEN_BLOCK))
    model, processor = make_model("classification")
    classify = pipeline("image-classification", model=model, image_processor=processor)
    with pytest.raises(SyntaxError):
        classify(str(path))
    assert classify(classify.image_processor.read_image(path)) == classify(Image.fromarray(PIXELS))
