"""The image processor of detectors: annotations to labels, outputs to boxes and masks."""

import tracemalloc

import numpy as np
import pytest
import torch
from conftest import shapes_on_ground
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_convert, box_iou
from transformers import AutoImageProcessor

from clustr_hf import (
    ClusTRDetectionImageProcessor,
    ClusTRDetectionOutput,
    ClusTRInstanceSegmentationOutput,
)
from clustr_hf.metrics import coco_average_precision
from clustr_hf.remote_code.image_processing_clustr_detection import decode_segmentation, encode_mask


def make_image(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode_by_hand(mask):
    """COCO's run lengths, pixel by pixel."""
    counts, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


MASKS = {
    "some": torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) > 0.5,
    "none": torch.zeros(4, 6, dtype=torch.bool),
    "all": torch.ones(4, 6, dtype=torch.bool),
    "first": torch.eye(3, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_run_lengths_are_cocos(mask):
    rle = encode_mask(mask)
    assert rle == encode_by_hand(mask)
    compressed = coco_mask.frPyObjects(rle, *mask.shape)
    assert torch.equal(torch.from_numpy(coco_mask.decode(compressed)).bool(), mask)
    for encoded in (rle, compressed):
        decoded = decode_segmentation(encoded, tuple(mask.shape))
        assert decoded.dtype == torch.bool and torch.equal(decoded, mask)


def test_polygons_become_masks():
    """Two parts of one object; an additional polygon of two corners encloses nothing."""
    polygons = [[10, 5, 20, 5, 20, 15, 10, 15], [30.0, 20.0, 34.0, 20.0, 34.0, 30.0, 30.0, 30.0], [0, 0, 5, 5]]
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[5:15, 10:20] = expected[20:30, 30:34] = True
    assert torch.equal(decode_segmentation(polygons, (40, 50)), expected)


def test_corners_may_be_pairs_and_numbers_of_any_type():
    corners = [10, 5, 20, 5, 20, 15, 10, 15]
    pairs = [corners[place : place + 2] for place in range(0, 8, 2)]
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[5:15, 10:20] = True
    for polygons in (
        *([corners], [pairs], pairs, [tuple(map(float, corners))], [np.array(corners)], np.array([corners])),
        *(np.array([pairs]), [torch.tensor(corners)], [[np.float32(value) for value in corners]]),
        *([[torch.tensor(value) for value in corners]], [[np.array(pair) for pair in pairs]], [corners, [], [1, 2]]),
    ):
        assert torch.equal(decode_segmentation(polygons, (40, 50)), expected), polygons


def test_objects_may_leave_their_image():
    polygon = [-300, 5, 20, 5, 20, 400, -300, 400]
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[5:, :20] = True
    assert torch.equal(decode_segmentation([polygon], (40, 50)), expected)


RUNS = encode_by_hand(MASKS["some"])
NAN, INFINITY = float("nan"), float("inf")
MALFORMED_POLYGONS = [
    *([[value, 0, 5, 0, 5, 5]] for value in (NAN, INFINITY, -INFINITY, 1e9, -1e9, 1e300, 10**400, "1", None)),
    *([[0, 0, 5, 0, 5]], [[0, 0, 5, 5]], [[[0, 0], [5, 5]]], [[0, 0], [5, 5]], [[]], [[[]]], [[1, 2, 3], [4, 5, 6]]),
    *("abc", b"abc", 5, ["abc"], [["0", "0", "5", "0", "5", "5"]], [5, [0, 0, 5, 0, 5, 5]], {1, 2}, [{}], [[{}] * 6]),
    *([[[0, 0, 0], [5, 0, 0], [5, 5, 0]]], [[[0, 0], [5, 0], [5, NAN]]], np.full((1, 6), NAN), [[0, 0, 5, 0, 5, [5]]]),
    [[0, 0, *(20 * [600, 600, -600, 600]) * 20, 5, 5] * 5],  # in fifths of pixels, this outline would take gigabytes
]
MALFORMED_RUNS = [
    *({"size": [7, 5], "counts": counts} for counts in ("", "0", "~~~", "P", "\u00e9", b"\xff\xfe", "0" * 40, "o" * 9)),
    *(
        {"size": [7, 5], "counts": counts}
        for counts in ([35.5], [NAN, 35], [36, -1], [10**30], ["35"], None, 35, [[35]])
    ),
    *(
        {"size": [7, 5], "counts": counts}
        for counts in ([], [34], [35, 1], [INFINITY], {}, {"a": 1}, [None], [True] * 35)
    ),
    *({"size": size, "counts": [35]} for size in (None, [], [7], [7, 5, 1], "75", [7.5, 5], ["7", "5"], [NAN, 5], 35)),
    *({"size": size, "counts": [35]} for size in ([-7, -5], [0, 0], [10**30, 5], {"height": 7}, [5, 7])),
    *({"counts": [35]}, {"size": [7, 5]}, {"a": 1}, {"size": [7, 5], "counts": None}),
]


@pytest.mark.parametrize("segmentation", [*MALFORMED_POLYGONS, *MALFORMED_RUNS], ids=lambda value: repr(value)[:40])
def test_malformed_segmentations_are_refused_before_anything_reads_them(segmentation):
    with pytest.raises(ValueError, match="`annotations` must have"):
        decode_segmentation(segmentation, (7, 5))
    annotation = annotate(([0, 0, 5, 5], 1))
    annotation["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(ValueError, match="`annotations` must have"):
        ClusTRDetectionImageProcessor(do_resize=False)(
            make_image(7, 5), annotations=annotation, return_segmentation_masks=True, return_tensors="pt"
        )


def test_broken_strings_of_run_lengths_are_told_from_whole_ones():
    """COCO's own functions decode parts of a malformed string, or read beyond it."""
    mask = torch.rand(60, 70, generator=torch.Generator().manual_seed(1)) > 0.9
    compressed = coco_mask.frPyObjects(encode_mask(mask), *mask.shape)
    whole = compressed["counts"]
    assert torch.equal(decode_segmentation({**compressed, "counts": whole.decode()}, (60, 70)), mask)
    generator = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[generator.integers(len(broken))] = generator.integers(256)
        for counts in (bytes(broken), whole[: generator.integers(len(whole))]):
            try:
                decoded = decode_segmentation({**compressed, "counts": counts}, (60, 70))
            except ValueError:
                continue
            again = coco_mask.frPyObjects(encode_mask(decoded), *mask.shape)  # another mask, or the same
            assert torch.equal(torch.from_numpy(coco_mask.decode(again)).bool(), decoded)
            assert counts == again["counts"] or decoded.shape == mask.shape


def test_segmentations_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="must have 'segmentation' for masks"):
        decode_segmentation(None, (4, 4))
    with pytest.raises(ValueError, match="must have run lengths of 16 pixels in total"):
        decode_segmentation({"size": [4, 4], "counts": [3, 5]}, (4, 4))
    with pytest.raises(ValueError, match="as a list of polygons, got one list of numbers"):
        decode_segmentation([0, 0, 5, 5, 5, 0], (4, 4))
    with pytest.raises(ValueError, match=r"of the size of their upright image, \(4, 4\), got \[5, 4\]"):
        decode_segmentation({"size": [5, 4], "counts": [20]}, (4, 4))


def annotate(*objects, image_id=7):
    return {"image_id": image_id, "annotations": [dict(zip(("bbox", "category_id"), pair)) for pair in objects]}


def test_annotations_become_labels_of_the_resized_image():
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 80, "longest_edge": 120})
    annotation = annotate(([10, 20, 30, 15], 2), ([0, 0, 100, 50], 0))
    annotation["annotations"][0].update(area=300, segmentation=[[10, 20, 40, 20, 40, 35, 10, 35]])
    annotation["annotations"][1]["segmentation"] = encode_mask(torch.ones(50, 100, dtype=torch.bool))
    batch = processor(make_image(50, 100), annotations=annotation, return_segmentation_masks=True, return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 60, 120) and batch.pixel_mask.shape == (1, 60, 120)
    [label] = batch["labels"]
    assert label["class_labels"].tolist() == [2, 0] and label["class_labels"].dtype == torch.int64
    torch.testing.assert_close(label["boxes"], torch.tensor([[0.25, 0.55, 0.3, 0.3], [0.5, 0.5, 1.0, 1.0]]))
    assert label["area"].tolist() == pytest.approx([300 * 1.44, 5000 * 1.44])
    assert label["orig_size"].tolist() == [50, 100] and label["size"].tolist() == [60, 120]
    assert label["image_id"].tolist() == [7] and label["iscrowd"].tolist() == [0, 0]
    expected = torch.zeros(60, 120, dtype=torch.bool)
    expected[24:42, 12:48] = True
    assert torch.equal(label["masks"][0], expected) and label["masks"][1].all()


