"""Crops, targets and decoding, compared with loops and transformers' VitPose processor."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, VitPoseImageProcessor
from transformers.models.vitpose.image_processing_vitpose import box_to_center_and_scale

from clustr_hf import ClusTRPoseEstimatorOutput, ClusTRPoseImageProcessor
from clustr_hf.remote_code.image_processing_clustr_pose import (
    box_regions,
    crop_matrices,
    crop_persons,
    crop_to_image,
    decode_heatmaps,
    heatmap_targets,
    image_to_crop,
)


BOXES = [[[20.0, 10.0, 60.0, 100.0], [70.5, 30.25, 90.0, 40.0]], [[0.0, 0.0, 33.0, 99.0]]]


@pytest.fixture
def images():
    """Two smooth images of different sizes."""
    generator = np.random.default_rng(0)
    small = [generator.integers(0, 256, (9, 12, 3)), generator.integers(0, 256, (11, 6, 3))]
    sizes = [(160, 120), (60, 110)]
    return [Image.fromarray(a.astype(np.uint8)).resize(size, 3) for a, size in zip(small, sizes)]


def test_crops_are_those_of_vitpose(images):
    """VitPose's processor warps with scipy and rounds to 8 bits."""
    ours = ClusTRPoseImageProcessor()(images, boxes=BOXES, return_tensors="pt")["pixel_values"]
    theirs = VitPoseImageProcessor()(images, boxes=BOXES, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (3, 3, 256, 192) and ours.dtype == torch.float32
    # In VitPose's crops, a pixel between the image border and the black area is black.
    black = (torch.zeros(3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    is_beyond = ((theirs - black[:, None, None]).abs() < 1e-4).all(dim=1, keepdim=True)
    inside = (~is_beyond).expand_as(ours)
    assert inside.float().mean() > 0.5
    assert (ours - theirs)[inside].abs().max() < 1.05 / 255 / 0.224


def test_regions_are_those_of_vitpose():
    boxes = torch.tensor(BOXES[0])
    centers, extents = box_regions(boxes, (256, 192), 1.25)
    for box, center, extent in zip(boxes, centers, extents):
        expected_center, expected_scale = box_to_center_and_scale(box.numpy(), image_width=192, image_height=256)
        assert center.tolist() == pytest.approx(expected_center.tolist())
        assert extent.tolist() == pytest.approx((200 * expected_scale).tolist())


def test_crop_by_a_loop():
    """Bilinear sampling by hand, rotated, mirrored, and partly outside the image, where it is black."""
    image = torch.rand(2, 7, 9)
    centers, extents = torch.tensor([[4.0, 3.0], [8.0, 1.0]]), torch.tensor([[6.0, 8.0], [-5.0, 4.0]])
    rotations = torch.tensor([30.0, -75.0])
    crops = crop_persons(image, centers, extents, (5, 4), rotations)
    for crop, (cx, cy), (width, height), angle in zip(crops, centers.tolist(), extents.tolist(), rotations.tolist()):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for row in range(5):
            for column in range(4):
                u, v = (column / 3 - 0.5) * width, (row / 4 - 0.5) * height
                x, y = cx + cos * u - sin * v, cy + sin * u + cos * v
                expected = torch.zeros(2)
                for i in (math.floor(y), math.floor(y) + 1):
                    for j in (math.floor(x), math.floor(x) + 1):
                        if 0 <= i < 7 and 0 <= j < 9:
                            expected += (1 - abs(y - i)) * (1 - abs(x - j)) * image[:, i, j]
                torch.testing.assert_close(crop[:, row, column], expected, atol=1e-5, rtol=0)


def test_points_go_there_and_back_and_a_negative_width_mirrors():
    centers, extents = torch.tensor([[40.0, 30.0]]), torch.tensor([[20.0, 50.0]])
    points = torch.rand(1, 9, 2) * 60
    matrices = crop_matrices(centers, extents, (64, 48), torch.tensor([25.0]))
    there = image_to_crop(points, matrices)
    torch.testing.assert_close(crop_to_image(there, matrices), points)
    mirror = extents * torch.tensor([-1.0, 1.0])
    mirrored = image_to_crop(points, crop_matrices(centers, mirror, (64, 48)))
    straight = image_to_crop(points, crop_matrices(centers, extents, (64, 48)))
    torch.testing.assert_close(mirrored[..., 0], 47 - straight[..., 0])
    image = torch.rand(3, 60, 80)
    torch.testing.assert_close(
        crop_persons(image, centers, mirror, (64, 48)), crop_persons(image, centers, extents, (64, 48)).flip(-1)
    )


def test_targets_by_loops():
    points = torch.tensor([[[3.2, 4.7], [0.0, 0.0], [-3.0, 5.0], [20.0, 5.0], [5.0, 5.0]]])
    heatmaps, weights = heatmap_targets(points, torch.tensor([[True, True, True, True, False]]), (9, 8), 1.5)
    for keypoint, (x, y) in enumerate(points[0].tolist()):
        for row in range(9):
            for column in range(8):
                is_near = abs(row - y) < 4.5 and abs(column - x) < 4.5 and keypoint != 4
                expected = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * 1.5**2)) if is_near else 0.0
                assert heatmaps[0, keypoint, row, column].item() == pytest.approx(expected, abs=1e-6)
    assert weights.tolist() == [[1, 1, 1, 0, 0]]  # one outside whose heat is visible, one too far outside


@pytest.mark.parametrize("size, factor", [((256, 192), 4), ((384, 288), 4), ((64, 48), 2), ((96, 75), 4)])
def test_keypoints_come_back_from_their_heat_maps(size, factor):
    """Anywhere in the crop, including border and corners; the error is that of float32."""
    processor = ClusTRPoseImageProcessor(
        size={"height": size[0], "width": size[1]}, keypoint_heatmap_downscale_factor=factor
    )
    box = [300.0, 100.0, 150.0, 500.0]
    [center], [extent] = box_regions(torch.tensor([box]), size, 1.25)
    shares = torch.rand(300, 2)
    shares[:4] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    points = center + (shares - 0.5) * extent
    image = np.zeros((10, 10, 3), dtype=np.uint8)
    inputs = processor(image, boxes=[[box]], keypoints=[points[None]], return_tensors="pt")
    assert inputs["labels"].shape[2:] == tuple(math.ceil(side / factor) for side in size)
    assert inputs["label_weights"].eq(1).all()
    output = ClusTRPoseEstimatorOutput(heatmaps=inputs["labels"])
    [[person]] = processor.post_process_pose_estimation(output, [[box]])
    error = (person["keypoints"] - points) / extent * torch.tensor([size[1], size[0]])  # in pixels of the crop
    assert error.norm(dim=1).max() < 0.01
    assert person["bbox"].tolist() == [300, 100, 450, 600] and person["labels"].tolist() == list(range(300))


def test_decoding_agrees_with_vitpose_away_from_the_border():
    """VitPose's decoder (DARK) fits a parabola to blurred logarithms; both must find blobs that are not Gaussian."""
    boxes, number = [[[0.0, 0.0, 150.0, 200.0]]], 40
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    centers = torch.rand(number, 2) * torch.tensor([30.0, 46.0]) + 9
    squares = (columns - centers[:, 0, None, None]) ** 2 / 6 + (rows - centers[:, 1, None, None]) ** 2 / 9
    heatmaps = (0.7 * torch.exp(-squares / 2) + 0.1 * torch.exp(-squares / 8) + 0.01)[None]
    output = ClusTRPoseEstimatorOutput(heatmaps=heatmaps)
    [[ours]] = ClusTRPoseImageProcessor().post_process_pose_estimation(output, boxes)
    [[theirs]] = VitPoseImageProcessor().post_process_pose_estimation(output, boxes)
    pixel = 1.25 * 200 / 63
    assert (ours["keypoints"] - theirs["keypoints"]).abs().max() < 0.15 * pixel
    torch.testing.assert_close(ours["scores"], theirs["scores"])


def test_noise_moves_keypoints_by_less_than_half_a_pixel():
    points = torch.rand(8, 17, 2) * torch.tensor([47.0, 63.0])
    heatmaps, _ = heatmap_targets(points, torch.ones(8, 17, dtype=torch.bool), (64, 48), 2.0)
    found, scores = decode_heatmaps(0.8 * heatmaps + 0.02 * torch.randn_like(heatmaps))
    error = (found - points).norm(dim=-1)
    assert error.mean() < 0.06 and error.max() < 0.5
    assert ((scores - 0.8).abs() < 0.1).all()


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, float("nan")])
def test_heat_without_a_peak_gives_a_finite_point_in_the_map(value):
    points, scores = decode_heatmaps(torch.full((1, 2, 8, 6), value))
    assert points.isfinite().all() and ((points >= -1) & (points <= torch.tensor([6.0, 8.0]))).all()
    assert scores.eq(0.0 if value != value else value).all()


