# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""ClusTR for Hugging Face transformers: public names; registers the models with the Auto classes and pipelines."""

from .remote_code.versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

from transformers import (
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForPoseEstimation,
    AutoModelForSemanticSegmentation,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from . import remote_code
from .bundled import bundled_checkpoint, shipped_checkpoint
from .module_aliases import add_aliases
from .remote_code.clustering_clustr import aggregate_tokens, find_clusters
from .remote_code.configuration_clustr import ClusTRConfig
from .remote_code.image_processing_clustr import ClusTRImageProcessor
from .remote_code.image_processing_clustr_detection import ClusTRDetectionImageProcessor
from .remote_code.image_processing_clustr_pose import ClusTRPoseImageProcessor
from .remote_code.modeling_clustr import (
    ClusTRBackbone,
    ClusTRForImageClassification,
    ClusTRImageClassifierOutput,
    ClusTRModel,
    ClusTRModelOutput,
    ClusTRPreTrainedModel,
)
from .remote_code.modeling_clustr_mask_rcnn import ClusTRForInstanceSegmentation, ClusTRInstanceSegmentationOutput
from .remote_code.modeling_clustr_pose import ClusTRForPoseEstimation, ClusTRPoseEstimatorOutput
from .remote_code.modeling_clustr_retinanet import ClusTRDetectionOutput, ClusTRForObjectDetection
from .remote_code.modeling_clustr_segmentation import ClusTRForSemanticSegmentation, ClusTRSemanticSegmenterOutput
from .remote_code.pipeline_clustr_pose import ClusTRKeypointDetectionPipeline


__version__ = "0.1.0"

add_aliases(__name__, remote_code.__name__)
# Names that `clustr_hf.modeling_clustr_detection` had in earlier releases.
for _class in (
    ClusTRDetectionOutput,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
    ClusTRInstanceSegmentationOutput,
):
    setattr(remote_code.modeling_clustr_detection, _class.__name__, _class)

AutoConfig.register(ClusTRConfig.model_type, ClusTRConfig, exist_ok=True)
AutoModel.register(ClusTRConfig, ClusTRModel, exist_ok=True)
AutoBackbone.register(ClusTRConfig, ClusTRBackbone, exist_ok=True)
AutoModelForImageClassification.register(ClusTRConfig, ClusTRForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(ClusTRConfig, ClusTRForSemanticSegmentation, exist_ok=True)
AutoModelForObjectDetection.register(ClusTRConfig, ClusTRForObjectDetection, exist_ok=True)
AutoModelForInstanceSegmentation.register(ClusTRConfig, ClusTRForInstanceSegmentation, exist_ok=True)
AutoModelForPoseEstimation.register(ClusTRConfig, ClusTRForPoseEstimation, exist_ok=True)
# The image-segmentation pipeline tries this mapping first and loads the class that the checkpoint names.
MODEL_FOR_IMAGE_SEGMENTATION_MAPPING.register(
    ClusTRConfig, (ClusTRForSemanticSegmentation, ClusTRForInstanceSegmentation), exist_ok=True
)
AutoImageProcessor.register(ClusTRConfig, image_processor_classes={"torchvision": ClusTRImageProcessor}, exist_ok=True)
# Other processors of the same configuration: a saved processor is found by its name among all registered classes.
for _processor in (ClusTRDetectionImageProcessor, ClusTRPoseImageProcessor):
    AutoImageProcessor.register(_processor, image_processor_classes={"torchvision": _processor}, exist_ok=True)
# Registers that ClusTR has no video processor: otherwise pipelines look for one in the checkpoint's `auto_map` and ask
# for permission to run its code.
AutoVideoProcessor.register(ClusTRConfig, None, exist_ok=True)
if "keypoint-detection" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "keypoint-detection", ClusTRKeypointDetectionPipeline, pt_model=AutoModelForPoseEstimation
    )

__all__ = [
    "ClusTRBackbone",
    "ClusTRConfig",
    "ClusTRDetectionImageProcessor",
    "ClusTRDetectionOutput",
    "ClusTRForImageClassification",
    "ClusTRForInstanceSegmentation",
    "ClusTRForObjectDetection",
    "ClusTRForPoseEstimation",
    "ClusTRForSemanticSegmentation",
    "ClusTRImageClassifierOutput",
    "ClusTRImageProcessor",
    "ClusTRInstanceSegmentationOutput",
    "ClusTRKeypointDetectionPipeline",
    "ClusTRModel",
    "ClusTRModelOutput",
    "ClusTRPoseEstimatorOutput",
    "ClusTRPoseImageProcessor",
    "ClusTRPreTrainedModel",
    "ClusTRSemanticSegmenterOutput",
    "aggregate_tokens",
    "bundled_checkpoint",
    "find_clusters",
    "shipped_checkpoint",
]