def test_labels_of_padded_images_are_shares_of_the_images_themselves():
    processor = ClusTRDetectionImageProcessor(do_resize=False)
    annotations = [annotate(([10, 20, 30, 15], 2)), annotate(([10, 20, 30, 15], 2)), annotate()]
    for annotation in annotations[:2]:
        annotation["annotations"][0]["segmentation"] = [[10, 20, 40, 20, 40, 35, 10, 35]]
    images = [make_image(50, 100), make_image(80, 60), make_image(60, 60)]
    batch = processor(images, annotations=annotations, return_segmentation_masks=True, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 80, 100)
    assert batch.pixel_mask.sum(dim=(1, 2)).tolist() == [5000, 4800, 3600]
    first, second, empty = batch["labels"]
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.25, 0.55, 0.3, 0.3]]))
    torch.testing.assert_close(second["boxes"], torch.tensor([[25 / 60, 27.5 / 80, 30 / 60, 15 / 80]]))
    assert second["size"].tolist() == [80, 60]
    for label in (first, second):
        assert label["masks"].shape == (1, 80, 100) and label["masks"].sum() == 450
        assert label["masks"][0, 20:35, 10:40].all()
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 80, 100)
    assert empty["class_labels"].dtype == torch.int64


def test_crowds_and_boxes_without_area_are_left_out_with_their_masks():
    """Dropped objects between others: masks and boxes must be dropped consistently."""
    annotation = annotate(
        ([0, 0, 20, 20], 1),
        ([5, 5, 20, 20], 2),
        ([10, 10, 10, 0], 3),
        ([60, 10, 10, 10], 4),
        ([40, 30, 30, 30], 5),
    )
    kept = torch.zeros(40, 50, dtype=torch.bool)
    kept[30:, 40:] = True
    for row in annotation["annotations"]:
        row["segmentation"] = [[0, 0, 10, 0, 10, 10]]
    annotation["annotations"][1].update(iscrowd=1, segmentation=encode_mask(~kept))
    annotation["annotations"][4]["segmentation"] = coco_mask.frPyObjects(encode_mask(kept), 40, 50)
    processor = ClusTRDetectionImageProcessor(do_resize=False)
    [label] = processor(
        make_image(40, 50), annotations=annotation, return_segmentation_masks=True, return_tensors="pt"
    )["labels"]
    assert label["class_labels"].tolist() == [1, 5] and torch.equal(label["masks"][1], kept)
    torch.testing.assert_close(label["boxes"][1], torch.tensor([45 / 50, 35 / 40, 10 / 50, 10 / 40]))  # cut


