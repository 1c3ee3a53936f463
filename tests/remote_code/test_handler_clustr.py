"""`handler.py` behind HTTP: valid requests of every task next to invalid ones, and checks of images."""

import base64
import io
import json
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from endpoint_server import EndpointServer
from hostile_files import chunk, many_codes, png, repeat, shared_tags, with_frame
from hub_repositories import PIPELINES, make_image, make_model
from PIL import Image
from pipeline_answers import as_arrays, assert_same, with_arrays
from transformers import pipeline

from clustr_hf.keypoints import COCO
from clustr_hf.publish import build_repository
from clustr_hf.remote_code import handler_clustr
from clustr_hf.remote_code.handler_clustr import EndpointHandler, RequestError, read_image


BOXES = [[20.0, 10.0, 40.0, 60.0], [60.5, -20.0, 30.0, 80.0]]


def encode(image: Image.Image, format: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **settings)
    return buffer.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


IMAGE = in_base64(encode(make_image()))


@pytest.fixture(scope="module", params=PIPELINES)
def endpoint(request, tmp_path_factory):
    """Name of the kind, its server, and the package's pipeline for comparison."""
    folder = tmp_path_factory.mktemp("repository") / request.param
    model, processor = make_model(request.param)
    build_repository(model, processor, folder)
    task = PIPELINES[request.param]
    own = pipeline(task, model=model, image_processor=processor)
    with EndpointServer(folder) as server:
        yield request.param, server, own


GOOD_PARAMETERS = {
    "image-classification": {"top_k": 2, "function_to_apply": "sigmoid"},
    "image-segmentation": {"threshold": 0.2, "mask_threshold": 0.4},
    "object-detection": {"threshold": 0.2},
    "keypoint-detection": {"boxes": BOXES, "flip_test": False},
    "image-feature-extraction": {"pool": True},
}


def test_good_requests_are_answered_as_by_the_pipeline(endpoint):
    kind, server, own = endpoint
    image, parameters = make_image(), GOOD_PARAMETERS[PIPELINES[kind]]
    expected = as_arrays(own(image))
    in_json = {"inputs": IMAGE}
    for body, content_type in [
        (encode(image), "image/png"),
        (json.dumps(in_json).encode(), "application/json"),
        (json.dumps({"inputs": f"data:image/png;base64,{IMAGE}", "parameters": {}}).encode(), "application/json"),
    ]:
        status, answer = server.post(body, content_type)
        assert status == 200, answer
        assert_same(with_arrays(answer), expected)
    status, answer = server.post(json.dumps({**in_json, "parameters": parameters}).encode())
    assert status == 200, answer
    assert_same(with_arrays(answer), as_arrays(own(image, **parameters)))
    assert len(answer) > 0
    other = make_image((80, 64))
    status, answer = server.post(json.dumps({"inputs": [IMAGE, in_base64(encode(other))]}).encode())
    assert status == 200, answer
    assert_same(with_arrays(answer), [expected, as_arrays(own(other))])


def test_poses_take_boxes_beside_each_image(endpoint):
    kind, server, own = endpoint
    persons = {"image": IMAGE, "boxes": BOXES}
    status, answer = server.post(json.dumps({"inputs": [persons, {"image": IMAGE}]}).encode())
    if kind != "poses":
        assert status == 400 and "must be images, got an object" in answer["error"]
        return
    assert status == 200
    assert_same(answer, [as_arrays(own(make_image(), boxes=BOXES)), as_arrays(own(make_image()))])
    assert [len(persons) for persons in answer] == [2, 1]
    assert [point["label"] for point in answer[0][0]["keypoints"]] == list(COCO.names)
    both = {"inputs": persons, "parameters": {"boxes": BOXES}}
    assert "got both" in server.post(json.dumps(both).encode())[1]["error"]


def png_header(width: int, height: int) -> bytes:
    """A PNG file with a header of this size and no pixels."""
    return png(size=(width, height), rows=zlib.compress(b""))


