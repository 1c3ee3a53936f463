"""The keypoint-detection pipeline: inputs, outputs and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from clustr_hf import (
    ClusTRConfig,
    ClusTRDetectionImageProcessor,
    ClusTRForObjectDetection,
    ClusTRForPoseEstimation,
    ClusTRKeypointDetectionPipeline,
    ClusTRPoseImageProcessor,
)
from clustr_hf.keypoints import COCO
from clustr_hf.remote_code import pipeline_clustr_pose


BOXES = [[20.0, 10.0, 40.0, 60.0], [60.5, -20.0, 30.0, 80.0], [5.0, 5.0, 70.0, 30.0]]


def make_model(**fields):
    model = ClusTRForPoseEstimation(ClusTRConfig.from_variant("nano", **{**COCO.config_fields(), **fields})).eval()
    with torch.no_grad():
        for weight in model.head.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return make_model()


@pytest.fixture(scope="module")
def processor():
    return ClusTRPoseImageProcessor(size={"height": 64, "width": 48}, keypoint_heatmap_downscale_factor=2)


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((120, 90))


@pytest.fixture
def estimate(model, processor):
    return ClusTRKeypointDetectionPipeline(model=model, image_processor=processor)


def points_of(person):
    return torch.tensor([[point["x"], point["y"], point["score"]] for point in person["keypoints"]])


@pytest.mark.parametrize("flip_test", [True, False, None])
def test_persons_are_what_model_and_processor_find(estimate, model, processor, image, flip_test):
    found = estimate(image, boxes=BOXES, **({} if flip_test is None else {"flip_test": flip_test}))
    crops = processor(image, boxes=[BOXES], return_tensors="pt").pixel_values
    with torch.no_grad():
        outputs = model(crops)
        flipped = model(crops.flip(-1), flip_pairs=COCO.flip_pairs) if flip_test is not False else None
    [expected] = processor.post_process_pose_estimation(outputs, [BOXES], flipped)
    for person, reference in zip(found, expected, strict=True):
        reference_points = torch.cat([reference["keypoints"], reference["scores"][:, None]], dim=1)
        torch.testing.assert_close(points_of(person), reference_points, atol=1e-3, rtol=1e-4)
        assert person["box"] == dict(zip(("xmin", "ymin", "xmax", "ymax"), reference["bbox"].tolist()))


def test_many_persons_go_through_the_model_in_parts(estimate, image, monkeypatch):
    together = estimate(image, boxes=BOXES)
    monkeypatch.setattr(pipeline_clustr_pose, "PERSON_BATCH_SIZE", 2)
    for first, second in zip(together, estimate(image, boxes=BOXES), strict=True):
        torch.testing.assert_close(points_of(first), points_of(second), atol=1e-3, rtol=1e-4)


def answers_of(images):
    """Labels, and numbers (people, 4 + 1 + 3 K) of each image: boxes, scores, points."""
    labels = [[[point["label"] for point in person["keypoints"]] for person in persons] for persons in images]
    numbers = [
        torch.tensor(
            [[*person["box"].values(), person["score"], *points_of(person).flatten().tolist()] for person in persons]
        )
        for persons in images
    ]
    return labels, numbers


@pytest.mark.parametrize("batch_size", [2, 3, 4, 16])
@pytest.mark.parametrize("flip_test", [True, False])
def test_batches_of_images_are_answered_as_one_by_one(estimate, image, batch_size, flip_test):
    """Images with different sizes and numbers of people, including none."""
    turned = image.transpose(Image.Transpose.ROTATE_90)
    images, boxes = [image, turned, image, turned, image], [BOXES[:1], [], BOXES, BOXES[1:], []]
    inputs = [{"image": picture, "boxes": of_image} for picture, of_image in zip(images, boxes)]
    labels, numbers = answers_of(estimate(images, boxes=boxes, flip_test=flip_test))
    assert [len(persons) for persons in labels] == [1, 0, 3, 2, 0]
    batch = {"batch_size": batch_size, "flip_test": flip_test}
    for found in (
        estimate(images, boxes=boxes, **batch),
        estimate(inputs, **batch),
        estimate((each for each in inputs), **batch),
    ):
        again, values = answers_of(list(found))
        assert again == labels
        for value, expected in zip(values, numbers, strict=True):
            torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-4)


def test_batches_hold_persons_of_several_images(model, processor, image):
    sizes = []
    estimate = ClusTRKeypointDetectionPipeline(model=model, image_processor=processor, batch_size=2)
    hook = model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    try:
        found = estimate([image] * 5, boxes=[BOXES[:1], BOXES, [], [], BOXES[:2]], flip_test=False)
    finally:
        hook.remove()
    assert [len(persons) for persons in found] == [1, 3, 0, 0, 2]
    assert sizes == [4, 2]
    assert estimate([image], boxes=[[]]) == [[]] and len(estimate(image)) == 1


def test_a_detector_finds_the_persons_of_a_batch(model, processor, image):
    def detect(picture):
        sides = ("xmin", "ymin", "xmax", "ymax")
        number = 0 if picture.width < picture.height else 2
        corners = [(x, y, x + w, y + h) for x, y, w, h in BOXES[:number]]
        return [{"label": "person", "score": 0.9, "box": dict(zip(sides, box))} for box in corners]

    estimate = ClusTRKeypointDetectionPipeline(model=model, image_processor=processor, detector=detect)
    images = [image, image.transpose(Image.Transpose.ROTATE_90), image]
    labels, numbers = answers_of(estimate(images))
    assert [len(persons) for persons in labels] == [2, 0, 2]
    again, values = answers_of(estimate(images, batch_size=3))
    assert again == labels
    for value, expected in zip(values, numbers):
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_images_with_malformed_metadata_are_read(estimate, image, tmp_path, image_format):
    path = tmp_path / "image"
    exif = b"Exif\0\0\x00\x08\x00\x02\x01\x12\x00\x03"
    image.save(path, image_format, exif=exif, lossless=True)
    expected = estimate(image, boxes=BOXES)
    for given in (path, str(path), Image.open(path)):
        assert estimate(given, boxes=BOXES) == expected
    with pytest.raises(TypeError, match="must be PIL images, paths, URLs or bytes, got a int"):
        estimate({"image": 3})


def test_trust_goes_to_the_detector_that_is_given_by_name(model, processor, monkeypatch):
    """Only remote code: the package's own class does not trust it unless told to."""
    asked = []
    monkeypatch.setattr(pipeline_clustr_pose, "pipeline", lambda *task, **settings: asked.append((task, settings)))
    for given in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        for detector in ("someone/detector", Path("folder")):
            ClusTRKeypointDetectionPipeline(model=model, image_processor=processor, detector=detector, **given)
            task, settings = asked[-1]
            assert task == ("object-detection",) and settings["model"] == str(detector)
            assert settings["trust_remote_code"] is given.get("trust_remote_code")

    remote = type("Remote", (ClusTRKeypointDetectionPipeline,), {"__module__": "transformers_modules.someone.poses"})
    remote(model=model, image_processor=processor, detector="someone/detector")
    assert asked[-1][1]["trust_remote_code"] is True
    remote(model=model, image_processor=processor, detector="someone/detector", trust_remote_code=False)
    assert asked[-1][1]["trust_remote_code"] is False