def test_what_is_none_is_as_if_it_were_not_there():
    """Columns of a table have None for missing values; boxes that are flat in float32 are dropped with their masks."""
    annotation = annotate(([500.0, 10, 1e-6, 10], 1), ([20, 10, 20, 10], 2))
    for row in annotation["annotations"]:
        row.update(iscrowd=None, area=None, segmentation=encode_mask(torch.ones(40, 600, dtype=torch.bool)))
    [label] = ClusTRDetectionImageProcessor(do_resize=False)(
        make_image(40, 600), annotations=annotation, return_segmentation_masks=True, return_tensors="pt"
    )["labels"]
    assert label["class_labels"].tolist() == [2] and label["area"].tolist() == [200] and len(label["masks"]) == 1


def test_images_are_read_as_by_the_classifiers_processor(tmp_path):
    """A greyscale file with an EXIF rotation; boxes are those of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(40, 60).convert("L").save(tmp_path / "turned.jpg", exif=exif)
    batch = ClusTRDetectionImageProcessor(do_resize=False)(
        str(tmp_path / "turned.jpg"), annotations=annotate(([0, 0, 20, 30], 0)), return_tensors="pt"
    )
    assert batch.pixel_values.shape == (1, 3, 60, 40)
    torch.testing.assert_close(batch["labels"][0]["boxes"], torch.tensor([[0.25, 0.25, 0.5, 0.5]]))


def test_annotations_that_do_not_fit_are_named():
    processor, image = ClusTRDetectionImageProcessor(), make_image(40, 50)
    with pytest.raises(ValueError, match=r"number of images \(2\) and annotations \(1\) do not match"):
        processor([image, image], annotations=[annotate()], return_tensors="pt")
    for box in (
        *(None, [1, 2, 3], [1, 2, 3, NAN], [1, 2, -3, 4], 5, "1234", ["1", 2, 3, 4], [1, 2, 3, INFINITY], {}),
        *(
            [1, 2, 3, 1e200],
            [1, 2, 10**400, 4],
            np.ones(3),
            np.ones((2, 2)),
            [[1], [2], [3], [4]],
            torch.full((4,), NAN),
        ),
    ):
        with pytest.raises(ValueError, match=r"`annotations\[1\]\['bbox'\]` must be \(x, y, width, height\), got"):
            processor(image, annotations=annotate(([0, 0, 5, 5], 0), (box, 0)), return_tensors="pt")
    for category in (None, "cat", 1.5, NAN, np.float32(0.5), torch.tensor(1.5), -1, 2**70, [1], torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"`annotations\[0\]\['category_id'\]` must be the index of a class"):
            processor(image, annotations=annotate(([0, 0, 5, 5], category)), return_tensors="pt")
    for name, value in (("area", NAN), ("area", -1), ("area", "5"), ("iscrowd", 2), ("iscrowd", "0"), ("iscrowd", 0.5)):
        annotation = annotate(([0, 0, 5, 5], 0))
        annotation["annotations"][0][name] = value
        with pytest.raises(ValueError, match=rf"`annotations\[0\]\['{name}'\]` must be .*, got {value!r}"):
            processor(image, annotations=annotation, return_tensors="pt")
    annotation["annotations"] = [*annotate(([0, 0, 5, 5], 0))["annotations"], "cat"]
    with pytest.raises(ValueError, match=r"`annotations\[1\]` must be a dictionary, got 'cat'"):
        processor(image, annotations=annotation, return_tensors="pt")
    for image_id in ("0001", None, 1.5, [1], NAN):
        with pytest.raises(ValueError, match="`annotations` must have an integer as 'image_id', got"):
            processor(image, annotations=annotate(([0, 0, 5, 5], 0), image_id=image_id), return_tensors="pt")
    with pytest.raises(ValueError, match="`format` must be 'coco_detection'"):
        processor(
            image,
            annotations={"image_id": 1, "file_name": "x.png", "segments_info": []},
            format="coco_panoptic",
            masks_path=".",
        )


NOTHING = [None, "3", "", {}, NAN, INFINITY, 2**70, object(), 1 + 2j, b"x", np.array(None), [None], {"a": 1}]


@pytest.mark.parametrize("value", NOTHING, ids=lambda value: repr(value)[:20])
def test_annotations_of_another_form_are_named(value):
    processor, image = ClusTRDetectionImageProcessor(), make_image(40, 50)
    whole = annotate(([0, 0, 5, 5], 0))
    with pytest.raises(ValueError, match=r"`annotations(\[1\])?` must be a dictionary"):
        processor([image, image], annotations=[whole, value] if value is None else value)
    for wrong in (value, {"image_id": 1, "annotations": value}, {"annotations": []}, {"image_id": 1}):
        if wrong == value or value != [None]:
            with pytest.raises(ValueError, match=r"`annotations\[1\]` must be a dictionary with 'image_id' and"):
                processor([image, image], annotations=[whole, wrong])
    with pytest.raises(ValueError, match=r"image 7: `annotations\[1\]` must be a dictionary, got"):
        processor(image, annotations={"image_id": 7, "annotations": [*whole["annotations"], [value]]})


def test_the_image_and_the_annotation_are_named():
    processor, images = ClusTRDetectionImageProcessor(do_resize=False), [make_image(40, 50)] * 2
    annotations = [annotate(([0, 0, 5, 5], 0), image_id=7), annotate(([0, 0, 5, 5], 0), ([0, 0, -5, 5], 0), image_id=9)]
    with pytest.raises(ValueError, match=r"image 9: `annotations\[1\]\['bbox'\]` must be"):
        processor(images, annotations=annotations)
    annotations[1] = annotate(([60, 0, 5, 5], 0), ([0, 0, 5, 5], 0), image_id=9)  # the first one is dropped
    annotations[1]["annotations"][1]["segmentation"] = {"size": [40, 50], "counts": "0" * 100_000}
    with pytest.raises(ValueError, match=r"image 9: annotation 1: `annotations` must .* of 100000 characters"):
        processor(images, annotations=[annotate(image_id=7), annotations[1]], return_segmentation_masks=True)


@pytest.mark.parametrize("box", [[0, 0, 1e300, 1], [0, 0, 1e20, 1e20], [-1e30, 0, 1e30, 5], [2**25, 0, 1, 1]])
def test_boxes_larger_than_any_image_are_refused(box):
    """Their area would be infinite in float32, or their corners inaccurate."""
    with pytest.raises(ValueError, match=r"`annotations\[0\]\['bbox'\]` must be .*numbers of at most 16777216"):
        ClusTRDetectionImageProcessor()(make_image(40, 50), annotations=annotate((box, 0)))


def test_overlong_run_lengths_are_refused_before_they_are_decoded():
    """COCO's own functions accept them, with any number of empty runs."""
    mask = torch.zeros(40, 50, dtype=torch.bool)
    counts = coco_mask.frPyObjects(encode_mask(mask), 40, 50)["counts"].decode()
    assert not decode_segmentation({"size": [40, 50], "counts": counts + "0" * 100}, (40, 50)).any()
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"run lengths of 2000 pixels in total, got .* of 20000003 characters"):
        decode_segmentation({"size": [40, 50], "counts": counts + "0" * 20_000_000}, (40, 50))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def to_float32(value):
    return np.float32(value)


