"""Processors, post-processing, pictures and requests are the same under another default device of torch."""

import base64
import io

import numpy as np
import pytest
import torch
from hub_repositories import PIPELINES, make_image, make_model
from transformers import pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput

from clustr_hf import ClusTRConfig, ClusTRKeypointDetectionPipeline
from clustr_hf.keypoints import COCO
from clustr_hf.remote_code.handler_clustr import read_image
from clustr_hf.remote_code.image_processing_clustr_pose import crop_persons, heatmap_targets
from clustr_hf.remote_code.modeling_clustr_pose import ClusTRPoseEstimatorOutput
from clustr_hf.visualization import draw_answers, draw_keypoints, prepare_image


BOXES = [[[10.0, 10.0, 50.0, 60.0], [60.0, 5.0, 40.0, 80.0]], []]


@pytest.fixture(params=["classification", "semantic_fpn", "poses"])
def kind(request):
    return request.param


def assert_equal(found, expected):
    """Also in where the tensors are."""
    if isinstance(expected, torch.Tensor):
        assert found.device == expected.device and torch.equal(found, expected)
    elif hasattr(expected, "items"):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected):
            assert_equal(*pair)
    else:
        assert found == expected


def under_meta(function):
    """What it returns as it is, and where tensors without a stated device hold nothing."""
    expected = function()
    with torch.device("meta"):
        assert torch.zeros(1).device.type == "meta"
        found = function()
    return found, expected


def test_images_are_processed_alike(kind):
    _, processor = make_model(kind)
    extra = {}
    if kind == "semantic_fpn":
        extra = {"segmentation_maps": [np.zeros((90, 120), dtype=np.uint8), np.ones((120, 90), dtype=np.int64)]}
    if kind == "poses":
        extra = {"boxes": BOXES, "keypoints": [np.full((2, 17, 2), 20.0), np.zeros((0, 17, 3))]}
    images = [make_image(), np.asarray(make_image((90, 120)))]
    for given in (images, [torch.from_numpy(np.array(image)) for image in images]):
        assert_equal(*under_meta(lambda given=given: dict(processor(given, return_tensors="pt", **extra))))
    assert_equal(*under_meta(lambda: dict(processor(images[0], return_tensors="pt"))))


def test_no_persons_are_processed_alike():
    _, processor = make_model("poses")
    keypoints = [np.zeros((0, 17, 3))]
    assert_equal(*under_meta(lambda: dict(processor(make_image(), [[]], keypoints, return_tensors="pt"))))


def test_logits_become_maps_alike():
    _, processor = make_model("semantic_fpn")
    outputs = SemanticSegmenterOutput(logits=torch.randn(2, 11, 9, 12))
    for sizes in (None, [(40, 50), (30, 20)]):
        assert_equal(*under_meta(lambda sizes=sizes: processor.post_process_semantic_segmentation(outputs, sizes)))


def test_heat_maps_become_keypoints_alike():
    _, processor = make_model("poses")
    outputs = ClusTRPoseEstimatorOutput(heatmaps=torch.rand(2, 17, 32, 24))
    for settings in ({}, {"threshold": 0.5, "outputs_flipped": outputs}):
        assert_equal(
            *under_meta(lambda settings=settings: processor.post_process_pose_estimation(outputs, BOXES, **settings))
        )


def test_training_crops_and_targets_are_alike():
    image, centers, extents = torch.rand(3, 40, 50), torch.tensor([[20.0, 15.0]]), torch.tensor([[30.0, 40.0]])
    assert_equal(*under_meta(lambda: crop_persons(image, centers, extents, (16, 12), torch.zeros(1, device="cpu"))))
    visible = torch.ones(1, 1, dtype=torch.bool)
    assert_equal(*under_meta(lambda: heatmap_targets(centers[None], visible, (16, 12), 2.0)))


def test_requests_are_read_alike(kind):
    _, processor = make_model(kind)
    buffer = io.BytesIO()
    make_image().save(buffer, "PNG")
    for request in (buffer.getvalue(), base64.b64encode(buffer.getvalue()).decode()):
        found, expected = under_meta(lambda request=request: read_image(request, processor))
        np.testing.assert_array_equal(found, expected)


def test_the_pose_pipeline_prepares_and_answers_alike():
    model, processor = make_model("poses")
    estimate = ClusTRKeypointDetectionPipeline(model=model, image_processor=processor)
    inputs = {"image": make_image(), "boxes": BOXES[0]}
    assert_equal(*under_meta(lambda: estimate.preprocess(inputs)))
    outputs = estimate.forward(estimate.preprocess(inputs))
    assert_equal(*under_meta(lambda: estimate.postprocess(outputs)))


def test_pictures_are_drawn_alike(kind):
    model, processor = make_model(kind)
    image = make_image()
    found, expected = under_meta(lambda: prepare_image(image, processor, 64)[1])
    assert torch.equal(found, expected)
    if kind != "classification":
        answers = pipeline(PIPELINES[kind], model=model, image_processor=processor)(image)
        np.testing.assert_array_equal(*under_meta(lambda: draw_answers(image, answers, model.config)))


def test_boxes_masks_and_points_are_drawn_alike():
    image, config = make_image(), ClusTRConfig(num_labels=2)
    box = {"xmin": 5, "ymin": 6, "xmax": 50, "ymax": 60}
    mask = np.zeros((90, 120), dtype=np.uint8)
    mask[10:40, 20:60] = 255
    for part in ({"box": box}, {"mask": mask}):
        answers = [{"label": "LABEL_1", "score": 0.5, **part}]
        np.testing.assert_array_equal(*under_meta(lambda answers=answers: draw_answers(image, answers, config)))
    points, scores = np.full((1, 17, 2), 30.0), np.ones((1, 17))
    fields = COCO.config_fields()
    names, edges = list(fields["id2label"].values()), fields["edges"]
    np.testing.assert_array_equal(*under_meta(lambda: draw_keypoints(image, points, names, edges, scores)))