def test_images_in_a_list_by_path_and_without_persons(estimate, image, tmp_path):
    image.save(tmp_path / "it.png")
    several = estimate([image, str(tmp_path / "it.png"), image], boxes=[BOXES[:1], BOXES[:1], []])
    assert several[0] == several[1] == estimate(tmp_path / "it.png", boxes=BOXES[:1]) and several[2] == []
    assert several[0] == estimate(image, boxes=BOXES[:1])
    assert estimate(image, boxes=[]) == [] and estimate([]) == []
    assert estimate((image, image), boxes=(BOXES[:1], [])) == [several[0], []]
    inputs = {"image": image, "boxes": BOXES[:1]}
    assert estimate(inputs) == several[0]
    [first, [generated]] = estimate(each for each in (inputs, image))
    [whole], [[same]] = estimate(image), estimate([image])
    assert first == several[0] and generated == whole == same == estimate(image, boxes=[[0, 0, 120, 90]])[0]


def test_a_detector_finds_the_persons(model, processor, image):
    detections = [
        {"label": "man", "score": score, "box": {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}}
        for score, (x, y, w, h) in zip((0.9, 0.2, 0.7), BOXES)
    ]
    detections.append({"label": "man", "score": 0.8, "box": {"xmin": 3, "ymin": 3, "xmax": 3, "ymax": 9}})
    estimate = ClusTRKeypointDetectionPipeline(model=model, image_processor=processor, detector=lambda _: detections)
    by_boxes = estimate(image, boxes=[BOXES[0], BOXES[2]])
    found = estimate(image, detector_label="man")
    assert [person["keypoints"] for person in found] == [person["keypoints"] for person in by_boxes]
    assert [p["score"] for p in found] == [pytest.approx(b["score"] * s) for b, s in zip(by_boxes, (0.9, 0.7))]
    assert len(estimate(image, detector_label="man", detector_threshold=0.1)) == 3
    assert estimate(image) == []  # none of them is a "person"


def test_a_threshold_drops_keypoints_but_no_persons(estimate, image):
    everything = estimate(image, boxes=BOXES[:1])[0]
    least = sorted(point["score"] for point in everything["keypoints"])[8]
    [person] = estimate(image, boxes=BOXES[:1], threshold=least)
    assert person["score"] == everything["score"]
    assert person["keypoints"] == [point for point in everything["keypoints"] if point["score"] > least]
    assert len(person["keypoints"]) == 8