@pytest.mark.parametrize("convert", [float, np.int32, to_float32, np.array, torch.tensor], ids=lambda f: f.__name__)
def test_numbers_of_annotations_are_of_any_type(convert):
    """The formats of albumentations, and columns in numpy's or torch's format."""
    annotation = {
        "image_id": convert(7),
        "annotations": [
            {"bbox": [convert(v) for v in (10, 20, 30, 15)], "category_id": convert(1), "iscrowd": convert(0)},
            {"bbox": convert([0, 0, 50, 40]) if convert in (np.array, torch.tensor) else [0, 0, 50, 40]},
        ],
    }
    annotation["annotations"][1].update(category_id=convert(2), area=convert(1500))
    processor = ClusTRDetectionImageProcessor(do_resize=False)
    [label] = processor(make_image(40, 50), annotations=annotation, return_tensors="pt")["labels"]
    assert label["class_labels"].tolist() == [1, 2] and label["class_labels"].dtype == torch.int64
    torch.testing.assert_close(label["boxes"], torch.tensor([[0.5, 27.5 / 40, 0.6, 15 / 40], [0.5, 0.5, 1, 1]]))
    assert label["area"].tolist() == [450, 1500] and label["image_id"].tolist() == [7]


def test_saved_processors_are_found_by_their_name(tmp_path):
    ClusTRDetectionImageProcessor(size={"shortest_edge": 100, "longest_edge": 200}).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, do_pad=False)
    assert type(loaded) is ClusTRDetectionImageProcessor and not loaded.do_pad
    assert dict(loaded.size) == {"shortest_edge": 100, "longest_edge": 200}