def test_a_threshold_drops_keypoints_and_the_flip_test_averages():
    processor, boxes = ClusTRPoseImageProcessor(), [[[0.0, 0.0, 30.0, 40.0]]]
    points = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]])
    heatmaps, _ = heatmap_targets(points, torch.ones(1, 2, dtype=torch.bool), (64, 48), 2.0)
    heatmaps[:, 1] *= 0.4
    output = ClusTRPoseEstimatorOutput(heatmaps=heatmaps)
    [[person]] = processor.post_process_pose_estimation(output, boxes, threshold=0.5)
    assert person["labels"].tolist() == [0] and person["keypoints"].shape == (1, 2)
    shifted, _ = heatmap_targets(points + 1, torch.ones(1, 2, dtype=torch.bool), (64, 48), 2.0)
    flipped = ClusTRPoseEstimatorOutput(heatmaps=shifted)
    [[averaged]] = processor.post_process_pose_estimation(output, boxes, flipped)
    assert averaged["scores"][0] < 1
    [center], [extent] = box_regions(torch.tensor(boxes[0]), (256, 192), 1.25)
    expected = center + ((points[0, 0] + 0.5) / torch.tensor([47.0, 63.0]) - 0.5) * extent
    torch.testing.assert_close(averaged["keypoints"][0], expected, atol=0.05, rtol=0)


