# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Other backbones of transformers under ClusTR's segmentation heads, trained and evaluated by the same commands."""

from transformers import PreTrainedModel, PvtV2Config, PvtV2Model

from clustr_hf import ClusTRConfig, ClusTRForSemanticSegmentation


# What the heads and the loss read of a configuration.
HEAD_FIELDS = (
    *("segmentation_head", "fpn_hidden_size", "decoder_hidden_size", "upernet_hidden_size", "pool_scales"),
    *("auxiliary_hidden_size", "auxiliary_loss_weight", "classifier_dropout_prob"),
    *("semantic_loss_ignore_index", "semantic_class_weights", "id2label", "label2id"),
)


class PvtV2ForSemanticSegmentation(ClusTRForSemanticSegmentation):
    """PVTv2 (attention over a grid that a strided convolution makes coarser) with ClusTR's heads, loss and outputs."""

    config_class = PvtV2Config
    base_model_prefix = "pvt_v2"
    _auto_class = None
    _auto_map = {}
    _can_record_outputs = {}
    _supports_sdpa = False
    _supports_attention_backend = False
    _no_split_modules = []

    def __init__(self, config: PvtV2Config):
        PreTrainedModel.__init__(self, config)
        self.pvt_v2 = PvtV2Model(config)
        self._make_head(config)
        self.post_init()


def make_pvt_v2(config: ClusTRConfig) -> PvtV2ForSemanticSegmentation:
    """
    PVTv2 in the depths, heads, patches and widths of a ClusTR configuration.

    Grids are as coarse as the coarsest scale of the clusters: a reduction of r x r for lambda = r^2.
    """
    pvt_config = PvtV2Config(
        image_size=512,
        hidden_sizes=config.hidden_sizes,
        depths=config.depths,
        num_attention_heads=config.num_attention_heads,
        mlp_ratios=config.mlp_ratios,
        patch_sizes=config.patch_sizes,
        strides=config.strides,
        sr_ratios=[round(max(ratios) ** 0.5) for ratios in config.reduction_ratios],
        drop_path_rate=config.drop_path_rate,
        layer_norm_eps=config.layer_norm_eps,
        **{name: getattr(config, name) for name in HEAD_FIELDS},
    )
    return PvtV2ForSemanticSegmentation(pvt_config)


PEERS = {"pvt_v2": make_pvt_v2}