def suppress_by_hand(scores, labels, boxes, threshold, nms_threshold, most):
    """Greedy suppression with loops: indices of candidates, best first."""
    kept = []
    for index in scores.argsort(descending=True).tolist():
        if scores[index] <= threshold or len(kept) == most:
            continue
        overlaps = (
            box_iou(boxes[index : index + 1], boxes[k : k + 1]).item() for k in kept if labels[k] == labels[index]
        )
        if all(overlap <= nms_threshold for overlap in overlaps):
            kept.append(index)
    return kept


@pytest.mark.parametrize("limits", [{}, {"nms_threshold": 0.2}, {"max_detections": 5}, {"threshold": 0.9}])
def test_detections_are_those_that_nothing_better_overlaps(limits):
    logits = torch.randn(2, 60, 3)
    pred_boxes = torch.cat([torch.rand(2, 60, 2), torch.rand(2, 60, 2) * 0.5 + 0.1], dim=-1)
    sizes = [(50, 100), (120, 80)]
    output = ClusTRDetectionOutput(logits=logits, pred_boxes=pred_boxes)
    found = ClusTRDetectionImageProcessor().post_process_object_detection(output, target_sizes=sizes, **limits)
    for index, (height, width) in enumerate(sizes):
        x, y, w, h = pred_boxes[index].unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1).clamp(0, 1)
        corners = (corners * torch.tensor([width, height, width, height])).repeat_interleave(3, dim=0)
        scores, labels = logits[index].sigmoid().flatten(), torch.arange(3).repeat(60)
        settings = {"threshold": 0.5, "nms_threshold": 0.5, "max_detections": 100, **limits}
        kept = suppress_by_hand(scores, labels, corners, *settings.values())
        assert 0 < len(kept) < 180
        torch.testing.assert_close(found[index]["scores"], scores[kept])
        assert torch.equal(found[index]["labels"], labels[kept])
        torch.testing.assert_close(found[index]["boxes"], corners[kept])


