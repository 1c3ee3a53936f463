# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The attention of ClusTR (Eqs. 4 to 8), and the grid-based attentions that Table 6 of the paper compares it with.

Shapes: B images, N = h w tokens, C channels, H attention heads, M key and value tokens.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.integrations import use_kernel_forward_from_hub
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .clustering_clustr import aggregate_tokens, count_clusters, find_clusters, weight_tokens
from .clustering_content_clustr import MergedClusters, average_clusters, merge_clusters
from .configuration_clustr import ClusTRConfig


# Keywords that wrappers, trainers and models with several inputs pass on, and that have no effect on images.
KEYWORDS_WITHOUT_EFFECT = (
    "output_hidden_states",  # collected outside the blocks
    "interpolate_pos_encoding",  # without position embeddings, images can have any size
    "num_items_in_batch",
    "output_router_logits",
    "use_cache",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "debug_io",
    "debug_io_dir",
    "prune_layers",
    "task_ids",  # of PEFT's Poly, whose layers receive them separately
)
# Inputs of other models that would change the result, and why ClusTR rejects them.
INPUTS_OF_OTHER_MODELS = {
    "attention_mask": "clusters are found among all tokens",
    "bool_masked_pos": "there is no mask token",
    "head_mask": "heads cannot be masked",
    "input_ids": "the input is `pixel_values`",
    "inputs_embeds": "the input is `pixel_values`",
    "is_causal": "tokens of an image have no order",
    "labels": "a model without a head has no loss",
    "past_key_values": "there is no cache",
    "pixel_mask": "padding would be clustered like the image; pass images of one size",  # see `_is_full`
    "position_ids": "there are no position embeddings",
    "token_type_ids": "the input is `pixel_values`",
}
# The clusters of one scale: the cluster of each token, (B, N), and with `config.cluster_count="content"` also which of
# the N / lambda clusters each of them consists of.
ScaleClusters = torch.Tensor | MergedClusters
# The arguments that modules of this file pass to an attention function.
ATTENTION_ARGUMENTS = ("module", "query", "key", "value", "attention_mask", "dropout", "scaling", "kwargs")


def select_attention_kwargs(kwargs: Mapping[str, Any], config: ClusTRConfig) -> dict[str, Any]:
    """
    Select the keywords of a model's `forward` that its attention function receives.

    These are `output_attentions`, about which some functions warn that they cannot return them, and the keywords that a
    custom function (transformers' `AttentionInterface`) names in its signature. Keywords with the value `None`, which
    wrappers such as PEFT's pass, are left out.

    Raises:
        ValueError: for an input of other models that would change the result, such as `attention_mask`.
        TypeError: for an unknown keyword, such as a misspelt one.
    """
    selected = {name: kwargs[name] for name in ("output_attentions",) if name in kwargs}
    for name, value in kwargs.items():
        if value is None or name in selected or name in KEYWORDS_WITHOUT_EFFECT:
            continue
        if name in INPUTS_OF_OTHER_MODELS:
            if value is not False and not (name == "pixel_mask" and _is_full(value)):
                got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                raise ValueError(f"`{name}` must be None: {INPUTS_OF_OTHER_MODELS[name]}; got {got}.")
        elif name in _custom_keywords(config):
            selected[name] = value
        else:
            raise TypeError(
                f"`{name}` is not an argument of this model: besides those of its `forward`, it accepts "
                f"`output_attentions`, `output_clusters`, `output_hidden_states` and `return_dict`."
            )
    return selected


def requested_states(kwargs: Mapping[str, Any], config: ClusTRConfig) -> bool | int | Sequence[int]:
    """`output_hidden_states` of a call, by default that of the configuration: a flag, an index or indices."""
    requested = kwargs.get("output_hidden_states")
    return config.output_hidden_states if requested is None else requested


def _is_full(pixel_mask: torch.Tensor) -> bool:
    """Whether a mask (B, H, W) is 1 everywhere, as image processors of detectors return it for images of one size."""
    return not torch.compiler.is_compiling() and bool(pixel_mask.all())


