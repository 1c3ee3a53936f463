# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
PVTv2 and SegFormer as ClusTR: pretrained weights of backbones that attend to a grid, for attention to clusters.

Everything but the reduction of the tokens has the same shape, and is carried over exactly. Keys and values of the
source are projections of a strided convolution and a layer norm, ours are projections of the mean token of a cluster;
they start with the weights of the source, and `calibration.py` fits them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..loading import naming_unreadable_weights
from ..name_lists import shorten
from ..remote_code.configuration_clustr import ClusTRConfig
from ..remote_code.modeling_clustr import ClusTRBackbone, ClusTRMLP, ClusTRModel
from ..remote_code.modeling_clustr_attention import ClusTRAttention, ClusTRSpatialReductionAttention
from ..remote_code.modeling_clustr_embeddings import ClusTRPositionEmbeddings
from ..remote_code.modeling_clustr_segmentation import ClusTRForSemanticSegmentation
from .source_families import (
    FAMILIES,
    KEY,
    REDUCTION,
    REDUCTION_NORM,
    SOURCE_CLASSES,
    VALUE,
    Family,
    backbone_of,
    find_class,
    module_names,
)


# Fields of the configuration that the carried weights depend on.
CARRIED_FIELDS = (
    *("num_channels", "hidden_sizes", "depths", "num_attention_heads", "mlp_ratios", "patch_sizes", "strides"),
    *("hidden_act", "qkv_bias", "layer_norm_eps", "embedding_layer_norm_eps"),
)
# Fields that have the same meaning in the source.
OTHER_FIELDS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range"),
    *("classifier_dropout_prob", "semantic_loss_ignore_index", "problem_type"),
)
LABEL_FIELDS = ("num_labels", "id2label", "label2id")
ATTENTION_TYPES = ("clustered", "spatial_reduction", "spatial_reduction_knn")


def convert_grid_backbone(source: PreTrainedModel | str | Path, **config_overrides: Any) -> PreTrainedModel:
    """
    Convert a PVTv2 or SegFormer model to ClusTR.

    Patch embeddings, norms with their epsilons, queries, feed-forward networks and the classifier are carried over
    exactly. (1 is subtracted from the centers of the depthwise kernels, because ClusTR adds the convolution to its
    input.) Keys and values of all scales start as those of the source, and each of L scales contributes 1 / L of the
    output. All tokens of a cluster start with the same weight. With `attention_type="spatial_reduction"` the model
    equals its source.

    Args:
        source (`PreTrainedModel`, `str` or `Path`):
            `PvtV2ForImageClassification`, `PvtV2Backbone`, `PvtV2Model`, `SegformerForImageClassification`,
            `SegformerForSemanticSegmentation` or `SegformerModel` of transformers; or the folder or Hub id of one of
            them. It is not changed.
        config_overrides:
            Fields of [`ClusTRConfig`] to set: `reduction_ratios`, `cluster_window`, `segmentation_head`,
            `use_absolute_position_embeddings` (whose embeddings start at 0) ... By default each stage has two scales:
            as many tokens per cluster as the source has per cell, and a quarter of that. For the usual reductions by 8,
            4, 2 and 1 these are the paper's.

    Returns:
        `PreTrainedModel`: a ClusTR model of the same kind in evaluation mode, on the device and in the dtype of the
        source. A segmentation model has a new head, since ClusTR has no head of SegFormer's kind.

    Raises:
        TypeError: if the source is a model of another class.
        ValueError: for sources whose weights have no counterpart, such as those with linear attention, and for
            overrides that the carried weights do not fit.
    """
    if not isinstance(source, PreTrainedModel):
        source = load_grid_source(source)
    family, model_class = find_class(source)
    _check_weights(source)
    config = _make_config(source, model_class, config_overrides)
    model = model_class(config).to(source.device, torch.promote_types(source.dtype, torch.float32))
    backbone_of(model).load_state_dict(_convert_weights(source, family, backbone_of(model)))
    if hasattr(model, "classifier"):
        _check_names(set(source.classifier.state_dict()), set(model.classifier.state_dict()))
        model.classifier.load_state_dict(source.classifier.state_dict())
    return model.to(source.dtype).eval()


