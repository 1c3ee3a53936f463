# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
What the conversion knows of the models that it converts: PVTv2 (Wang et al. 2022) and SegFormer (Xie et al. 2021).

Both have the stages, blocks and feed-forward networks of ClusTR under other names, and the attention of
[`ClusTRSpatialReductionAttention`].
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PvtV2Backbone,
    PvtV2ForImageClassification,
    PvtV2Model,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from ..remote_code.modeling_clustr import ClusTRBackbone, ClusTRForImageClassification, ClusTRModel
from ..remote_code.modeling_clustr_segmentation import ClusTRForSemanticSegmentation


class Family(NamedTuple):
    """
    Names in the source models of a kind.

    Args:
        prefix (`str`): Prefix of the backbone in models with a head.
        stage (`str`): Name of a stage, with the index of the stage.
        modules (`Mapping[str, str]`): Name of a module of a stage -> its name in ClusTR.
        block_modules (`Mapping[str, str]`): The same for the modules of a block.
        classes (`Mapping[type, type]`): Class of a source -> class of ClusTR.
    """

    prefix: str
    stage: str
    modules: Mapping[str, str]
    block_modules: Mapping[str, str]
    classes: Mapping[type[PreTrainedModel], type[PreTrainedModel]]


# Modules that ClusTR has under another structure: `grid_backbones.py` puts them together.
KEY, VALUE = "attention.k_proj", "attention.v_proj"
REDUCTION, REDUCTION_NORM = "attention.reduction", "attention.reduction_layer_norm"

FAMILIES = {
    "pvt_v2": Family(
        prefix="pvt_v2",
        stage="encoder.layers.{stage}",
        modules={
            "patch_embedding.proj": "embeddings.projection",
            "patch_embedding.layer_norm": "embeddings.layer_norm",
            "layer_norm": "layer_norm",
        },
        block_modules={
            "layer_norm_1": "layer_norm_before",
            "attention.query": "attention.q_proj",
            "attention.key": KEY,
            "attention.value": VALUE,
            "attention.spatial_reduction": REDUCTION,
            "attention.layer_norm": REDUCTION_NORM,
            "attention.proj": "attention.o_proj",
            "layer_norm_2": "layer_norm_after",
            "mlp.dense1": "mlp.fc1",
            "mlp.dwconv.dwconv": "mlp.depthwise",
            "mlp.dense2": "mlp.fc2",
        },
        classes={
            PvtV2ForImageClassification: ClusTRForImageClassification,
            PvtV2Backbone: ClusTRBackbone,
            PvtV2Model: ClusTRModel,
        },
    ),
    "segformer": Family(
        prefix="segformer",
        stage="stages.{stage}",
        modules={
            "patch_embeddings.proj": "embeddings.projection",
            "patch_embeddings.layer_norm": "embeddings.layer_norm",
            "layer_norm": "layer_norm",
        },
        block_modules={
            "layernorm_before": "layer_norm_before",
            "attention.q_proj": "attention.q_proj",
            "attention.k_proj": KEY,
            "attention.v_proj": VALUE,
            "attention.sequence_reduction.sequence_reduction": REDUCTION,
            "attention.sequence_reduction.layer_norm": REDUCTION_NORM,
            "attention.o_proj": "attention.o_proj",
            "layernorm_after": "layer_norm_after",
            "mlp.fc1": "mlp.fc1",
            "mlp.dwconv.dwconv": "mlp.depthwise",
            "mlp.fc2": "mlp.fc2",
        },
        classes={
            SegformerForImageClassification: ClusTRForImageClassification,
            SegformerForSemanticSegmentation: ClusTRForSemanticSegmentation,
            SegformerModel: ClusTRModel,
        },
    ),
}
SOURCE_CLASSES = {source: (family, target) for family in FAMILIES.values() for source, target in family.classes.items()}


def find_class(source: PreTrainedModel) -> tuple[Family, type[PreTrainedModel]]:
    """
    The family of a source model, and the class of ClusTR that it becomes.

    Raises:
        TypeError: if the model is of another class. Subclasses and wrapped models count as other classes, since they
            may compute something else.
    """
    if type(source) not in SOURCE_CLASSES:
        names = sorted(each.__name__ for each in SOURCE_CLASSES)
        raise TypeError(f"`source` must be one of {names} of transformers, got {type(source).__name__}.")
    return SOURCE_CLASSES[type(source)]


def module_names(family: Family, config: PreTrainedConfig) -> Iterator[tuple[str, str]]:
    """The names of all modules with weights in the backbone of a source, and their names in ClusTR's backbone."""
    for stage, depth in enumerate(config.depths):
        source, target = family.stage.format(stage=stage), f"stages.{stage}"
        for name, ours in family.modules.items():
            yield f"{source}.{name}", f"{target}.{ours}"
        for block in range(depth):
            for name, ours in family.block_modules.items():
                if ours not in (REDUCTION, REDUCTION_NORM) or config.sr_ratios[stage] > 1:
                    yield f"{source}.blocks.{block}.{name}", f"{target}.blocks.{block}.{ours}"


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The backbone of a source or of a ClusTR model, without its head."""
    return getattr(model, model.base_model_prefix, model)
