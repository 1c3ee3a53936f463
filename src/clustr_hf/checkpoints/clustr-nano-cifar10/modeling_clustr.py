# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
ClusTR: the backbone and the image classifier (section 3 of the paper). Classes follow the order of the architecture.

Shapes: B images, N = h w tokens, C channels, H attention heads, M cluster tokens. Between stages tokens are maps
(B, C, h, w) in channels-last memory, so that (B, N, C) is a view of the same memory.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_clustr import ClusTRConfig
from .feed_forward_fused_clustr import fuse_if_possible
from .modeling_clustr_attention import (
    ATTENTION_CLASSES,
    ClusTRAttention,
    ScaleClusters,
    labels_of,
    requested_states,
    select_attention_kwargs,
)
from .modeling_clustr_calls import check_finite, fix_exported_size, select_states
from .modeling_clustr_embeddings import ClusTRPatchEmbeddings


# Pipelines log an error for classes that are missing here.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.setdefault(ClusTRConfig.model_type, "ClusTRForImageClassification")


@dataclass
class ClusTRModelOutput(ModelOutput):
    """
    Output of [`ClusTRModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, C, h, w)`):
            Normalised tokens of the last stage as a map. h and w are the image size divided by the total stride (32 for
            the paper's variants), rounded up; a stage with an even patch size has floor(size / stride) + 1. With
            `config.flatten_last_hidden_state`, the same tokens in row-major order, `(B, h * w, C)`.
        pooler_output (`torch.Tensor` of shape `(B, C)`):
            Mean of the last stage's tokens, the input of the classifier.
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states=True`):
            The stem (patch embeddings of stage 1), then the output of each stage, `(B, C, h, w)` each.
        attentions (`tuple[torch.Tensor]`, *optional*, with `output_attentions=True` and eager attention):
            One entry per block, `(B, H, N, M_1 + ... + M_L)`: the attention weights of the stage's L scales side by
            side. Each scale has its own softmax, so a row sums to L.
        cluster_indices (`tuple[tuple[torch.LongTensor]]`, *optional*, with `output_clusters=True`):
            One entry per block of the stages that cluster. An entry holds, for every scale of its stage, the cluster of
            each token, `(B, N)`, with tokens in row-major order and values in `[0, M)`, or in `[0, M_b)` for the M_b
            clusters of image b with `config.cluster_count="content"`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None


@dataclass
class ClusTRImageClassifierOutput(ImageClassifierOutput):
    """
    Output of [`ClusTRForImageClassification`].

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Cross-entropy; binary cross-entropy for several labels per image; mean squared error for regression.
        logits (`torch.Tensor` of shape `(B, num_labels)`):
            Scores before the softmax.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`].
    """

    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None


class ClusTRMLP(nn.Module):
    """
    Mix-FFN (Xie et al. 2021): a feed-forward network whose depthwise 3x3 convolution encodes the tokens' positions,
    (B, N, C) -> (B, N, C) with E hidden features.
    """

    def __init__(self, config: ClusTRConfig, stage_index: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage_index]
        intermediate_size = int(hidden_size * config.mlp_ratios[stage_index])
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.depthwise = nn.Conv2d(
            intermediate_size, intermediate_size, kernel_size=3, padding=1, groups=intermediate_size
        )
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {config.hidden_act!r}.")
        self.activation = ACT2FN[config.hidden_act]
        self.activation_class = type(self.activation)  # `can_fuse` compares with it
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @fuse_if_possible
    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Tokens (B, N, C) of a grid of (height, width) -> (B, N, C). The fused form replaces this one if it can."""
        features = self.fc1(tokens).unflatten(1, size).permute(0, 3, 1, 2)  # (B, E, h, w)
        features = self.activation(features + self.depthwise(features))
        features = self.dropout(features.permute(0, 2, 3, 1).flatten(1, 2))
        return self.dropout(self.fc2(features))


class ClusTRDropPath(nn.Module):
    """
    Stochastic depth: in training, drops the residual branch of whole images with the given probability.

    torchvision's `StochasticDepth` draws the same random numbers, but multiplies by a rounded 1 / (1 - p) instead of
    dividing by 1 - p: training runs would no longer resume bit by bit, and classifiers would require torchvision.
    """

    def __init__(self, drop_probability: float):
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_probability == 0.0:
            return tokens
        keep = tokens.new_empty(tokens.shape[0], 1, 1).bernoulli_(1 - self.drop_probability)
        return tokens * keep / (1 - self.drop_probability)

    def extra_repr(self) -> str:
        return f"p={self.drop_probability}"


class ClusTRBlock(GradientCheckpointingLayer):
    """Transformer block (Eq. 9): attention and feed-forward network, each on normalised tokens and with a residual."""

    def __init__(self, config: ClusTRConfig, stage_index: int, drop_probability: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage_index]
        self.layer_norm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = ATTENTION_CLASSES[config.attention_type](config, stage_index)
        self.layer_norm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClusTRMLP(config, stage_index)
        self.drop_path = ClusTRDropPath(drop_probability)

    def forward(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int],
        cluster_index: tuple[ScaleClusters, ...] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, tuple[ScaleClusters, ...] | None]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, N, C)`): Tokens.
            size (`tuple[int, int]`): (height, width) of their grid.
            cluster_index (`tuple[torch.LongTensor | MergedClusters]`, *optional*):
                The clusters that the attention of another block of the stage used, for every scale. By default clusters
                are found in the block.

        Returns:
            The tokens `(B, N, C)` and the clusters that the attention used, or `None` if the stage does not cluster.
        """
        attended, _, cluster_index = self.attention(self.layer_norm_before(tokens), size, cluster_index, **kwargs)
        tokens = tokens + self.drop_path(attended)
        tokens = tokens + self.drop_path(self.mlp(self.layer_norm_after(tokens), size))
        return tokens, cluster_index


class ClusTRStage(nn.Module):
    """
    Patch embedding, blocks, layer norm: (B, C_in, H, W) -> (B, C, h, w), the patch embeddings (B, C, h, w), and the
    clusters of each block that clusters.
    """

    def __init__(self, config: ClusTRConfig, stage_index: int):
        super().__init__()
        self.embeddings = ClusTRPatchEmbeddings(config, stage_index)
        self.shares_clusters = config.cluster_sharing == "stage"
        first, num_blocks = sum(config.depths[:stage_index]), sum(config.depths)
        self.blocks = nn.ModuleList(
            ClusTRBlock(config, stage_index, config.drop_path_rate * index / max(1, num_blocks - 1))
            for index in range(first, first + config.depths[stage_index])
        )
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[stage_index], eps=config.layer_norm_eps)

    def forward(
        self, features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, ...]]]:
        embeddings = self.embeddings(features)
        size = embeddings.shape[-2:]
        tokens = embeddings.permute(0, 2, 3, 1).flatten(1, 2)
        cluster_indices, cluster_index = [], None
        for block in self.blocks:
            tokens, cluster_index = block(tokens, size, cluster_index if self.shares_clusters else None, **kwargs)
            if cluster_index is not None:
                cluster_indices.append(tuple(map(labels_of, cluster_index)))
        return self.layer_norm(tokens).unflatten(1, size).permute(0, 3, 1, 2), embeddings, cluster_indices


class ClusTRPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and capabilities common to all ClusTR models."""

    config: ClusTRConfig
    config_class = ClusTRConfig
    base_model_prefix = "clustr"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Losses are means over a batch, so that Trainer has to divide them by the number of accumulated batches.
    accepts_loss_kwargs = False
    _no_split_modules = ["ClusTRPatchEmbeddings", "ClusTRBlock"]
    _input_embed_layer = "projection"
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Only attentions are recorded by hooks. transformers installs the hooks again if a model is part of another one
    # that records, which would return hidden states twice, and heads would mistake the copies for other stages.
    _can_record_outputs = {"attentions": OutputRecorder(ClusTRAttention, index=1)}
    # Classes that remote code can load a saved checkpoint as. Heads in other files add themselves.
    _auto_map = {
        "AutoConfig": "configuration_clustr.ClusTRConfig",
        "AutoModel": "modeling_clustr.ClusTRModel",
        "AutoBackbone": "modeling_clustr.ClusTRBackbone",
        "AutoModelForImageClassification": "modeling_clustr.ClusTRForImageClassification",
    }

    # Custom pipelines of a checkpoint, in the form of `PreTrainedConfig.custom_pipelines`.
    _custom_pipelines: dict[str, dict] = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            init.normal_(module.weight, mean=0.0, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                init.zeros_(module.bias)

    def set_cluster_budget(self, tolerance: float | None) -> None:
        """
        Trade accuracy for time without training: let the content of each image decide on its number of clusters.

        Sets `cluster_count` and `cluster_tolerance` in the configuration of the model and of its parts.

        Args:
            tolerance (`float`, *optional*):
                Share of the variance of an image's tokens that merging two clusters may add to the variance within
                clusters, in [0, 1]; larger values leave fewer clusters. None restores N / lambda clusters.

        Raises:
            ValueError: if the tolerance is out of range, or the attention has no clusters.
        """
        configs = {id(module.config): module.config for module in self.modules() if hasattr(module, "config")}
        for config in configs.values():  # heads of other libraries have configurations of their own
            if isinstance(config, ClusTRConfig):
                config.set_cluster_budget(tolerance)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """
        Same as `PreTrainedModel.save_pretrained`, but also saves what `trust_remote_code=True` requires: the code
        files, and an `auto_map` of the classes that can load this checkpoint.
        """
        self.config.auto_map = dict(self._auto_map)
        if self._custom_pipelines:
            self.config.custom_pipelines = dict(self._custom_pipelines)
        elif hasattr(self.config, "custom_pipelines"):  # inherited from another checkpoint
            del self.config.custom_pipelines
        super().save_pretrained(save_directory, *args, **kwargs)


class ClusTRModel(ClusTRPreTrainedModel):
    """ClusTR without a head."""

    _auto_class = "AutoModel"

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self.stages = nn.ModuleList(ClusTRStage(config, index) for index in range(len(config.depths)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stages[0].embeddings.projection

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_clusters: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClusTRModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                Normalised images with H and W of at least the product of the strides, not necessarily multiples of it.
                Values must be finite. This is checked on CPUs only: on accelerators the check would wait for the
                device, and compiled, exported and traced models cannot contain it. There NaN spreads to the outputs of
                its image.
            output_clusters (`bool`, defaults to `False`):
                Whether to return `cluster_indices`.
            kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, and the keywords that a custom attention
                function names. Keywords of wrappers that have no effect on images (`num_items_in_batch`, `use_cache`,
                ...) and keywords with the value `None` are ignored.

        Returns:
            [`ClusTRModelOutput`].

        Raises:
            ValueError: for a wrong rank, number of channels, size or dtype of `pixel_values`, for NaN or infinity in
                `pixel_values` (on CPUs), and for inputs of other models, such as `attention_mask`, that are not `None`.
            TypeError: for unknown keywords.
        """
        self._check_pixel_values(pixel_values)
        attention_kwargs = select_attention_kwargs(kwargs, self.config)
        fix_exported_size(pixel_values)
        features = pixel_values.to(self.get_input_embeddings().weight.dtype)
        check_finite(features)
        requested = requested_states(kwargs, self.config)
        hidden_states, cluster_indices = [], []
        for stage in self.stages:
            features, embeddings, stage_clusters = stage(features, **attention_kwargs)
            if requested:
                hidden_states += [features] if hidden_states else [embeddings, features]
            cluster_indices.extend(stage_clusters)
        is_flat = self.config.flatten_last_hidden_state
        return ClusTRModelOutput(
            last_hidden_state=features.flatten(2).mT if is_flat else features,
            pooler_output=features.mean(dim=(2, 3)),
            hidden_states=select_states(hidden_states, requested),
            cluster_indices=tuple(cluster_indices) if output_clusters else None,
        )

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        channels, min_size = self.config.num_channels, math.prod(self.config.strides)
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
            got = tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(f"`pixel_values` must be a tensor of shape (B, {channels}, H, W), got {got}.")
        if pixel_values.shape[1] != channels:
            raise ValueError(
                f"`pixel_values` must have {channels} channels in dimension 1 (`config.num_channels`), "
                f"got {pixel_values.shape[1]} in {tuple(pixel_values.shape)}."
            )
        if min(pixel_values.shape[2:]) < min_size:
            raise ValueError(
                f"`pixel_values` must be at least {min_size} pixels high and wide (the product of `config.strides`), "
                f"got (height, width) = {tuple(pixel_values.shape[2:])}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point, normalised by the image processor, got {pixel_values.dtype}."
            )


class ClusTRBackbone(BackboneMixin, ClusTRModel):
    """ClusTR as a backbone for dense prediction: returns the maps of the stages in `config.out_features`."""

    _auto_class = "AutoBackbone"

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]  # the stem first

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                Normalised images with H and W of at least the product of the strides.

        Returns:
            `BackboneOutput`: `feature_maps`, a map `(B, C, h, w)` for each of `out_features` (the strides of the
            paper's variants are 4, 8, 16, 32). `hidden_states` and `attentions` are those of [`ClusTRModelOutput`].

        Raises:
            ValueError: for a wrong rank, number of channels, size or dtype of `pixel_values`, and for
                `output_clusters=True`.
        """
        if kwargs.pop("output_clusters", None):
            raise ValueError("`output_clusters` must be False: a backbone returns maps only; use `ClusTRModel`.")
        # `super()` would be BackboneMixin, which has no `forward`. A dict even if the configuration asks for tuples.
        output = ClusTRModel.forward(self, pixel_values, return_dict=True, **kwargs)
        maps = dict(zip(self.stage_names, output.hidden_states))
        return BackboneOutput(
            feature_maps=tuple(maps[name] for name in self.out_features),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class ClusTRForImageClassification(ClusTRPreTrainedModel):
    """ClusTR with a linear classifier on the mean of the last stage's tokens."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.clustr = ClusTRModel(config)
        self.classifier = (
            nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels > 0 else nn.Identity()
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClusTRImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                Normalised images with H and W of at least the product of the strides.
            labels (`torch.Tensor` of shape `(B,)`, or `(B, num_labels)` for several labels per image, *optional*):
                Class indices in `[0, num_labels)`, targets in [0, 1] for several labels per image, or regression
                targets if `num_labels` is 1. `config.problem_type` selects one of these; if unset, it is derived from
                the labels.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` and others, as in [`ClusTRModel`].

        Returns:
            [`ClusTRImageClassifierOutput`].

        Raises:
            ValueError: for a wrong rank, number of channels, size or dtype of `pixel_values`.
        """
        outputs = self.clustr(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ClusTRImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cluster_indices=outputs.cluster_indices,
        )


__all__ = [
    "ClusTRBackbone",
    "ClusTRForImageClassification",
    "ClusTRImageClassifierOutput",
    "ClusTRModel",
    "ClusTRModelOutput",
    "ClusTRPreTrainedModel",
]