def load_grid_source(name_or_path: str | Path, **hub_arguments: Any) -> PreTrainedModel:
    """
    Load a model that can be converted, in float32, with every weight from the checkpoint.

    Args:
        name_or_path (`str` or `Path`): Folder, or id on the Hub.
        hub_arguments: Further arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: if the checkpoint is of another model, lacks weights, or cannot be read.
    """
    config = AutoConfig.from_pretrained(name_or_path, **hub_arguments)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"`source` {name_or_path} must be a model of the types {sorted(FAMILIES)}, got {config.model_type!r}."
        )
    names = {each.__name__ for each in SOURCE_CLASSES}
    saved = next((name for name in config.architectures or () if name in names), None)
    if saved is None:
        raise ValueError(f"`source` {name_or_path} must be one of {sorted(names)}, got {config.architectures}.")
    with naming_unreadable_weights("`source`", name_or_path):
        model, report = getattr(transformers, saved).from_pretrained(
            name_or_path, dtype=torch.float32, output_loading_info=True, **hub_arguments
        )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:4])
        raise ValueError(f"`source` {name_or_path} must have all weights of {saved}, but lacks {missing}.")
    return model.eval()


def default_ratios(sr_ratios: Sequence[int]) -> list[list[float]]:
    """Two scales per stage: tokens per cluster as in the source's cells, r^2, and a quarter of that; one for r = 1."""
    # Whole numbers stay integers, so that configurations have 4 rather than 4.0.
    return [[1] if r == 1 else [r * r, r * r / 4 if r % 2 else r * r // 4] for r in sr_ratios]


def _make_config(
    source: PreTrainedModel, model_class: type[PreTrainedModel], overrides: dict[str, Any]
) -> ClusTRConfig:
    config = source.config
    _check_source(config)
    fixed = CARRIED_FIELDS if model_class is ClusTRForSemanticSegmentation else (*CARRIED_FIELDS, *LABEL_FIELDS)
    unknown = sorted(set(overrides) - set(ClusTRConfig().to_dict()) - set(LABEL_FIELDS))
    if unknown:
        raise ValueError(f"`config_overrides` must be fields of ClusTRConfig, got {unknown}.")
    refused = sorted(set(overrides) & set(fixed))
    if refused:
        raise ValueError(f"`config_overrides` must not change {refused}, which the weights of the source depend on.")
    fields = {name: getattr(config, name) for name in (*CARRIED_FIELDS, *OTHER_FIELDS) if hasattr(config, name)}
    fields |= _norm_epsilons(source)
    if not LABEL_FIELDS[:2] & overrides.keys():
        fields |= {"id2label": dict(config.id2label), "label2id": dict(config.label2id)}
    if model_class is ClusTRBackbone:
        fields["out_features"] = config.out_features
    if model_class is ClusTRModel:
        fields["flatten_last_hidden_state"] = not getattr(config, "reshape_last_stage", True)
    ratios = default_ratios(config.sr_ratios)
    is_grid = overrides.get("attention_type", "clustered") != "clustered"
    converted = ClusTRConfig(
        **{**fields, "reduction_ratios": [each[0] for each in ratios] if is_grid else ratios, **overrides}
    )
    if is_grid:
        _check_grid(converted, config)
    return converted


def _check_source(config: PreTrainedConfig):
    """Raise a `ValueError` for fields of a source that ClusTR has no counterpart for."""
    if getattr(config, "linear_attention", False):
        raise ValueError(
            "`source` must not have `linear_attention=True`: its keys and values come from average pooling to 7 x 7, "
            "and its feed-forward networks have a ReLU that ClusTR does not have."
        )
    number = getattr(config, "num_encoder_blocks", len(config.depths))
    if number != len(config.depths):
        raise ValueError(f"`source` must have as many `depths` as `num_encoder_blocks`, got {config.depths}, {number}.")


def _check_grid(converted: ClusTRConfig, config: PreTrainedConfig):
    """Raise a `ValueError` unless an attention to a grid is that of the source."""
    if converted.attention_type not in ATTENTION_TYPES:
        raise ValueError(f"`attention_type` must be one of {ATTENTION_TYPES}, got {converted.attention_type!r}.")
    expected = [[r * r] for r in config.sr_ratios]
    if converted.reduction_ratios != expected:
        raise ValueError(
            f"`reduction_ratios` must be the source's, {expected}, with `attention_type` {converted.attention_type!r}, "
            f"got {converted.reduction_ratios}."
        )


def _norm_epsilons(source: PreTrainedModel) -> dict[str, float]:
    """The epsilons of the norms; SegFormer does not use the one of its configuration."""
    family, _ = find_class(source)
    backbone, found = backbone_of(source), {"layer_norm_eps": set(), "embedding_layer_norm_eps": set()}
    for theirs, ours in module_names(family, source.config):
        module = backbone.get_submodule(theirs)
        if isinstance(module, nn.LayerNorm):
            found["embedding_layer_norm_eps" if ours.endswith("embeddings.layer_norm") else "layer_norm_eps"].add(
                module.eps
            )
    for name, values in found.items():
        if len(values) != 1:
            raise ValueError(f"`source` must have norms with one epsilon for `{name}`, got {sorted(values)}.")
    return {name: values.pop() for name, values in found.items()}


def _check_weights(source: PreTrainedModel):
    for name, tensor in source.named_parameters():
        if not tensor.is_floating_point() or tensor.is_meta:
            raise ValueError(
                f"`source` must have floating-point weights with data, got {tensor.dtype} on {tensor.device} as "
                f"{name!r}."
            )


def _convert_weights(source: PreTrainedModel, family: Family, target: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a ClusTR backbone, in float32 or a higher precision."""
    backbone, weights = backbone_of(source), {}
    for theirs, ours in module_names(family, source.config):
        module = backbone.get_submodule(theirs)
        parts = module.state_dict()
        _check_names(set(parts), {part for part in ("weight", "bias") if getattr(module, part) is not None})
        for part, value in parts.items():
            weights[f"{ours}.{part}"] = value.to(torch.promote_types(value.dtype, torch.float32))
    for name, module in target.named_modules():
        if isinstance(module, ClusTRMLP):
            kernel = weights[f"{name}.depthwise.weight"] = weights[f"{name}.depthwise.weight"].clone()
            kernel[:, :, 1, 1] -= 1  # ClusTR adds the convolution to its input
        elif isinstance(module, ClusTRAttention):
            _adapt_attention(weights, name, module)
        elif isinstance(module, ClusTRPositionEmbeddings):
            weights |= _zeros(module, name)
    _check_names(set(weights), set(target.state_dict()))
    return weights


def _check_names(names: set[str], expected: set[str]) -> None:
    if names != expected:
        raise ValueError(
            f"`source` must have the plain weights of its class, without adapters or parametrizations; "
            f"{shorten(sorted(names ^ expected))} do not match."
        )


def _adapt_attention(weights: dict[str, torch.Tensor], name: str, attention: ClusTRAttention) -> None:
    """Replace the weights of a source's attention, which are under the name of ours, by those of our attention."""
    block = name.removesuffix(".attention")
    for part in ("weight", "bias") if f"{block}.{KEY}.bias" in weights else ("weight",):
        joined = torch.cat([weights.pop(f"{block}.{key_or_value}.{part}") for key_or_value in (KEY, VALUE)])
        weights |= {f"{name}.kv_projs.{scale}.{part}": joined for scale in range(len(attention.kv_projs))}
    # The outputs of the scales are summed: each contributes its share.
    weights[f"{name}.o_proj.weight"] = weights[f"{name}.o_proj.weight"] / len(attention.kv_projs)
    if isinstance(attention, ClusTRSpatialReductionAttention):
        return
    for part in ("weight", "bias"):
        for reduction in (REDUCTION, REDUCTION_NORM):
            weights.pop(f"{block}.{reduction}.{part}", None)
    if attention.token_weight is not None:
        weights |= _zeros(attention.token_weight, f"{name}.token_weight")


def _zeros(module: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {f"{name}.{part}": torch.zeros_like(value) for part, value in module.state_dict().items()}
