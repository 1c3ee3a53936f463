"""Files that are expensive to read are rejected or stripped; ordinary files are read as PIL reads them."""

import io
import json
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY, run_process
from endpoint_server import restored_pil
from hostile_files import EXIF, FILES, chunk, encode, jpeg, png, repeat, segment, shared_tags, webp, with_frame
from PIL import Image, ImageCms, PngImagePlugin

from clustr_hf.remote_code.image_files_clustr import MAX_SCANS, ImageFileError, scan_file
from clustr_hf.remote_code.image_reading_clustr import guard_pil, open_image, read_image


SECONDS, MEGABYTES = 5, 500


def test_files_that_cost_much_are_answered_in_seconds_and_megabytes(tmp_path):
    """Each file, alone and 16 times in a request, by a handler; formats that the handler rejects by a processor."""
    assert len(FILES) >= 100
    output = run_process([sys.executable, REPOSITORY / "tests" / "helpers" / "hostile_requests.py"], tmp_path)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert {line["name"].partition(": ")[0] for line in lines} == FILES.keys()
    assert [line for line in lines if line["seconds"] > SECONDS] == []
    assert sum(line["megabytes"] for line in lines) < MEGABYTES, [line for line in lines if line["megabytes"] > 20]
    answers = {line["name"]: line["answer"] for line in lines}
    for name, answer in answers.items():
        assert answer == "" or answer.startswith("ValueError" if "processor" in name else "RequestError"), (
            name,
            answer,
        )
    for name in FILES:
        if name.startswith(("tiff", "gif", "bmp", "eps", "icon", "ppm")):
            assert "must be an image file (JPEG, PNG, WEBP), got" in answers[f"{name}: one"]
        elif ", large" in name and "canvas" not in name and "of nothing" not in name:
            assert answers[f"{name}: one"] == "" and "pixels together" in answers[f"{name}: sixteen"]


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(PIXELS if mode in ("RGBA", "LA") else PIXELS[..., :3])
    if mode == "I;16":
        return Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 255 + PIXELS[..., 1])
    return image.convert(mode)


def written(format: str, mode: str = "RGB", **settings) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in settings:
        settings["append_images"] = [image.copy() for image in OTHERS]
    picture(mode).save(buffer, format, **settings)
    return buffer.getvalue()


def text_chunks() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a" * 500, zip=True)
    info.add_itxt("Comment", "b" * 500)
    return info


