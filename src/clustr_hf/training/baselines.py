# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Baselines: other backbones of transformers in place of ClusTR, with the same commands and the same heads.

Widths, depths, attention heads and strides come from a ClusTR configuration, so that `--config_overrides` sets them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PvtV2Config,
    PvtV2ForImageClassification,
    PvtV2Model,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
)
from transformers.hf_argparser import HfArg

from .. import ClusTRConfig, ClusTRForSemanticSegmentation
from .models import ModelArguments, load_weights, name_labels


# Fields of the configuration that heads and losses read.
HEAD_FIELDS = (
    *("segmentation_head", "fpn_hidden_size", "decoder_hidden_size", "upernet_hidden_size", "pool_scales"),
    *("auxiliary_hidden_size", "auxiliary_loss_weight", "classifier_dropout_prob"),
    *("semantic_loss_ignore_index", "semantic_class_weights", "id2label", "label2id"),
)
# Side of the windows in tokens: an eighth of the first stage's map at 128 pixels and stride 4, as 7 is at 224 pixels.
SWIN_WINDOW = 4
# `image_size` of baselines that accept images of any size; the value is the paper's for segmentation.
LARGE_IMAGE = 512


class BaselineForSemanticSegmentation(ClusTRForSemanticSegmentation):
    """ClusTR's heads, loss and outputs on another backbone."""

    _auto_class = None
    _auto_map = {}
    _can_record_outputs = {}
    _supports_sdpa = False
    _supports_attention_backend = False
    _no_split_modules = []

    def __init__(self, config: PreTrainedConfig):
        PreTrainedModel.__init__(self, config)
        self._make_backbone(config)
        self._make_head(config)
        self.post_init()


class PvtV2ForSemanticSegmentation(BaselineForSemanticSegmentation):
    """PVTv2: attention to a grid that a strided convolution has downsampled."""

    config_class = PvtV2Config
    base_model_prefix = "pvt_v2"

    def _make_backbone(self, config: PvtV2Config):
        self.pvt_v2 = PvtV2Model(config)


