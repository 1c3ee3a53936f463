# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""ClusTR for Hugging Face transformers: the public names, and the registration of all Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from .clustering_clustr import aggregate_tokens, find_clusters
from .configuration_clustr import ClusTRConfig
from .image_processing_clustr import ClusTRImageProcessor
from .modeling_clustr import (
    ClusTRBackbone,
    ClusTRForImageClassification,
    ClusTRImageClassifierOutput,
    ClusTRModel,
    ClusTRModelOutput,
    ClusTRPreTrainedModel,
)
from .modeling_clustr_segmentation import ClusTRForSemanticSegmentation, ClusTRSemanticSegmenterOutput


__version__ = "0.1.0"

AutoConfig.register(ClusTRConfig.model_type, ClusTRConfig, exist_ok=True)
AutoModel.register(ClusTRConfig, ClusTRModel, exist_ok=True)
AutoBackbone.register(ClusTRConfig, ClusTRBackbone, exist_ok=True)
AutoModelForImageClassification.register(ClusTRConfig, ClusTRForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(ClusTRConfig, ClusTRForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(ClusTRConfig, image_processor_classes={"torchvision": ClusTRImageProcessor}, exist_ok=True)

__all__ = [
    "ClusTRBackbone",
    "ClusTRConfig",
    "ClusTRForImageClassification",
    "ClusTRForSemanticSegmentation",
    "ClusTRImageClassifierOutput",
    "ClusTRImageProcessor",
    "ClusTRModel",
    "ClusTRModelOutput",
    "ClusTRPreTrainedModel",
    "ClusTRSemanticSegmenterOutput",
    "aggregate_tokens",
    "find_clusters",
]
