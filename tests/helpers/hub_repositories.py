"""A small model and its processor for each task; outputs differ between images, places and classes."""

import torch
from PIL import Image

from clustr_hf import (
    ClusTRConfig,
    ClusTRDetectionImageProcessor,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
    ClusTRForPoseEstimation,
    ClusTRForSemanticSegmentation,
    ClusTRImageProcessor,
    ClusTRModel,
    ClusTRPoseImageProcessor,
)
from clustr_hf.keypoints import COCO


NAMES = {0: "cat", 1: "dog", 2: "owl"}
LABELS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
MODEL_CLASSES = {
    "classification": ClusTRForImageClassification,
    "semantic_fpn": ClusTRForSemanticSegmentation,
    "upernet": ClusTRForSemanticSegmentation,
    "detection": ClusTRForObjectDetection,
    "instances": ClusTRForInstanceSegmentation,
    "poses": ClusTRForPoseEstimation,
    "features": ClusTRModel,
}
# Task of each kind, as Inference Endpoints and widgets name it.
PIPELINES = {
    "classification": "image-classification",
    "semantic_fpn": "image-segmentation",
    "upernet": "image-segmentation",
    "detection": "object-detection",
    "instances": "image-segmentation",
    "poses": "keypoint-detection",
    "features": "image-feature-extraction",
}


def make_model(kind: str):
    """A model of a kind, one of `MODEL_CLASSES`, and its processor."""
    torch.manual_seed(0)
    fields = COCO.config_fields() if kind == "poses" else LABELS
    if kind in ("semantic_fpn", "upernet"):
        fields = {**fields, "segmentation_head": kind}
    model = MODEL_CLASSES[kind](ClusTRConfig.from_variant("nano", **fields)).eval()
    if kind != "features":
        enlarge_weights([w for name, w in model.named_parameters() if "clustr." not in name and "backbone" not in name])
    return model, make_processor(kind)


@torch.no_grad()
def enlarge_weights(parameters):
    """Make the weights of a new head larger, so that its outputs differ between places and classes."""
    for weight in parameters:
        if weight.ndim > 1:
            weight.normal_(std=(2 / weight[0].numel()) ** 0.5)


def make_processor(kind: str):
    if kind == "poses":
        return ClusTRPoseImageProcessor(size={"height": 64, "width": 48}, keypoint_heatmap_downscale_factor=2)
    if kind in ("detection", "instances"):
        return ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 100})
    if kind in ("semantic_fpn", "upernet"):
        return ClusTRImageProcessor(do_center_crop=False, size={"shortest_edge": 64})
    return ClusTRImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})


def make_image(size=(120, 90)) -> Image.Image:
    """A picture (width, height) that has structure everywhere."""
    channels = [Image.effect_mandelbrot(size, (-3 + shift, -2.5, 2, 2.5), 100) for shift in (0, 0.4, 0.8)]
    return Image.merge("RGB", channels)
