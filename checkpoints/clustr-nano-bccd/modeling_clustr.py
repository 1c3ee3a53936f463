# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
ClusTR: the backbone and the image classifier (section 3 of the paper).

The classes stand in the order of the architecture. B images, N = h w tokens of C channels, H attention heads, M cluster
tokens. Between stages the tokens are maps (B, C, h, w); their memory is channels-last, so that (B, N, C) is a view.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

import math
import operator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, is_torchdynamo_exporting
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_clustr import ClusTRConfig
from .modeling_clustr_attention import ATTENTION_CLASSES, ClusTRAttention


# Hidden features of a feed-forward network that are made at once where it works in pieces: 8 MiB in float32.
FEED_FORWARD_ELEMENTS = 2**21


@dataclass
class ClusTRModelOutput(ModelOutput):
    """
    Output of [`ClusTRModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, C, h, w)`):
            Normalised tokens of the last stage as a map; h and w are the image's size over the total stride (32 for
            the paper's variants), rounded up (down for even patch sizes).
        pooler_output (`torch.Tensor` of shape `(B, C)`):
            Mean of the last stage's tokens: what the classifier sees.
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states=True`):
            The stem (patch embeddings of stage 1), then the output of each stage, each `(B, C, h, w)`.
        attentions (`tuple[torch.Tensor]`, *optional*, with `output_attentions=True` and eager attention):
            One entry per block, `(B, H, N, M_1 + ... + M_L)`: the attention weights of the stage's L scales side by
            side. Each scale has a softmax of its own, so a row sums to L.
        cluster_indices (`tuple[tuple[torch.LongTensor]]`, *optional*, with `output_clusters=True`):
            One entry per block of the stages that cluster, in order; each has, for every scale of its stage, the
            cluster of each token, `(B, N)`, tokens in row-major order, values in `[0, M)`.
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
            Cross-entropy; binary cross-entropy with several labels an image; mean squared error for regression.
        logits (`torch.Tensor` of shape `(B, num_labels)`):
            Scores before the softmax.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`].
    """

    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None


class ClusTRPatchEmbeddings(nn.Module):
    """Overlapping patch embedding: convolution and layer norm, (B, C_in, H, W) -> (B, C, h, w)."""

    def __init__(self, config: ClusTRConfig, stage_index: int):
        super().__init__()
        in_channels = config.hidden_sizes[stage_index - 1] if stage_index > 0 else config.num_channels
        hidden_size = config.hidden_sizes[stage_index]
        kernel_size = config.patch_sizes[stage_index]
        self.projection = nn.Conv2d(
            in_channels, hidden_size, kernel_size, stride=config.strides[stage_index], padding=kernel_size // 2
        )
        self.layer_norm = nn.LayerNorm(hidden_size, eps=config.embedding_layer_norm_eps)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(self.projection(features).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ClusTRMLP(nn.Module):
    """
    Feed-forward network with a depthwise 3x3 convolution, which gives the tokens their position; (B, N, C).

    On CPUs, without gradient, it goes over a large batch image by image and over a large image in strips of rows: the
    hidden features, the largest tensor of a block, are then reused in the cache instead of written to fresh memory.
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
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.has_gelu = config.hidden_act == "gelu"

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        kernel = self._residual_kernel()
        hidden_elements = tokens.shape[1] * self.fc1.out_features
        if not _runs_eagerly_on_cpu(tokens) or len(tokens) * hidden_elements <= FEED_FORWARD_ELEMENTS:
            return self._feed_forward(tokens, size, kernel)
        if hidden_elements <= FEED_FORWARD_ELEMENTS:
            groups = tokens.split(FEED_FORWARD_ELEMENTS // hidden_elements)
            return torch.cat([self._feed_forward(images, size, kernel) for images in groups])
        return torch.cat([self._feed_forward_in_strips(image, size, kernel) for image in tokens.split(1)])

    def _feed_forward_in_strips(self, image: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor) -> torch.Tensor:
        """One image, (1, N, C): each strip is computed with one more row on either side, for the convolution."""
        height, width = size
        longest = max(1, FEED_FORWARD_ELEMENTS // (width * self.fc1.out_features) - 2)
        strip = math.ceil(height / math.ceil(height / longest))  # nearly equal strips
        outputs = []
        for first in range(0, height, strip):
            above, last = min(first, 1), min(first + strip, height)
            start, stop = first - above, min(last + 1, height)
            rows = image[:, start * width : stop * width]
            features = self._hidden_features(rows, (stop - start, width), kernel)
            outputs.append(self.fc2(features[:, above * width : (above + last - first) * width]))
        return self.dropout(torch.cat(outputs, dim=1))

    def _feed_forward(self, tokens: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self._hidden_features(tokens, size, kernel)))

    def _residual_kernel(self) -> torch.Tensor:
        """1 more at the kernel's centre: tokens + convolution(tokens) in one pass over the hidden features."""
        weight = self.depthwise.weight
        return weight + nn.functional.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))

    def _hidden_features(self, tokens: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor) -> torch.Tensor:
        features = self.fc1(tokens).unflatten(1, size).permute(0, 3, 1, 2)  # channels-last, no copy
        bias, channels = self.depthwise.bias, features.shape[1]
        if self.has_gelu and _can_fuse_gelu(features, kernel):
            features = torch.ops.mkldnn._convolution_pointwise(
                features, kernel, bias, [1, 1], [1, 1], [1, 1], channels, "gelu", [], "none"
            )
        else:
            features = self.activation(nn.functional.conv2d(features, kernel, bias, padding=1, groups=channels))
        return self.dropout(features.permute(0, 2, 3, 1).flatten(1, 2))