class SwinForSemanticSegmentation(BaselineForSemanticSegmentation):
    """Swin: attention in windows that every second block shifts; a layer norm follows each stage."""

    config_class = SwinConfig
    base_model_prefix = "swin"

    def _make_backbone(self, config: SwinConfig):
        self.swin = SwinModel(config, add_pooling_layer=False)
        fit_windows(self.swin)
        # The last stage has a norm already, which is part of a classifier's weights.
        self.stage_norms = nn.ModuleList(nn.LayerNorm(size) for size in config.hidden_sizes[:-1])

    def _stage_maps(self, pixel_values: torch.Tensor, **kwargs) -> tuple[list[torch.Tensor], Any]:
        kwargs["output_hidden_states"] = True
        before_merging = {"always_partition": True, "output_hidden_states_before_downsampling": True}
        features = self.swin(pixel_values, **before_merging, **kwargs)
        maps = features.reshaped_hidden_states[1:]  # without the stem
        norms = (*self.stage_norms, self.swin.layernorm)
        features.hidden_states = None
        return [norm(each.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, each in zip(norms, maps)], features


class SwinForSmallImages(SwinForImageClassification):
    """Swin with windows that are at most as large as the map of their stage; in transformers all have one size."""

    def __init__(self, config: SwinConfig):
        super().__init__(config)
        fit_windows(self.swin)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward(pixel_values, always_partition=True, **kwargs)


def fit_windows(swin: SwinModel) -> None:
    """Use one window without a shift in stages whose map is at most as large as a window, as Swin's authors do."""
    config = swin.config
    side = config.image_size // config.patch_size
    for stage, heads in zip(swin.encoder.layers, config.num_heads):
        for layer in stage.blocks:
            if side <= config.window_size:
                layer.shift_size = 0
            if side < config.window_size:
                layer.window_size = side
                layer.attention = type(layer.attention)(config, layer.layernorm_before.normalized_shape[0], heads, side)
        side = (side + 1) // 2


def pvt_v2_fields(config: ClusTRConfig) -> dict[str, Any]:
    """Grids as coarse as the coarsest scale of the clusters: a reduction by r x r for lambda = r^2."""
    same = ("hidden_sizes", "depths", "num_attention_heads", "mlp_ratios", "patch_sizes", "strides", "layer_norm_eps")
    sr_ratios = [round(max(ratios) ** 0.5) for ratios in config.reduction_ratios]
    return {"image_size": LARGE_IMAGE, "sr_ratios": sr_ratios, **{name: getattr(config, name) for name in same}}


def swin_fields(config: ClusTRConfig) -> dict[str, Any]:
    """Non-overlapping patches, as large as the first stride; the width doubles from stage to stage."""
    doubled = [config.hidden_sizes[0] * 2**stage for stage in range(len(config.depths))]
    if config.hidden_sizes != doubled or len(set(config.mlp_ratios)) > 1 or set(config.strides[1:]) > {2}:
        raise ValueError(
            f"--baseline swin needs hidden_sizes that double from stage to stage, one mlp_ratio and strides of 2 after "
            f"the first stage, got {config.hidden_sizes}, {config.mlp_ratios}, {config.strides}"
        )
    return {
        "image_size": LARGE_IMAGE,
        "patch_size": config.strides[0],
        "embed_dim": config.hidden_sizes[0],
        "depths": config.depths,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratios[0],
        "window_size": SWIN_WINDOW,
        # Heads derive the sizes of the maps from these fields of a ClusTR configuration; both round up.
        "hidden_sizes": config.hidden_sizes,
        "patch_sizes": config.patch_sizes,
        "strides": config.strides,
    }


class Baseline(NamedTuple):
    """Classes of a backbone, and the function that converts a ClusTR configuration to fields of its own."""

    config_class: type[PreTrainedConfig]
    make_fields: Callable[[ClusTRConfig], dict[str, Any]]
    classifier: type[PreTrainedModel]
    segmenter: type[PreTrainedModel]


BASELINES = {
    "pvt_v2": Baseline(PvtV2Config, pvt_v2_fields, PvtV2ForImageClassification, PvtV2ForSemanticSegmentation),
    "swin": Baseline(SwinConfig, swin_fields, SwinForSmallImages, SwinForSemanticSegmentation),
}


@dataclass
class BaselineArguments(ModelArguments):
    """The model to start from: ClusTR or a baseline."""

    baseline: str | None = HfArg(
        default=None,
        aliases=["--peer"],
        help=f"Backbone to train in place of ClusTR, one of {sorted(BASELINES)}. Default: none, ClusTR is trained.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.baseline is not None and self.baseline not in BASELINES:
            raise ValueError(f"--baseline must be one of {sorted(BASELINES)}, got {self.baseline!r}")
        if self.baseline is not None and self.config_name is not None and self.model_name_or_path is None:
            raise ValueError(
                f"--baseline {self.baseline} and --config_name both choose a new model: give one of them, got "
                f"--config_name {self.config_name}"
            )


def load_baseline(
    args: BaselineArguments, kind: str, labels: list[str], processor: Any, **fields: Any
) -> tuple[PreTrainedModel, Any]:
    """
    A baseline with random weights, or with the backbone of one of its checkpoints, and its image processor.

    Args:
        args: `variant` and `config_overrides` set the size and the head of a new model, `image_size` the sizes of the
            maps of a new Swin.
        kind (`str`): `"classifier"` or `"segmenter"`.
        labels (`list[str]`): Class names.
        processor: Image processor of a new model.
        fields: Fields of the configuration; `--config_overrides` has precedence.
    """
    baseline = BASELINES[args.baseline]
    given = {**name_labels(labels), **fields, **(args.config_overrides or {})}
    config = ClusTRConfig.from_variant(args.variant, **given)
    settings = {name: getattr(config, name) for name in (*HEAD_FIELDS, "drop_path_rate")}
    model_class = getattr(baseline, kind)
    if args.model_name_or_path is None:
        architecture = baseline.make_fields(config)
        if args.image_size is not None and kind == "classifier":
            architecture["image_size"] = args.image_size
        model = model_class(baseline.config_class(**{**architecture, **settings}))
        return args.choose_attention(model), args.choose_processor(processor)
    saved = _saved_config(args, baseline)
    kept = {name: value for name, value in settings.items() if name in given or not hasattr(saved, name)}
    config = baseline.config_class.from_dict({**saved.to_dict(), **kept})
    model = load_weights(args, labels, [model_class.__name__], model_class, config, saved)
    return args.choose_attention(model), args.load_processor()


def _saved_config(args: BaselineArguments, baseline: Baseline) -> PreTrainedConfig:
    """The configuration of a checkpoint whose model was made by [`load_baseline`]."""
    overrides = sorted(set(args.config_overrides or {}) - set(HEAD_FIELDS))
    if overrides:
        raise ValueError(f"--config_overrides can only change the head of a checkpoint of --baseline, got {overrides}")
    saved = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **args.hub_arguments)
    if not isinstance(saved, baseline.config_class) or not hasattr(saved, "strides"):
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path} must be a checkpoint of --baseline {args.baseline}"
        )
    return saved


def refuse_with_baseline(**arguments: Any) -> None:
    """Raise a `ValueError` if an argument is given that only ClusTR models support."""
    for name, value in arguments.items():
        if value:
            raise ValueError(f"--{name} cannot be combined with --baseline: it is for ClusTR models, got {value}")