def test_boxes_outside_the_image_are_black_and_their_keypoints_come_back(images):
    processor, boxes = ClusTRPoseImageProcessor(), [[[-500.0, -500.0, 40.0, 80.0], [1000.0, 20.0, 30.0, 30.0]]]
    keypoints = np.array([[[-480.0, -470.0, 1], [10, 10, 2]], [[1010, 30, 1], [1012, 0, 0]]])
    inputs = processor(images[0], boxes=boxes, keypoints=[keypoints], return_tensors="pt")
    black = (0 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(inputs["pixel_values"], black[:, None, None].expand(2, -1, 256, 192))
    assert inputs["label_weights"].tolist() == [[1, 0], [1, 0]]  # one outside the crop, one without annotation
    found = processor.post_process_pose_estimation(ClusTRPoseEstimatorOutput(heatmaps=inputs["labels"]), boxes)
    for person, expected in zip(found[0], keypoints[:, 0, :2]):
        assert person["keypoints"][0].tolist() == pytest.approx(expected.tolist(), abs=0.05)
        assert person["keypoints"].isfinite().all()


def test_images_without_persons_among_others(images):
    inputs = ClusTRPoseImageProcessor()(
        images, boxes=[[], BOXES[1]], keypoints=[[], np.ones((1, 5, 3))], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 256, 192) and inputs["labels"].shape == (1, 5, 64, 48)
    output = ClusTRPoseEstimatorOutput(heatmaps=inputs["labels"])
    nobody, persons = ClusTRPoseImageProcessor().post_process_pose_estimation(output, [[], BOXES[1]])
    assert nobody == [] and len(persons) == 1
    nothing = ClusTRPoseImageProcessor()(images, boxes=[[], []], keypoints=[[], []], return_tensors="pt")
    assert len(nothing["pixel_values"]) == len(nothing["labels"]) == len(nothing["label_weights"]) == 0


def test_without_boxes_an_image_is_a_person(images):
    processor = ClusTRPoseImageProcessor()
    boxes = [[[0, 0, *image.size]] for image in images]
    expected = processor(images, boxes=boxes, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images, return_tensors="pt")["pixel_values"], expected)


def test_boxes_are_in_the_pixels_of_the_upright_image(images):
    turned = images[0].transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # rotated clockwise by 90 degrees
    processor = ClusTRPoseImageProcessor()
    expected = processor(images[0], boxes=BOXES[:1], return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(turned, boxes=BOXES[:1], return_tensors="pt")["pixel_values"], expected)