def test_the_package_has_the_pipeline_without_remote_code(processor, image, tmp_path):
    """transformers takes the pipeline from the checkpoint's repository unless another one is passed."""
    model = make_model()
    estimates = [pipeline("keypoint-detection", model=model, image_processor=processor)]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    estimates.append(pipeline("keypoint-detection", str(tmp_path), pipeline_class=ClusTRKeypointDetectionPipeline))
    for estimate in estimates:
        assert type(estimate) is ClusTRKeypointDetectionPipeline and type(estimate.model) is ClusTRForPoseEstimation
    first, second = (estimate(image, boxes=BOXES) for estimate in estimates)
    assert first == second and len(first) == 3


def test_half_precision(model, processor, image):
    exact = ClusTRKeypointDetectionPipeline(model=model, image_processor=processor)(image, boxes=BOXES, flip_test=False)
    half = make_model()
    half.load_state_dict(model.state_dict())
    estimate = ClusTRKeypointDetectionPipeline(model=half.bfloat16(), image_processor=processor)
    differences = [
        (points_of(first) - points_of(second)).abs()
        for first, second in zip(exact, estimate(image, boxes=BOXES, flip_test=False), strict=True)
    ]
    # Heatmaps of random weights have many nearly equal maxima: most points are the same.
    differences = torch.cat(differences)
    assert differences[:, 2].max() < 0.2
    assert (differences[:, :2].amax(dim=1) < 2.5).float().mean() > 0.8


def test_a_detection_pipeline_finds_the_persons_and_hears_of_the_threshold(model, processor, image):
    torch.manual_seed(0)
    names = {0: "person", 1: "dog"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    detector = ClusTRForObjectDetection(ClusTRConfig.from_variant("nano", **labels)).eval()
    with torch.no_grad():
        for name, weight in detector.detector.named_parameters():
            if weight.ndim > 1 and "backbone" not in name:
                scale = 0.5 if "cls_logits" in name else 1.0  # scores that differ
                weight.normal_(std=scale * (2 / weight[0].numel()) ** 0.5)
            if name.endswith("cls_logits.bias"):
                weight.fill_(-3.0)
    detect = pipeline(
        "object-detection",
        model=detector,
        image_processor=ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 100}),
    )
    estimate = ClusTRKeypointDetectionPipeline(model=model, image_processor=processor, detector=detect)
    numbers = {}
    for threshold in (0.1, 0.4):  # both below the 0.5 of detection pipelines
        found = [answer for answer in detect(image, threshold=threshold) if answer["label"] == "person"]
        found = [answer for answer in found if answer["box"]["xmin"] < answer["box"]["xmax"]]
        found = [answer for answer in found if answer["box"]["ymin"] < answer["box"]["ymax"]]
        persons = estimate(image, detector_threshold=threshold, flip_test=False)
        assert [person["box"] for person in persons] == [pytest.approx(answer["box"]) for answer in found]
        numbers[threshold] = len(persons)
    assert numbers[0.1] > numbers[0.4]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"boxes": [[1, 2, 3]]}, ValueError, r"`boxes\[0\]` must have shape \(n, 4\)"),
        (
            {"boxes": [[1, 2, 3, 0]]},
            ValueError,
            r"`boxes\[0\]` must be finite, at most 16777216, and have a positive width and height",
        ),
        (
            {"boxes": BOXES, "inputs": {"image": "x", "boxes": BOXES}},
            ValueError,
            "`boxes` require an image .* got a dict",
        ),
        (
            {"inputs": {"image": "x", "box": BOXES}},
            ValueError,
            r"keys 'image' and optionally 'boxes', got \['box', 'image'\]",
        ),
        (
            {"inputs": {"boxes": BOXES}},
            ValueError,
            r"must have the keys 'image' and optionally 'boxes', got \['boxes'\]",
        ),
        ({"boxes": BOXES, "inputs": (x for x in "ab")}, ValueError, "`boxes` require an image .* got a generator"),
        ({"boxes": BOXES, "top_k": 2}, TypeError, r"the keypoint-detection pipeline has no parameters \['top_k'\]"),
    ],
)
def test_wrong_calls_are_named(estimate, image, arguments, error, message):
    with pytest.raises(error, match=message):
        estimate(**{"inputs": image, **arguments})
    assert len(estimate(image, boxes=BOXES, batch_size=None)) == 3


def test_other_wrong_calls_are_named(estimate, processor, image):
    with pytest.raises(ValueError, match="`boxes` must have one list for each of the 2 images, got 3"):
        estimate([image, image], boxes=BOXES)
    without_pairs = ClusTRKeypointDetectionPipeline(model=make_model(flip_pairs=None), image_processor=processor)
    assert len(without_pairs(image, boxes=BOXES)) == 3
    with pytest.raises(ValueError, match="`flip_test` must be False: the configuration has no `flip_pairs`"):
        without_pairs(image, boxes=BOXES, flip_test=True)
