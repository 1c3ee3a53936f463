# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The models that the benchmark compares, by name, with random weights: nothing is downloaded.

Names are the keys of `BASELINES`, and `clustr-VARIANT[-backbone][+SWITCH...]`: a variant of
`ClusTRConfig.from_variant`, as a classifier or as a backbone that returns the feature maps of all stages, with the
speed options that are switched on (`window`, `sharing`, `max`, or `options` for all three).
No model has dropout or stochastic depth.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PvtV2Config,
    PvtV2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from clustr_hf import ClusTRBackbone, ClusTRConfig, ClusTRForImageClassification


NUM_LABELS = 1000

SWIN = {"embed_dim": 96, "num_heads": [3, 6, 12, 24], "window_size": 7, "drop_path_rate": 0.0}
PVT_V2 = {"hidden_sizes": [64, 128, 320, 512], "num_attention_heads": [1, 2, 5, 8], "mlp_ratios": [8, 8, 4, 4]}
CONVNEXT = {"hidden_sizes": [96, 192, 384, 768]}

# Models of published depths and widths: class, configuration class, settings.
BASELINES: dict[str, tuple[type[nn.Module], type, dict[str, Any]]] = {
    "swin-tiny": (SwinForImageClassification, SwinConfig, {**SWIN, "depths": [2, 2, 6, 2]}),
    "swin-small": (SwinForImageClassification, SwinConfig, {**SWIN, "depths": [2, 2, 18, 2]}),
    "pvtv2-b1": (PvtV2ForImageClassification, PvtV2Config, {**PVT_V2, "depths": [2, 2, 2, 2]}),
    "pvtv2-b2": (PvtV2ForImageClassification, PvtV2Config, {**PVT_V2, "depths": [3, 4, 6, 3]}),
    "convnext-tiny": (ConvNextForImageClassification, ConvNextConfig, {**CONVNEXT, "depths": [3, 3, 9, 3]}),
    "convnext-small": (ConvNextForImageClassification, ConvNextConfig, {**CONVNEXT, "depths": [3, 3, 27, 3]}),
}

# Switch in a name -> the field of the configuration that it sets.
SWITCHES = {"window": "cluster_window", "sharing": "cluster_sharing", "max": "max_clusters"}

_CLUSTR_NAME = re.compile(r"clustr-(nano|tiny|small|base)(-backbone)?((?:\+(?:window|sharing|max|options))*)")


def is_model_name(name: str) -> bool:
    return name in BASELINES or _CLUSTR_NAME.fullmatch(name) is not None


def is_clustr(name: str) -> bool:
    return name.startswith("clustr-")


def min_image_side(name: str) -> int:
    """Minimum side of an image in pixels: the total stride; for Swin, the side with 7 x 7 tokens in the last stage."""
    return 6 * 32 + 1 if name.startswith("swin-") else 32


def build_model(name: str, speed_options: Mapping[str, Any]) -> nn.Module:
    """
    A model with random weights, in training mode.

    Args:
        name (`str`): Name of the model, see above.
        speed_options (`Mapping[str, Any]`): Value of each field in `SWITCHES`, used if the name switches it on.
    """
    if name in BASELINES:
        model_class, config_class, settings = BASELINES[name]
        return model_class(config_class(**settings, num_labels=NUM_LABELS)).train()
    variant, backbone, switches = _CLUSTR_NAME.fullmatch(name).groups()
    chosen = set(switches.split("+")[1:])
    settings = {field: speed_options[field] for switch, field in SWITCHES.items() if chosen & {switch, "options"}}
    if backbone:
        stages = [f"stage{index}" for index in range(1, 5)]
        return ClusTRBackbone(ClusTRConfig.from_variant(variant, out_features=stages, **settings)).train()
    return ClusTRForImageClassification(ClusTRConfig.from_variant(variant, num_labels=NUM_LABELS, **settings)).train()