def test_settings_are_saved_and_can_be_changed_in_a_call(tmp_path, images):
    settings = {"size": {"height": 64, "width": 48}, "padding_factor": 1.5, "keypoint_heatmap_sigma": 1.0}
    ClusTRPoseImageProcessor(keypoint_heatmap_downscale_factor=2, **settings).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is ClusTRPoseImageProcessor
    inputs = processor(images, boxes=BOXES, keypoints=[np.ones((2, 3, 3)), np.ones((1, 3, 3))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, 64, 48) and inputs["labels"].shape == (3, 3, 32, 24)
    changed = ClusTRPoseImageProcessor()(images, boxes=BOXES, do_normalize=False, return_tensors="np", **settings)
    assert changed["pixel_values"].shape == (3, 3, 64, 48) and isinstance(changed["pixel_values"], np.ndarray)
    assert changed["pixel_values"].min() >= 0 and 0.5 < changed["pixel_values"].max() < 1.001


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"boxes": BOXES[:1]}, "`boxes` must have one list for each of the 2 images, got 1"),
        ({"boxes": [[[1, 2, 3]], []]}, r"`boxes\[0\]` must have shape \(n, 4\).*, got \(1, 3\)"),
        ({"boxes": [[], [1.0, 2.0, 3.0, 4.0]]}, r"`boxes\[1\]` must have shape \(n, 4\).*, got \(4,\)"),
        (
            {"boxes": [[[1, 2, 0, 4]], []]},
            r"`boxes\[0\]` must be finite, .* a positive width.*\[1.0, 2.0, 0.0, 4.0\]",
        ),
        ({"boxes": [[], [[1, 2, float("nan"), 4]]]}, r"`boxes\[1\]` must be finite"),
        ({"boxes": [[["1", 2, 3, 4]], []]}, r"`boxes\[0\]` must be an array of numbers, got \[\['1'"),
        ({"boxes": [[[1, 2, None, 4]], []]}, r"`boxes\[0\]` must be an array of numbers, got \[\[1, 2, None"),
        ({"boxes": [None, []]}, r"`boxes\[0\]` must be an array of numbers, got None"),
        ({"boxes": np.array(None)}, "`boxes` must have one list for each image, got array"),
        ({"boxes": torch.tensor(3)}, "`boxes` must have one list for each image, got tensor"),
        ({"boxes": "ab"}, "`boxes` must have one list for each image, got 'ab'"),
        (
            {"boxes": [[[1, 2, 1e300, 4]], []]},
            r"`boxes\[0\]` must be finite, at most 16777216, .* got .* at index 0",
        ),
        ({"boxes": [[[1, 2, 3, 4], [1e30, 2, 3, 4]], []]}, r"`boxes\[0\]` must be finite, .* at index 1"),
        (
            {"keypoints": [np.full((2, 3, 3), 1e38), np.ones((1, 3, 3))]},
            r"`keypoints\[0\]` must be finite .* 16777216",
        ),
        ({"keypoints": [np.full((2, 3, 3), "1"), np.ones((1, 3, 3))]}, r"`keypoints\[0\]` must be an array of numbers"),
        ({"keypoints": torch.tensor(3)}, "`keypoints` must have one list for each of the 2 images, got tensor"),
        ({"boxes": [[["a", 2, 3, 4]], []]}, r"`boxes\[0\]` must be an array of numbers, got \[\['a'"),
        ({"boxes": [[[1, 2, 3, 4], [1, 2]], []]}, r"`boxes\[0\]` must be an array of numbers"),
        ({"keypoints": [np.ones((2, 3, 3))]}, "`keypoints` must have one list for each of the 2 images, got 1"),
        (
            {"keypoints": [np.ones((1, 3, 3)), np.ones((1, 3, 3))]},
            r"`keypoints\[0\]` must have shape \(2, K, 3\), .* got \(1, 3, 3\)",
        ),
        ({"keypoints": [np.ones((2, 3, 4)), np.ones((1, 3, 4))]}, r"`keypoints\[0\]` must have shape"),
        ({"keypoints": [np.ones((2, 3, 3)), np.ones((1, 4, 3))]}, r"`keypoints` must have the same K .* got \[3, 4\]"),
        ({"keypoints": [np.full((2, 3, 3), np.nan), np.ones((1, 3, 3))]}, r"`keypoints\[0\]` must be finite"),
        ({"boxes": 5}, "`boxes` must have one list for each image, got 5"),
        ({"keypoints": 5}, "`keypoints` must have one list for each of the 2 images, got 5"),
        ({"keypoints": [None, np.ones((1, 3, 3))]}, r"`keypoints\[0\]` must have shape \(2, K, 3\)"),
        ({"padding_factor": 0.0}, "`padding_factor` must be positive, got 0.0"),
        ({"padding_factor": -1.0}, "`padding_factor` must be positive, got -1.0"),
        (
            {"keypoint_heatmap_downscale_factor": 0, "keypoints": [np.ones((2, 3, 3)), np.ones((1, 3, 3))]},
            "`keypoint_heatmap_downscale_factor` must be positive, got 0",
        ),
        (
            {"keypoint_heatmap_sigma": 0.0, "keypoints": [np.ones((2, 3, 3)), np.ones((1, 3, 3))]},
            "`keypoint_heatmap_sigma` must be positive, got 0.0",
        ),
        ({"size": {"height": -4, "width": 8}}, "`size` must have a positive height and width, got"),
        ({"size": {"shortest_edge": 64}}, "`size` must have a positive height and width, got"),
    ],
)
def test_wrong_inputs_are_named(images, changes, message):
    with pytest.raises(ValueError, match=message):
        ClusTRPoseImageProcessor()(images, **{"boxes": BOXES, **changes})