def test_each_level_has_its_own_candidates():
    """Two levels, the first with the better scores; the rest is padding."""
    logits = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.4, 9.0])[None, :, None]
    pred_boxes = torch.cat([torch.rand(1, 6, 2), torch.full((1, 6, 2), 1e-3)], dim=-1)
    output = ClusTRDetectionOutput(logits, pred_boxes=pred_boxes, level_sizes=torch.tensor([[3, 2]]))
    output.logits = logits
    [found] = ClusTRDetectionImageProcessor().post_process_object_detection(output, threshold=0.0, max_candidates=2)
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0, 0.5, 0.4]).sigmoid())
    assert found["boxes"].max() <= 1  # relative boxes, without target sizes


def rectangles(number, size, seed):
    """References with rectangular masks that do not overlap: one in each cell of a grid."""
    generator = np.random.default_rng(seed)
    boxes, cell = [], (size[0] // 3, size[1] // 3)
    for place in generator.permutation(9)[:number]:
        top, left = place // 3 * cell[0], place % 3 * cell[1]
        height, width = generator.integers(cell[0] // 2, cell[0]), generator.integers(cell[1] // 2, cell[1])
        boxes.append([left, top, left + width, top + height])
    masks = torch.zeros(number, *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    labels = generator.integers(0, 3, number).tolist()
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
        "labels": labels,
        "masks": [encode_mask(m) for m in masks],
    }


def as_output(labels, num_labels=3, with_masks=False):
    """Output of a model that knows the labels: exact boxes, full grids for rectangular masks."""
    number = max(len(label["boxes"]) for label in labels)
    logits, boxes = torch.full((len(labels), number, num_labels), -20.0), torch.zeros(len(labels), number, 4)
    for index, label in enumerate(labels):
        classes = label["class_labels"]
        logits[index, torch.arange(len(classes)), classes] = 4.0
        boxes[index, : len(classes)] = label["boxes"]
    if not with_masks:
        return ClusTRDetectionOutput(logits=logits, pred_boxes=boxes)
    return ClusTRInstanceSegmentationOutput(
        logits=logits, pred_boxes=boxes, pred_masks=torch.ones(len(labels), number, 28, 28)
    )


def to_annotations(references):
    return [
        {
            "image_id": index,
            "annotations": [
                {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": label, "segmentation": mask}
                for (x0, y0, x1, y1), label, mask in zip(
                    reference["boxes"].tolist(), reference["labels"], reference["masks"]
                )
            ],
        }
        for index, reference in enumerate(references)
    ]


@pytest.mark.parametrize("settings", [{"do_resize": False}, {"size": {"shortest_edge": 75, "longest_edge": 110}}])
def test_the_truth_as_prediction_is_perfect(settings):
    """Through resizing, padding, labels, post-processing and metric, for boxes and for masks."""
    sizes = [(120, 150), (200, 90), (60, 60), (90, 300)]
    references = [rectangles(number, size, seed) for seed, (number, size) in enumerate(zip((5, 0, 9, 3), sizes))]
    processor = ClusTRDetectionImageProcessor(**settings)
    batch = processor(
        [make_image(*size) for size in sizes], annotations=to_annotations(references), return_tensors="pt"
    )
    assert not batch.pixel_mask.bool().all()
    outputs = as_output(batch["labels"], with_masks=True)
    found = processor.post_process_object_detection(outputs, target_sizes=sizes)
    assert coco_average_precision(found, references)["ap"] == 1.0
    shifted = [{**record, "boxes": record["boxes"] * 1.1} for record in found]
    assert coco_average_precision(shifted, references)["ap"] < 0.9
    results = processor.post_process_instance_segmentation(outputs, target_sizes=sizes, return_coco_annotation=True)
    predictions = [
        {
            "scores": [segment["score"] for segment in result["segments_info"]],
            "labels": [segment["label_id"] for segment in result["segments_info"]],
            "masks": result["segmentation"],
        }
        for result in results
    ]
    assert coco_average_precision(predictions, references, iou_type="segm")["ap"] == 1.0


def test_masks_of_labels_are_the_truth_again():
    """Enlarged three times and padded, label masks are pasted and reduced to the original masks."""
    images, maps = shapes_on_ground(2, size=(90, 60))
    masks = [torch.stack([label_map == 1, label_map == 2]) for label_map in maps]
    annotations = [
        {
            "image_id": index,
            "annotations": [
                {"bbox": [0, 0, 60, 90], "category_id": category, "segmentation": encode_mask(mask)}
                for category, mask in enumerate(image_masks)
            ],
        }
        for index, image_masks in enumerate(masks)
    ]
    processor = ClusTRDetectionImageProcessor(
        size={"height": 270, "width": 180}, pad_size={"height": 300, "width": 320}
    )
    batch = processor(images, annotations=annotations, return_segmentation_masks=True, return_tensors="pt")
    for label, expected in zip(batch["labels"], masks):
        assert label["masks"].shape == (2, 300, 320) and not label["masks"][:, 270:].any()
        assert torch.equal(label["masks"][:, 1:270:3, 1:180:3], expected)


def true_grids(masks, boxes):
    """
    Targets of the mask head for masks (n, H, W) in boxes (n, 4), corners, as an output of the model. `mask_boxes` are
    shifted by half a pixel, as in the model's output.
    """
    grids = project_masks_on_boxes(masks, boxes, torch.arange(len(masks)), 28)
    height, width = masks.shape[-2:]
    logits = torch.linspace(5, 2, len(masks))[None, :, None]
    scale = torch.tensor([width, height, width, height])
    pred_boxes, mask_boxes = (box_convert(b, "xyxy", "cxcywh")[None] / scale for b in (boxes, boxes + 0.5))
    return ClusTRInstanceSegmentationOutput(
        logits=logits, pred_boxes=pred_boxes, pred_masks=grids[None], mask_boxes=mask_boxes
    )


def edges(masks):
    """Left, top, right and bottom edge (n, 4) of masks (n, H, W) in pixels."""
    columns, rows = masks.any(dim=1).float(), masks.any(dim=2).float()
    firsts = [sides.argmax(dim=1) for sides in (columns, rows)]
    lasts = [sides.shape[1] - sides.flip(1).argmax(dim=1) for sides in (columns, rows)]
    return torch.stack([*firsts, *lasts], dim=1).float()


def draw_objects(number, extents, size, kind, seed):
    """Rectangles or ellipses (n, H, W) of whole pixels within the extents, anywhere in an image of the size."""
    generator = np.random.default_rng(seed)
    masks = torch.zeros(number, *size, dtype=torch.bool)
    rows, columns = torch.meshgrid(*(torch.arange(extent) + 0.5 for extent in size), indexing="ij")
    for mask in masks:
        height, width = generator.integers(*extents, 2)
        top, left = generator.integers(0, size[0] - height), generator.integers(0, size[1] - width)
        y, x = (rows - top - height / 2) / (height / 2), (columns - left - width / 2) / (width / 2)
        mask[:] = (x**2 + y**2 <= 1) if kind == "ellipse" else (x.abs() < 1) & (y.abs() < 1)
    return masks


@pytest.mark.parametrize("kind", ["rectangle", "ellipse"])
@pytest.mark.parametrize("extents", [(3, 14), (14, 28), (28, 60), (60, 150)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1.25, 2.0])
def test_masks_have_no_edge_that_is_moved(kind, extents, scale):
    """
    Masks are resized as labels, converted to targets of the mask head and pasted at the original size: on average no
    edge is off by a tenth of a pixel. (At smaller scales, labels themselves are less accurate.)
    """
    size = (192, 208)
    masks = draw_objects(60, extents, size, kind, seed=extents[0])
    resized = tuple(round(scale * extent) for extent in size)
    labels = torch.nn.functional.interpolate(masks[None].float(), size=resized, mode="nearest-exact")[0]
    output = true_grids(labels, edges(masks) * scale)
    [found] = ClusTRDetectionImageProcessor().post_process_instance_segmentation(
        output, threshold=0.0, target_sizes=[size], return_binary_maps=True
    )
    bias = (edges(found["segmentation"]) - edges(masks)).mean(dim=0)
    assert bias.abs().max() < 0.1, bias
    overlap = (found["segmentation"] & masks).flatten(1).sum(1) / (found["segmentation"] | masks).flatten(1).sum(1)
    assert overlap.mean() > 0.97


def test_masks_of_boxes_that_are_a_little_off_keep_their_edges():
    """Boxes of a model are inaccurate: no side of a mask loses more than the box itself."""
    masks = draw_objects(300, (6, 60), (192, 208), "rectangle", seed=3)
    errors = 0.3 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    [found] = ClusTRDetectionImageProcessor().post_process_instance_segmentation(
        true_grids(masks, edges(masks) + errors), threshold=0.0, target_sizes=[(192, 208)], return_binary_maps=True
    )
    bias = (edges(found["segmentation"]) - edges(masks)).mean(dim=0)
    assert bias.abs().max() < 0.1, bias


def overlapping_output():
    """A square over a larger one with a lower score, and a small one below both that is hidden by the first."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.8, 0.8], [0.5, 0.5, 0.2, 0.2]])
    logits = torch.full((1, 3, 3), -20.0)
    logits[0, [0, 1, 2], [2, 1, 0]] = torch.tensor([3.0, 2.0, 1.0])
    return ClusTRInstanceSegmentationOutput(logits=logits, pred_boxes=boxes[None], pred_masks=torch.ones(1, 3, 28, 28))


def test_better_objects_lie_above_worse_ones():
    processor, output = ClusTRDetectionImageProcessor(), overlapping_output()
    [result] = processor.post_process_instance_segmentation(output, target_sizes=[(100, 200)])
    assert [(segment["id"], segment["label_id"]) for segment in result["segments_info"]] == [(0, 2), (1, 1)]
    assert result["segments_info"][0]["score"] == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-6)
    assert result["segments_info"][0]["box"] == pytest.approx([60, 30, 140, 70])
    segmentation = result["segmentation"]
    assert segmentation.shape == (100, 200) and segmentation.dtype == torch.int32
    assert segmentation[50, 100] == 0 and segmentation[20, 100] == 1 and segmentation[2, 2] == -1
    assert (segmentation == 0).sum() == 40 * 80 and (segmentation == 1).sum() == 80 * 160 - 40 * 80
    [strict] = processor.post_process_instance_segmentation(
        output, target_sizes=torch.tensor([[100, 200]]), overlap_mask_area_threshold=0.8
    )
    assert [segment["label_id"] for segment in strict["segments_info"]] == [2]  # a quarter of the second is hidden
    [maps] = processor.post_process_instance_segmentation(output, target_sizes=[(100, 200)], return_binary_maps=True)
    assert maps["segmentation"].shape == (3, 100, 200) and maps["segmentation"][:, 50, 100].all()
    [none] = processor.post_process_instance_segmentation(output, threshold=0.99, target_sizes=[(100, 200)])
    assert none["segments_info"] == [] and (none["segmentation"] == -1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_of_half_precision_are_taken(dtype):
    output = overlapping_output()
    half = ClusTRInstanceSegmentationOutput(**{name: value.to(dtype) for name, value in output.items()})
    processor = ClusTRDetectionImageProcessor()
    [found] = processor.post_process_object_detection(half, target_sizes=[(100, 200)])
    assert found["boxes"].dtype == torch.float32 and found["labels"].tolist() == [2, 1, 0]
    [result] = processor.post_process_instance_segmentation(half, target_sizes=[(100, 200)])
    assert (result["segmentation"] == 0).sum().item() == pytest.approx(40 * 80, rel=0.05)


def test_detections_of_a_model_are_not_suppressed_again():
    """Mask R-CNN has already limited their overlap and number by its configuration."""
    number = 130
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(1, number, 1)
    boxes[0, :, 0] += torch.arange(number) / 1000
    logits = torch.full((1, number, 2), -20.0)
    logits[..., 1] = torch.linspace(3, 1, number)
    processor = ClusTRDetectionImageProcessor()
    output = ClusTRInstanceSegmentationOutput(logits=logits, pred_boxes=boxes, pred_masks=torch.ones(1, number, 28, 28))
    [found] = processor.post_process_object_detection(output)
    assert len(found["scores"]) == number
    [fewer] = processor.post_process_object_detection(output, nms_threshold=0.9, max_detections=20)
    assert len(fewer["scores"]) < 20
    many = ClusTRInstanceSegmentationOutput(
        logits=logits.repeat(1, 10, 1), pred_boxes=boxes.repeat(1, 10, 1), pred_masks=torch.ones(1, 1300, 2, 2)
    )
    assert len(processor.post_process_object_detection(many)[0]["scores"]) == 1300
    [anchors] = processor.post_process_object_detection(ClusTRDetectionOutput(logits=logits, pred_boxes=boxes))
    assert len(anchors["scores"]) == 1


def test_outputs_that_do_not_fit_are_named():
    processor, output = ClusTRDetectionImageProcessor(), overlapping_output()
    with pytest.raises(ValueError, match="`target_sizes` must have one entry for each of the 1 images, got 2"):
        processor.post_process_object_detection(output, target_sizes=[(4, 4)] * 2)
    with pytest.raises(ValueError, match="`target_sizes` must give"):
        processor.post_process_instance_segmentation(output)
    with pytest.raises(ValueError, match="must not both be True"):
        processor.post_process_instance_segmentation(
            output, target_sizes=[(4, 4)], return_coco_annotation=True, return_binary_maps=True
        )