def _custom_keywords(config: ClusTRConfig) -> list[str]:
    """Names of the additional keywords of a custom attention function; none for transformers' own functions."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    if getattr(function, "__module__", "").startswith("transformers."):
        return []
    return [name for name in inspect.signature(function).parameters if name not in ATTENTION_ARGUMENTS]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 4 as an attention function of transformers: (B, H, N, C/H) -> (B, N, H, C/H) and weights (B, H, N, M)."""
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = nn.functional.dropout(weights.to(query.dtype), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@use_kernel_forward_from_hub("ClusTRClustering")
class ClusTRClustering(nn.Module):
    """
    [`~clustering_clustr.find_clusters`] as a layer without state.

    To replace it by a layer of the Hub's `kernels` library with this signature, map the name `ClusTRClustering` in the
    `KernelConfig` of transformers.
    """

    def forward(
        self,
        tokens: torch.Tensor,
        num_clusters: Sequence[int],
        num_neighbors: int = 5,
        assignment: str = "density_parent",
        size: tuple[int, int] | None = None,
        window: int | None = None,
    ) -> list[torch.Tensor]:
        """Tokens (B, N, C) -> the cluster of each token for every scale, (B, N) each."""
        return find_clusters(tokens, num_clusters, num_neighbors, assignment, size, window)


class ClusTRAttention(nn.Module):
    """
    Multi-head multi-scale clustering-guided self-attention (Eqs. 5 to 8).

    All scales share the queries. Each scale has its own key and value projections, applied to its cluster tokens, and
    its own softmax. The outputs of the scales are added before the output projection (Eq. 8).

    Following the authors' release, tokens are merged before they are projected; Eqs. 5 and 6 project first. Separate
    projections per scale, which the paper leaves open, follow it too.
    """

    def __init__(self, config: ClusTRConfig, stage_index: int):
        super().__init__()
        self.config = config
        hidden_size = config.hidden_sizes[stage_index]
        self.reduction_ratios = config.reduction_ratios[stage_index]
        self.num_heads = config.num_attention_heads[stage_index]
        self.head_dim = hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False

        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.kv_projs = nn.ModuleList(
            nn.Linear(hidden_size, 2 * hidden_size, bias=config.qkv_bias) for _ in self.reduction_ratios
        )
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._make_aggregation(hidden_size)

    def _make_aggregation(self, hidden_size: int):
        """Creates the modules that reduce the tokens before the key and value projections."""
        # If every ratio is 1, nothing is merged, and so nothing is weighted: plain attention.
        self.is_clustered = any(ratio > 1 for ratio in self.reduction_ratios)
        self.token_weight = nn.Linear(hidden_size, 1) if self.is_clustered else None
        self.clustering = ClusTRClustering()

    def forward(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int] | None = None,
        cluster_index: tuple[ScaleClusters, ...] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[ScaleClusters, ...] | None]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, N, C)`): Normalised tokens.
            size (`tuple[int, int]`, *optional*):
                (height, width) of their grid. Required for `config.cluster_window` and for spatial reduction.
            cluster_index (`tuple[torch.LongTensor | MergedClusters]`, *optional*):
                The cluster of each token for every scale, each `(B, N)`, or the [`MergedClusters`] of another block. By
                default clusters are found here.

        Returns:
            The attended tokens `(B, N, C)`; the attention weights of all scales side by side, `(B, H, N, sum of M)`, or
            `None` if the attention function returns none; the cluster of each token for every scale, each `(B, N)` or,
            with `config.cluster_count="content"`, [`MergedClusters`], or `None` in a stage that does not cluster.
        """
        key_value_tokens, cluster_index = self._aggregate(tokens, size, cluster_index)
        query = self._split_heads(self.q_proj(tokens))
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        scale_outputs, scale_weights = [], []
        clusters = cluster_index or [None] * len(key_value_tokens)
        for scale_tokens, scale_clusters, kv_proj in zip(key_value_tokens, clusters, self.kv_projs):
            key, value = map(self._split_heads, kv_proj(scale_tokens).chunk(2, dim=-1))
            scale_output, weights = attention_interface(
                self,
                query,
                key,
                value,
                attention_mask=self._attention_mask(query, key, scale_clusters),
                dropout=self.attention_dropout if self.training else 0.0,
                scaling=self.scaling,
                **kwargs,
            )
            scale_outputs.append(scale_output)
            scale_weights.append(weights)
        output = functools.reduce(torch.add, scale_outputs)
        output = self.dropout(self.o_proj(output.flatten(2)))
        return output, _side_by_side(scale_weights), cluster_index

    def _aggregate(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int] | None,
        cluster_index: tuple[ScaleClusters, ...] | None,
    ) -> tuple[list[torch.Tensor], tuple[ScaleClusters, ...] | None]:
        """The tokens that become keys and values, (B, M, C) for each scale, and the clusters that they represent."""
        num_clusters = self._count_clusters(tokens.shape[1])
        if cluster_index is None:
            cluster_index = self._find_clusters(tokens, size, num_clusters)
        return self._merge_tokens(tokens, size, cluster_index, num_clusters), cluster_index

    def _attention_mask(
        self, query: torch.Tensor, key: torch.Tensor, clusters: ScaleClusters | None
    ) -> torch.Tensor | None:
        """
        Added to the scores of queries (B, H, N, C/H) and keys (B, H, M, C/H); None adds nothing. A merged cluster
        counts as often as the original clusters that it consists of, of which padding has none.
        """
        if not isinstance(clusters, MergedClusters):
            return None
        return clusters.num_merged.log().to(query.dtype)[:, None, None]

    def _count_clusters(self, num_tokens: int) -> list[int]:
        """M = N / lambda of each scale, at most `config.max_clusters`, before it is divided among windows."""
        limit = num_tokens if self.config.max_clusters is None else self.config.max_clusters
        return [min(limit, max(1, int(num_tokens // ratio))) for ratio in self.reduction_ratios]

    def _find_clusters(
        self, tokens: torch.Tensor, size: tuple[int, int] | None, num_clusters: list[int]
    ) -> tuple[ScaleClusters, ...] | None:
        if not self.is_clustered and min(num_clusters) == tokens.shape[1]:
            return None
        cluster_index = self.clustering(
            tokens,
            num_clusters,
            self.config.num_neighbors,
            assignment=self.config.cluster_assignment,
            size=size,
            window=self.config.cluster_window,
        )
        if self.config.cluster_count == "ratio":
            return tuple(cluster_index)
        return tuple(
            merge_clusters(tokens, index, self._total(number, size, tokens), self.config.cluster_tolerance)
            for index, number in zip(cluster_index, num_clusters)
        )

    def _total(self, num_clusters: int, size: tuple[int, int] | None, tokens: torch.Tensor) -> int:
        """M of a scale, after it is divided among windows; at most N."""
        if num_clusters >= tokens.shape[1]:
            return tokens.shape[1]
        return count_clusters(num_clusters, size, self.config.cluster_window)

    def _merge_tokens(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int] | None,
        cluster_index: tuple[ScaleClusters, ...] | None,
        num_clusters: list[int],
    ) -> list[torch.Tensor]:
        """
        The tokens that become keys and values, (B, M, C) for each scale (Eq. 7).

        The weight of a token is exp of a linear function, as in the authors' release; Eq. 3 leaves its form open. A
        stage that clusters only because of `max_clusters` has no such weights and takes plain means.
        """
        token_weight = None
        if self.token_weight is not None:
            log_weight = self.token_weight(tokens)
            token_weight = log_weight.to(torch.promote_types(log_weight.dtype, torch.float32)).exp()
        merged = []
        for scale, number in enumerate(num_clusters):
            clusters = None if cluster_index is None else cluster_index[scale]
            total = self._total(number, size, tokens)
            if isinstance(clusters, MergedClusters):
                original = aggregate_tokens(tokens, clusters.original_index, total, token_weight)
                merged.append(average_clusters(original, clusters))
            elif number < tokens.shape[1]:
                merged.append(aggregate_tokens(tokens, clusters, total, token_weight))
            else:  # One token per cluster, in token order: attention does not depend on the order of the keys.
                merged.append(tokens if token_weight is None else weight_tokens(tokens, token_weight))
        return merged

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, H, N, C/H)."""
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def labels_of(clusters: ScaleClusters) -> torch.Tensor:
    """The cluster of each token, (B, N)."""
    return clusters.cluster_index if isinstance(clusters, MergedClusters) else clusters


def _side_by_side(scale_weights: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Attention weights of all scales, (B, H, N, M) each, joined along the last dimension; None if there are none."""
    if scale_weights[0] is None or len(scale_weights) == 1:
        return scale_weights[0]
    return torch.cat(scale_weights, dim=-1)


class ClusTRSpatialReductionAttention(ClusTRAttention):
    """
    Spatial-reduction attention (Wang et al. 2021), a baseline of Table 6: grid cells in place of clusters.

    A convolution with kernel and stride r = sqrt(lambda) and a layer norm reduce r x r tokens to one key and value.
    With r = 1 this is plain attention. As in PVT, rows and columns beyond the last whole cell are dropped. A grid
    smaller than a cell is padded to one cell with zeros.
    """

    def _make_aggregation(self, hidden_size: int):
        (ratio,) = self.reduction_ratios
        self.cell = math.isqrt(round(ratio))
        self.reduction = self.reduction_layer_norm = None
        if self.cell > 1:
            self.reduction = nn.Conv2d(hidden_size, hidden_size, kernel_size=self.cell, stride=self.cell)
            self.reduction_layer_norm = nn.LayerNorm(hidden_size, eps=self.config.layer_norm_eps)

    def _aggregate(
        self, tokens: torch.Tensor, size: tuple[int, int] | None, cluster_index: None
    ) -> tuple[list[torch.Tensor], None]:
        if self.reduction is None:
            return [tokens], None
        if size is None:
            raise ValueError("`size` must be the (height, width) of the tokens' grid for spatial reduction, got None.")
        features = tokens.unflatten(1, size).permute(0, 3, 1, 2)
        missing = [max(0, self.cell - extent) for extent in size]
        if any(missing):
            features = nn.functional.pad(features, (0, missing[1], 0, missing[0]))
        return [self.reduction_layer_norm(self.reduction(features).permute(0, 2, 3, 1).flatten(1, 2))], None


class ClusTRNearestKeysAttention(ClusTRSpatialReductionAttention):
    """
    Spatial-reduction attention in which each query attends only to the `config.attention_top_k` keys with the largest
    scores (k-NN attention, Wang et al. 2022a), or to all keys if there are fewer. The choice has no gradient.
    """

    def _attention_mask(self, query: torch.Tensor, key: torch.Tensor, clusters: None) -> torch.Tensor | None:
        if key.shape[-2] <= self.config.attention_top_k:
            return None
        with torch.no_grad():
            scores = query @ key.mT
            kept = scores.topk(self.config.attention_top_k, dim=-1, sorted=False).indices
            return torch.full_like(scores, -torch.inf, dtype=query.dtype).scatter_(-1, kept, 0.0)


class ClusTRIdentityMixer(nn.Module):
    """
    The control without attention: the block adds its normalised tokens to themselves (the identity mixer of Yu et al.
    2022b), so that tokens exchange information only in the depthwise convolution of the feed-forward network.
    """

    def __init__(self, config: ClusTRConfig, stage_index: int):
        super().__init__()

    def forward(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        """Tokens (B, N, C) -> the same tokens; no attention weights, no clusters."""
        return tokens, None, None


ATTENTION_CLASSES = {
    "clustered": ClusTRAttention,
    "spatial_reduction": ClusTRSpatialReductionAttention,
    "spatial_reduction_knn": ClusTRNearestKeysAttention,
    "none": ClusTRIdentityMixer,
}