@pytest.mark.parametrize(
    "heatmaps, flipped, boxes, message",
    [
        ((2, 5, 64, 48), None, BOXES, "`boxes` must have one box for each of the 2 heatmaps, got 3"),
        ((5, 64, 48), None, BOXES, r"`outputs.heatmaps` must have shape \(B, K, h, w\), got \(5, 64, 48\)"),
        ((3, 5, 64, 48), (3, 4, 64, 48), BOXES, r"`outputs_flipped` .* \(3, 5, 64, 48\).* got \(3, 4, 64, 48\)"),
        ((3, 5, 64, 48), None, None, "`boxes` must have one list for each image, got None"),
    ],
)
def test_wrong_heat_maps_are_named(heatmaps, flipped, boxes, message):
    output = ClusTRPoseEstimatorOutput(heatmaps=torch.zeros(heatmaps))
    other = None if flipped is None else ClusTRPoseEstimatorOutput(heatmaps=torch.zeros(flipped))
    with pytest.raises(ValueError, match=message):
        ClusTRPoseImageProcessor().post_process_pose_estimation(output, boxes, other)


def test_other_settings_of_a_call_go_both_ways():
    keypoints = np.array([[[3050.0, 2100.0, 1.0]]])
    box, settings = [[[3000.0, 2000.0, 100.0, 300.0]]], {"padding_factor": 2.0, "size": {"height": 96, "width": 96}}
    processor, image = ClusTRPoseImageProcessor(), np.zeros((8, 8, 3), dtype=np.uint8)
    labels = processor(image, boxes=box, keypoints=[keypoints], return_tensors="pt", **settings)["labels"]
    output = ClusTRPoseEstimatorOutput(heatmaps=labels)
    [[person]] = processor.post_process_pose_estimation(output, box, **settings)
    assert person["keypoints"].tolist() == [pytest.approx([3050, 2100], abs=0.01)]


def test_a_persons_score_is_that_of_the_keypoints_that_are_seen():
    heatmaps = torch.zeros(2, 3, 64, 48)
    heatmaps[0, :, 5, 5] = torch.tensor([0.9, 0.1, 0.5])
    output = ClusTRPoseEstimatorOutput(heatmaps=heatmaps)
    [persons] = ClusTRPoseImageProcessor().post_process_pose_estimation(output, BOXES[:1], threshold=0.6)
    assert [person["score"].item() for person in persons] == pytest.approx([0.7, 0.0])


def test_autocast_moves_nothing():
    processor, image = ClusTRPoseImageProcessor(), torch.rand(3, 40, 60)
    keypoints, boxes = [np.array([[[3050.0, 20.0, 1.0]]])], [[[3000.0, 5.0, 100.0, 30.0]]]
    inside = [[[5.0, 5.0, 40.0, 30.0]]]
    expected = processor(image, boxes=inside, do_rescale=False, return_tensors="pt")["pixel_values"]
    with torch.autocast("cpu", torch.bfloat16):
        found = processor(image, boxes=inside, do_rescale=False, return_tensors="pt")["pixel_values"]
        labels = processor(image, boxes=boxes, keypoints=keypoints, do_rescale=False, return_tensors="pt")["labels"]
        output = ClusTRPoseEstimatorOutput(heatmaps=labels)
        [[person]] = processor.post_process_pose_estimation(output, boxes)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert person["keypoints"].tolist() == [pytest.approx([3050, 20], abs=0.01)]


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0, 8.0, 15.0])
def test_gaussians_of_any_width_are_decoded(sigma):
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    centers = torch.rand(100, 2) * torch.tensor([47.0, 63.0])
    squares = (columns - centers[:, 0, None, None]) ** 2 + (rows - centers[:, 1, None, None]) ** 2
    points, _ = decode_heatmaps(torch.exp(-squares / (2 * sigma**2))[None])
    assert (points[0] - centers).norm(dim=1).max() < 0.01


def test_half_precision_heat_maps_are_decoded():
    points = torch.rand(2, 17, 2) * torch.tensor([47.0, 63.0])
    heatmaps, _ = heatmap_targets(points, torch.ones(2, 17, dtype=torch.bool), (64, 48), 2.0)
    found, _ = decode_heatmaps(heatmaps.bfloat16())
    assert found.dtype == torch.float32 and (found - points).norm(dim=-1).max() < 0.1