def _runs_eagerly_on_cpu(tokens: torch.Tensor) -> bool:
    """Whether operations are carried out one by one, without gradient, and not recorded for later."""
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return tokens.is_cpu and not recorded


def _can_fuse_gelu(features: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Whether oneDNN's convolution with GELU, which torch.compile uses too, can be called here."""
    return (
        _runs_eagerly_on_cpu(features)
        and features.dtype == kernel.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


class ClusTRDropPath(nn.Module):
    """Stochastic depth: in training, drops the residual branch of whole images with the given probability."""

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
    """Transformer block, Eq. 9: attention and feed-forward network, each on normalised tokens and with a residual."""

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
        cluster_index: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        (B, N, C), the (height, width) of the token grid and clusters to use, if they are not to be found -> (B, N, C)
        and the clusters that the attention used.
        """
        attended, _, cluster_index = self.attention(self.layer_norm_before(tokens), size, cluster_index, **kwargs)
        tokens = tokens + self.drop_path(attended)
        tokens = tokens + self.drop_path(self.mlp(self.layer_norm_after(tokens), size))
        return tokens, cluster_index


class ClusTRStage(nn.Module):
    """Patch embedding, blocks, layer norm; (B, C_in, H, W) -> (B, C, h, w) and the clusters of each block."""

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
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, ...]]]:
        features = self.embeddings(features)
        size = features.shape[-2:]
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2)
        cluster_indices, cluster_index = [], None
        for block in self.blocks:
            tokens, cluster_index = block(tokens, size, cluster_index if self.shares_clusters else None, **kwargs)
            if cluster_index is not None:
                cluster_indices.append(cluster_index)
        return self.layer_norm(tokens).unflatten(1, size).permute(0, 3, 1, 2), cluster_indices


class ClusTRPreTrainedModel(PreTrainedModel):
    """Initialisation, loading, saving and the abilities that all ClusTR models share."""

    config: ClusTRConfig
    config_class = ClusTRConfig
    base_model_prefix = "clustr"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The losses average over the images they see: Trainer must do the gradient accumulation's division itself.
    accepts_loss_kwargs = False
    _no_split_modules = ["ClusTRPatchEmbeddings", "ClusTRBlock"]
    _input_embed_layer = "projection"
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(ClusTRPatchEmbeddings, layer_name="stages.0.embeddings", capture_initial_hidden_state=False),
            OutputRecorder(ClusTRStage, index=0, capture_initial_hidden_state=False),
        ],
        "attentions": OutputRecorder(ClusTRAttention, index=1),
    }
    # What a saved checkpoint of any class can be loaded as by remote code; heads of other files add themselves.
    _auto_map = {
        "AutoConfig": "configuration_clustr.ClusTRConfig",
        "AutoModel": "modeling_clustr.ClusTRModel",
        "AutoBackbone": "modeling_clustr.ClusTRBackbone",
        "AutoModelForImageClassification": "modeling_clustr.ClusTRForImageClassification",
    }

    # The pipeline that a checkpoint carries: name of the task -> what `PreTrainedConfig.custom_pipelines` holds of it.
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

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        As `PreTrainedModel.save_pretrained`, and with all that `trust_remote_code=True` needs: the code files and an
        `auto_map` of the classes that this checkpoint can be loaded as.
        """
        self.config.auto_map = dict(self._auto_map)
        if self._custom_pipelines:
            self.config.custom_pipelines = dict(self._custom_pipelines)
        elif hasattr(self.config, "custom_pipelines"):  # of the checkpoint that this one was made of
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
                Normalised images of any size from the product of the strides up; H and W need not be multiples of it.
            output_clusters (`bool`, defaults to `False`):
                Whether to return `cluster_indices`.

        Returns:
            [`ClusTRModelOutput`].

        Raises:
            ValueError: for a wrong rank, number of channels, size or dtype of `pixel_values`.
        """
        self._check_pixel_values(pixel_values)
        if kwargs.get("pixel_mask") is not None:
            raise ValueError("`pixel_mask` must be None: padding would count as image; give images of one size.")
        fix_exported_size(pixel_values)
        features = pixel_values.to(self.get_input_embeddings().weight.dtype)
        cluster_indices = []
        for stage in self.stages:
            features, stage_clusters = stage(features, **kwargs)
            cluster_indices.extend(stage_clusters)
        return ClusTRModelOutput(
            last_hidden_state=features,
            pooler_output=features.mean(dim=(2, 3)),
            cluster_indices=tuple(cluster_indices) if output_clusters else None,
        )

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        channels, least = self.config.num_channels, math.prod(self.config.strides)
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
            got = tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(f"`pixel_values` must be a tensor of shape (B, {channels}, H, W), got {got}.")
        if pixel_values.shape[1] != channels:
            raise ValueError(
                f"`pixel_values` must have {channels} channels in dimension 1 (`config.num_channels`), "
                f"got {pixel_values.shape[1]} in {tuple(pixel_values.shape)}."
            )
        if min(pixel_values.shape[2:]) < least:
            raise ValueError(
                f"`pixel_values` must be at least {least} pixels high and wide (the product of `config.strides`), "
                f"got (height, width) = {tuple(pixel_values.shape[2:])}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point, normalised by the image processor, got {pixel_values.dtype}."
            )


def fix_exported_size(pixel_values: torch.Tensor):
    """
    Height and width are constants of an exported graph, as the numbers of tokens and clusters are: torch.export names
    a dimension that was to be dynamic, where it would otherwise give a graph that is wrong for other sizes.
    """
    if is_torchdynamo_exporting():
        for extent in pixel_values.shape[2:]:
            operator.index(extent)


class ClusTRBackbone(BackboneMixin, ClusTRModel):
    """ClusTR as a backbone for dense prediction: maps of the stages named in `config.out_features`."""

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
                Normalised images of any size from the product of the strides up.

        Returns:
            `BackboneOutput`: `feature_maps`, for each of `out_features` a map `(B, C, h, w)`; strides of the paper's
            variants are 4, 8, 16, 32. `hidden_states` and `attentions` as in [`ClusTRModelOutput`].

        Raises:
            ValueError: for a wrong rank, number of channels, size or dtype of `pixel_values`.
        """
        # Not `super()`, which is BackboneMixin and has none; a dict even where the configuration asks for tuples.
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
                Normalised images of any size from the product of the strides up.
            labels (`torch.Tensor` of shape `(B,)`, or `(B, num_labels)` for several labels an image, *optional*):
                Class indices in `[0, num_labels)`, targets in [0, 1] with several labels, or numbers to regress where
                `num_labels` is 1; `config.problem_type` says which, and is derived from the labels if unset.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` as in [`ClusTRModel`].

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