def bad_requests(kind: str) -> list[tuple[bytes, str, str]]:
    """Body, content type and a part of the expected message."""
    text = "application/json"
    whole = encode(make_image())
    jpeg = encode(make_image((300, 200)), "JPEG")
    values = {
        "no body": (b"", "Expecting value"),
        "no JSON": (b"not json", "Expecting value"),
        "half of JSON": (b'{"inputs": "aa', "Unterminated"),
        "deep JSON": (b'{"inputs":' + b"[" * 100_000, ""),
        "binary": (bytes(range(256)), ""),
        "an array": (b"[]", "inputs"),
        "a number": (b"3", ""),
        "null": (b"null", ""),
        "an empty object": (b"{}", "inputs"),
        "another key": (b'{"image": "x"}', "inputs"),
    }
    bodies = [(body, text, message) for body, message in values.values()]
    inputs = {
        "null": (None, "with `inputs`"),
        "a number": (7, "must be an image"),
        "true": (True, "must be an image"),
        "a float": (0.5, "must be an image"),
        "empty text": ("", "is empty"),
        "words": ("hello, world!", "base64"),
        "wrong padding": ("abcde", "base64"),
        "no ASCII": ("ü" * 8, "base64"),
        "no image": (in_base64(b"just some bytes"), "JPEG, PNG, WEBP"),
        "a script": (in_base64(b"#!/bin/sh\necho"), "JPEG, PNG, WEBP"),
        "PostScript": (in_base64(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "JPEG, PNG, WEBP"),
        "SVG": (in_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "JPEG, PNG, WEBP"),
        "a URL": ("http://127.0.0.1/image.png", "URLs are not fetched"),
        "a file's URL": ("file:///etc/passwd", "URLs are not fetched"),
        "a path": ("/etc/passwd", "base64"),
        "half of a PNG": (in_base64(whole[: len(whole) // 2]), "whole image file"),
        "half of a JPEG": (in_base64(jpeg[: len(jpeg) // 2]), "whole image file"),
        "a header": (in_base64(whole[:40]), ""),
        "no pixels": (in_base64(png_header(64, 64)), "whole image file"),
        "a bomb": (in_base64(png_header(60_000, 60_000)), "00,000 pixels, got"),
        "too many pixels": (in_base64(png_header(8_000, 8_000)), "00,000 pixels, got"),
        "TIFF": (in_base64(encode(make_image(), "TIFF")), "(JPEG, PNG, WEBP), got TIFF"),
        "GIF": (in_base64(encode(make_image(), "GIF")), "(JPEG, PNG, WEBP), got GIF"),
        "BMP": (in_base64(encode(make_image(), "BMP")), "(JPEG, PNG, WEBP), got another format"),
        "shared tags": (in_base64(shared_tags(1500, 1_000_000)), "(JPEG, PNG, WEBP), got TIFF"),
        "many chunks": (in_base64(png(repeat(chunk(b"aaAa"), 500_000))), "more than 4,9"),
        "arithmetic": (in_base64(with_frame(0xC9)), "got arithmetic JPEG"),
        "too thin": (in_base64(encode(Image.new("RGB", (3_000, 2)))), "times as long as wide"),
        "too high": (in_base64(encode(Image.new("L", (1, 12)))), "times as long as wide"),
        "no images": ([], "1 to 16 images"),
        "too many images": ([IMAGE] * 17, "1 to 16 images"),
        "a bad one of two": ([IMAGE, "###"], "base64"),
        "a list in a list": ([[IMAGE]], "must be an image"),
        "an empty object": ({}, ""),
        "an object": ({"picture": IMAGE}, ""),
        "a large file": (in_base64(whole) + "A" * (28 * 2**20), "20,971,520 bytes"),
    }
    bodies += [(json.dumps({"inputs": value}).encode(), text, message) for value, message in inputs.values()]
    parameters = [
        *(5, "x", [1], True),
        *({"temperature": 1}, {"": 1}, {"model": "other/repository"}, {"trust_remote_code": True}),
        *({"top_k": 0}, {"top_k": "3"}, {"top_k": 2.5}, {"top_k": True}, {"function_to_apply": "eval"}),
        *({"threshold": -0.1}, {"threshold": 1.1}, {"threshold": "0.5"}, {"threshold": None}, {"threshold": [0.5]}),
        *({"boxes": 3}, {"boxes": [[1, 2, 3]]}, {"boxes": [[1, 2, 0, 4]]}, {"boxes": [[1, 2, 3, "4"]]}),
        *({"boxes": [[0, 0, 5, 5]] * 101}, {"boxes": [[0, 0, 0.1, 5]]}, {"boxes": [[10**7, 0, 5, 5]]}),
        *({"boxes": [[10**400, 0, 5, 5]]}, {"threshold": 10**400}, {"flip_test": "yes"}, {"pool": 1}),
    ]
    written = [json.dumps(value) for value in parameters] + ['{"threshold": NaN}', '{"boxes": [[0, 0, 1e999, 5]]}']
    bodies += [(f'{{"inputs": "{IMAGE}", "parameters": {value}}}'.encode(), text, "`parameters") for value in written]
    bodies += [
        (b"", "image/png", "cannot identify"),
        (b"not an image", "image/jpeg", "cannot identify"),
        (whole[:100], "image/png", ""),
        (png_header(60_000, 60_000), "image/png", "decompression bomb"),
        (encode(Image.new("RGB", (3_000, 2))), "image/png", "times as long as wide"),
        (encode(make_image(), "TIFF"), "image/tiff", "cannot identify"),
        (shared_tags(1500, 1_000_000), "image/tiff", "cannot identify"),
        (png(repeat(chunk(b"aaAa"), 500_000)), "image/png", "more than 4,9"),
    ]
    assert len(bodies) >= 40, kind
    return bodies


def test_bad_requests_are_answered_with_errors_while_good_ones_work(endpoint):
    kind, server, own = endpoint
    expected = as_arrays(own(make_image()))
    for number, (body, content_type, message) in enumerate(bad_requests(kind)):
        status, answer = server.post(body, content_type)
        assert status == 400, (body[:200], answer)
        assert list(answer) == ["error"] and message in answer["error"], (body[:200], answer)
        assert len(answer["error"]) < 400
        if number % 8 == 0:
            status, answer = server.post(json.dumps({"inputs": IMAGE}).encode())
            assert status == 200
            assert_same(with_arrays(answer), expected)


def image_of_mode(mode: str) -> Image.Image:
    image = make_image((70, 50))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_images_of_every_mode_are_read_as_by_the_processor(mode, handler):
    """Pipelines alone would clip 16-bit and float values and drop transparency."""
    image, processor = image_of_mode(mode), handler.pipeline.image_processor
    with torch.no_grad():
        scores = handler.pipeline.model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    answers = handler({"inputs": image})
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        dict(zip(("cat", "dog", "owl"), scores.tolist())), abs=1e-5
    )


@pytest.mark.parametrize("format", handler_clustr.IMAGE_FORMATS)
def test_files_of_every_format_are_read(format, handler):
    image = make_image((70, 50))
    read = read_image(encode(image, format), handler.pipeline.image_processor)
    assert read.size == (70, 50) and read.mode == "RGB"
    assert np.abs(np.asarray(read, dtype=int) - np.asarray(image)).mean() < 20


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    return EndpointHandler(str(build_repository(*make_model("classification"), tmp_path_factory.mktemp("a") / "b")))


def test_images_are_turned_upright(handler):
    image = make_image((70, 50))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated clockwise by 90 degrees
    read = read_image(encode(turned, "PNG", exif=exif), handler.pipeline.image_processor)
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "MPO"])
def test_of_several_frames_the_first_counts(format, handler):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    content = encode(frames[0], format, save_all=True, append_images=frames[1:])
    red, green, blue = read_image(content, handler.pipeline.image_processor).getpixel((5, 5))
    assert red > 250 and max(green, blue) < 5


def test_wrapped_base64_is_read(handler):
    text = base64.encodebytes(encode(make_image())).decode()
    assert read_image(text, handler.pipeline.image_processor).size == (120, 90)


def test_images_of_masks_may_be_half_as_large(handler):
    large = png_header(5_000, 4_000)
    with pytest.raises(RequestError, match="1 to 12,500,000 pixels, got 5000 x 4000"):
        read_image(large, handler.pipeline.image_processor, handler_clustr.MAX_PIXELS_OF_MASKS)
    with pytest.raises(RequestError, match="must be a whole image file"):
        read_image(large, handler.pipeline.image_processor)


@pytest.fixture
def undecoded(monkeypatch):
    """Fails a test in which an image is decoded."""
    monkeypatch.setattr(handler_clustr, "_decode", lambda *_: pytest.fail("an image was decoded"))


def test_limits_are_those_of_a_request_whatever_the_number_of_images(handler, undecoded):
    """Decoding sixteen images of sixteen megapixels one after the other would take more than a minute."""
    large = encode(Image.new("L", (4_000, 4_000)), "JPEG")
    start = time.monotonic()
    for inputs in ([large] * 16, [in_base64(large)] * 2, [Image.new("1", (4_000, 4_000)), large]):
        with pytest.raises(RequestError, match="at most 25,000,000 pixels together, got 32,000,000 or more"):
            handler({"inputs": inputs})
    heavy = png(end=bytes(11 * 2**20))
    for inputs in ([heavy] * 2, [in_base64(heavy), heavy]):
        with pytest.raises(RequestError, match="at most 20,971,520 bytes together, got 23,"):
            handler({"inputs": inputs})
    assert time.monotonic() - start < 5


def test_the_limit_of_pixels_counts_the_classes_of_a_map():
    model, processor = make_model("semantic_fpn")
    run = pipeline("image-segmentation", model=model, image_processor=processor)
    assert handler_clustr.pixel_limit(run) == handler_clustr.MAX_PIXELS_OF_MASKS
    run.model.config.id2label = {index: f"{index}" for index in range(150)}
    assert handler_clustr.pixel_limit(run) == 2_133_333
    run = pipeline("image-classification", model=make_model("classification")[0], image_processor=processor)
    assert handler_clustr.pixel_limit(run) == handler_clustr.MAX_PIXELS


def test_a_lossless_webp_image_and_many_scans_have_lower_limits(handler, undecoded):
    with pytest.raises(RequestError, match=r"at most 10,000,000 pixels, if it is WebP .*, got 3200 x 3200"):
        handler({"inputs": many_codes((3200, 3200), 9)})
    transparent = Image.new("RGBA", (3200, 3200), (1, 2, 3, 4))
    with pytest.raises(RequestError, match=r"at most 10,000,000 pixels, if it is WebP"):
        handler({"inputs": encode(transparent, "WEBP", method=0)})
    progressive = encode(Image.new("L", (2_800, 2_800)), "JPEG", progressive=True)
    progressive = with_scans(progressive, 64 - progressive.count(b"\xff\xda"))
    with pytest.raises(RequestError, match=r"450,000,000 pixels in all scans of a JPEG .*, got 64 of 2800 x 2800"):
        handler_clustr.open_image(progressive, handler.pipeline.image_processor, handler_clustr.RequestLimits())
    with pytest.raises(RequestError, match="more than 64 scans"):
        handler({"inputs": with_scans(progressive, 1)})


def with_scans(content: bytes, more: int) -> bytes:
    """A progressive file with `more` additional scans."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * more + content[-2:]


@pytest.mark.parametrize("kind", ["instances", "semantic_fpn"])
def test_masks_are_counted_for_the_whole_request_before_they_are_drawn(kind, tmp_path, monkeypatch):
    handler = EndpointHandler(str(build_repository(*make_model(kind), tmp_path / kind)))
    image, parameters = encode(make_image((60, 60))), {"threshold": 0.0}
    number = len(handler({"inputs": image, "parameters": parameters}))
    assert number >= 1
    most = 3 * number * 60 * 60  # for one to three images: hidden objects count, too
    monkeypatch.setattr(handler_clustr, "MAX_PIXELS_OF_ANSWER", most)
    for _ in range(2):  # the limit applies to a request
        handler({"inputs": image, "parameters": parameters})
    with pytest.raises(RequestError, match=f"masks of an answer must have at most {most:,} pixels together, got"):
        handler({"inputs": [image] * 4, "parameters": parameters})
    monkeypatch.setattr(handler_clustr, "MAX_PIXELS_OF_ANSWER", 60 * 60 - 1)
    monkeypatch.setattr(Image, "fromarray", lambda *_: pytest.fail("a mask was drawn"))
    with pytest.raises(RequestError, match=r"send smaller images, or, for objects, a higher `threshold`"):
        handler({"inputs": image, "parameters": parameters})


class Slow:
    """A pipeline that takes a while to answer."""

    def __init__(self, run):
        self.run, self.number = run, 0

    def __getattr__(self, name):
        return getattr(self.run, name)

    def __call__(self, *_, **__):
        self.number += 1
        time.sleep(0.2)
        return []


def test_a_request_ends_when_its_time_is_up(handler, monkeypatch):
    """The time is checked between images: the first ones are answered."""
    monkeypatch.setattr(handler, "pipeline", Slow(handler.pipeline))
    monkeypatch.setattr(handler_clustr, "MAX_SECONDS", 0.5)
    with pytest.raises(RequestError, match=r"within 0\.5 s, but is not: send fewer or smaller images"):
        handler({"inputs": [encode(make_image())] * 16})
    assert 1 <= handler.pipeline.number <= 3


def test_base64_with_much_white_space_takes_no_more_than_its_length(handler):
    """Split into a list of words, it would take ten times the memory."""
    text = in_base64(encode(make_image()))
    spread = "\n".join(text)
    processor = handler.pipeline.image_processor
    tracemalloc.start()
    assert read_image(spread + " \n" * 1_000_000, processor).size == (120, 90)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_what_the_pipeline_refuses_is_a_request_error(tmp_path):
    model, processor = make_model("poses")
    model.config.flip_pairs = None
    handler = EndpointHandler(str(build_repository(model, processor, tmp_path / "x")))
    with pytest.raises(RequestError, match="`flip_test` must be False"):
        handler({"inputs": make_image(), "parameters": {"flip_test": True}})
    with pytest.raises(RequestError, match=r"must have `image` and optionally `boxes`, got \[1, 'image'\]"):
        handler({"inputs": {1: 2, "image": make_image()}})


@pytest.mark.parametrize("data", [None, [], "x", {"inputs": None}, {}, make_image()])
def test_callers_in_python_get_clear_errors(handler, data):
    with pytest.raises(RequestError, match="must be a JSON object with `inputs`, or an image"):
        handler(data)


def test_arrays_and_tensors_are_no_images(handler):
    for value in (np.zeros((9, 9, 3), dtype=np.uint8), torch.zeros(3, 9, 9)):
        with pytest.raises(RequestError, match=r"must be an image.* got a value of type"):
            handler({"inputs": value})


def test_a_handler_needs_a_repository_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError):
        EndpointHandler(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["ResNetForImageClassification"]}')
    with pytest.raises(ValueError, match="ResNetForImageClassification"):
        EndpointHandler(str(tmp_path))