# Savers store their settings on images, so each file gets its own images.
OTHERS = [Image.fromarray(PIXELS[::-1, :, :3]), Image.fromarray(PIXELS[:, ::-1, :3])]
SEVERAL = {"save_all": True, "append_images": OTHERS}
ORDINARY = {
    **{f"PNG {mode}": ("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "PNG with all": ("PNG", "RGB", {"pnginfo": text_chunks(), "icc_profile": PROFILE, "dpi": (72, 72)}),
    "PNG palette with a transparent colour": ("PNG", "P", {"transparency": 3}),
    "PNG with a transparent colour": ("PNG", "RGB", {"transparency": tuple(PIXELS[3, 4, :3].tolist())}),
    "PNG of frames": ("PNG", "RGB", SEVERAL),
    "PNG of frames and another image": ("PNG", "RGB", {**SEVERAL, "default_image": True}),
    **{f"JPEG {mode}": ("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")},
    "JPEG with all": ("JPEG", "RGB", {"icc_profile": PROFILE * 100, "comment": b"c" * 500, "exif": b"Exif\0\0"}),
    "JPEG progressive": ("JPEG", "RGB", {"progressive": True, "quality": 95}),
    "JPEG progressive in four colours": ("JPEG", "CMYK", {"progressive": True}),
    "JPEG with restarts": ("JPEG", "RGB", {"restart_marker_blocks": 2, "subsampling": 2}),
    "JPEG kept as RGB": ("JPEG", "RGB", {"keep_rgb": True}),
    "JPEG of several pictures": ("MPO", "RGB", SEVERAL),
    "WebP": ("WEBP", "RGB", {}),
    "WebP transparent": ("WEBP", "RGBA", {}),
    "WebP lossless": ("WEBP", "RGBA", {"lossless": True}),
    "WebP with all": ("WEBP", "RGB", {"icc_profile": PROFILE, "xmp": b"<x/>", "exif": b"Exif\0\0"}),
    "WebP of frames": ("WEBP", "RGB", SEVERAL),
    "GIF": ("GIF", "RGB", {}),
    "GIF transparent": ("GIF", "RGBA", {}),
    "GIF with a comment": ("GIF", "P", {"comment": b"d" * 700, "interlace": 1}),
    "GIF of frames": ("GIF", "RGB", {**SEVERAL, "loop": 0}),
    **{f"TIFF {mode}": ("TIFF", mode, {}) for mode in ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F")},
    "TIFF compressed": ("TIFF", "RGB", {"compression": "tiff_lzw", "icc_profile": PROFILE}),
    "TIFF of pages": ("TIFF", "RGB", {**SEVERAL, "compression": "tiff_deflate"}),
    "TIFF, big": ("TIFF", "RGB", {"big_tiff": True}),
    "TIFF with a long description": ("TIFF", "RGB", {"description": "f" * 500_000}),
    "BMP": ("BMP", "RGB", {}),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_are_read_as_pil_reads_them(name, tmp_path):
    format, mode, settings = ORDINARY[name]
    content = written(format, mode, **settings)
    (tmp_path / "image").write_bytes(content)
    expected = Image.open(io.BytesIO(content))
    assert scan_file(content).format in ({"MPO": "JPEG", "BMP": None}.get(format, format),)
    if format != "BMP":
        assert (scan_file(content).width, scan_file(content).height) == expected.size == (60, 40)
    for source in (content, tmp_path / "image", str(tmp_path / "image")):
        found = open_image(source)
        assert (found.mode, found.size) == (expected.mode, expected.size)
        np.testing.assert_array_equal(np.asarray(found.convert("RGBA")), np.asarray(expected.convert("RGBA")))
        assert found.info.get("transparency") == expected.info.get("transparency")


def test_what_follows_from_metadata_stays():
    """An orientation after colour profiles and comments, in the second of two APP1 segments."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        settings = {"lossless": True} if format == "WEBP" else {}
        straight = written(format, **settings)
        content = written(format, exif=exif, icc_profile=PROFILE, **settings)
        np.testing.assert_array_equal(read_image(content), np.rot90(read_image(straight), -1))
    turned = jpeg(repeat(segment(0xFE, b"e" * 900), 200_000), segment(0xE1, exif.tobytes()))
    assert read_image(turned).size == (48, 64)


@pytest.mark.parametrize(
    "content, message",
    [
        (png(repeat(chunk(b"aaAa"), 500_000)), "more than 4,9.. parts, too many for its size"),
        (jpeg(repeat(segment(0xFE), 500_000)), "more than 4,9.. parts"),
        (webp(*[(b"abcd", b"")] * 60_000), "more than 4,7.. parts"),
        (FILES["gif with a comment in bytes"](), r"more than 1\d,... parts"),
        (shared_tags(1500, 1_000_000), "tags share values: they have more bytes than the file"),
        (shared_tags(1500, 1_000_000, 7, 40000, ">"), "tags share values"),
        (FILES["tiff with a shared directory of exif"](), "tags share values"),
        (FILES["tiff with many tags"](), "more than 4,096 tags in a directory"),
        (FILES["tiff with millions of strips"](), "values of tag 273, more than 36"),
        (FILES["tiff with millions of resolutions"](), "values of tag 282, more than 4,096"),
        (FILES["jpeg, 1000 scans"](), f"more than {MAX_SCANS} scans"),
        (FILES["jpeg, frames in the head"](), "one frame header"),
        (jpeg(segment(0xF0)), "unknown marker FFF0"),
        (b"II*\0", "its header is truncated"),
    ],
)
def test_files_of_other_build_are_named(content, message, tmp_path):
    (tmp_path / "image").write_bytes(content)
    for source in (content, tmp_path / "image"):
        with pytest.raises(ValueError, match=f"`images` must be readable, but .* could not be decoded: .*{message}"):
            open_image(source)


def test_exif_whose_values_are_shared_counts_as_none():
    for content in (jpeg(segment(0xE1, EXIF)), png(chunk(b"eXIf", EXIF[6:]))):
        assert len(scan_file(content).content) < 3000
        assert "exif" not in open_image(content).info


def test_unusual_codings_of_jpeg_are_named():
    assert [scan_file(with_frame(code)).coding for code in (0xC0, 0xC3, 0xC9, 0xCA)] == [
        "",
        "lossless",
        "arithmetic",
        "arithmetic",
    ]


def test_a_webp_canvas_is_measured_before_room_is_made_for_it():
    with pytest.raises(ValueError, match="16384 x 16384 pixels may be a decompression bomb"):
        open_image(FILES["webp, 16,384 pixels wide"]())


def test_servers_guard_what_their_framework_opens():
    with restored_pil():
        guard_pil(("PNG", "JPEG", "WEBP"), 10_000, 1_000_000)
        for format in ("PNG", "JPEG", "WEBP"):
            with Image.open(io.BytesIO(written(format))) as image:
                assert image.size == (60, 40) and image.convert("RGB").size == (60, 40)
            with pytest.raises(Image.DecompressionBombError):
                Image.open(io.BytesIO(encode(format, (101, 100))))
        for format in ("TIFF", "GIF", "BMP"):
            with pytest.raises(Image.UnidentifiedImageError):
                Image.open(io.BytesIO(written(format)))
        start = time.monotonic()
        for content in (png(repeat(chunk(b"aaAa"), 900_000)), jpeg(repeat(segment(0xFE), 900_000))):
            with pytest.raises(ImageFileError, match="parts"):
                Image.open(io.BytesIO(content))
        with pytest.raises(ImageFileError, match="at most 1,000,000 bytes"):
            Image.open(io.BytesIO(png(end=bytes(1_000_000))))
        assert time.monotonic() - start < 2
    assert Image.open(io.BytesIO(written("TIFF"))).size == (60, 40)
