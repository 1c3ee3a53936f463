# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The attention of ClusTR (Eqs. 4 to 8), and those over a grid that Table 6 of the paper compares it with.

B images, N = h w tokens of C channels, H attention heads, M key and value tokens.
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
from .configuration_clustr import ClusTRConfig


# Keywords that wrappers, trainers and models with several inputs hand on, and that change nothing for images.
KEYWORDS_WITHOUT_EFFECT = (
    "output_hidden_states",  # recorded outside of the blocks
    "interpolate_pos_encoding",  # there are no position embeddings: images have any size
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
    "task_ids",  # of PEFT's Poly, whose layers have them already
)
# Inputs of other models, which would change what is computed, and why these models do not take them.
INPUTS_OF_OTHER_MODELS = {
    "attention_mask": "clusters are found among all tokens",
    "bool_masked_pos": "there is no mask token",
    "head_mask": "heads cannot be masked",
    "input_ids": "the input is `pixel_values`",
    "inputs_embeds": "the input is `pixel_values`",
    "is_causal": "tokens of an image have no order",
    "labels": "a model without a head has no loss",
    "past_key_values": "there is no cache",
    "pixel_mask": "padding would count as image; give images of one size",  # see `_pads_nothing`
    "position_ids": "there are no position embeddings",
    "token_type_ids": "the input is `pixel_values`",
}
# What the modules here give to an attention function.
ATTENTION_ARGUMENTS = ("module", "query", "key", "value", "attention_mask", "dropout", "scaling", "kwargs")


def select_attention_kwargs(kwargs: Mapping[str, Any], config: ClusTRConfig) -> dict[str, Any]:
    """
    The keywords of a model's `forward` that its attention function gets: `output_attentions`, of which some functions
    say that they cannot return them, and those that a custom function (transformers' `AttentionInterface`) names in its
    signature. Keywords that are None, as wrappers like PEFT's pass them, are left out.

    Raises:
        ValueError: for an input of other models that would change the result, such as `attention_mask`.
        TypeError: for a keyword that is unknown, such as a misspelt one.
    """
    selected = {name: kwargs[name] for name in ("output_attentions",) if name in kwargs}
    for name, value in kwargs.items():
        if value is None or name in selected or name in KEYWORDS_WITHOUT_EFFECT:
            continue
        if name in INPUTS_OF_OTHER_MODELS:
            if value is not False and not (name == "pixel_mask" and _pads_nothing(value)):
                got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                raise ValueError(f"`{name}` must be None: {INPUTS_OF_OTHER_MODELS[name]}; got {got}.")
        elif name in _custom_keywords(config):
            selected[name] = value
        else:
            raise TypeError(
                f"`{name}` is no argument of this model: beside those of its `forward`, it takes `output_attentions`, "
                f"`output_clusters`, `output_hidden_states` and `return_dict`."
            )
    return selected


def _pads_nothing(pixel_mask: torch.Tensor) -> bool:
    """Whether a mask (B, H, W) is 1 everywhere, as processors of detectors make it for images of one size."""
    return not torch.compiler.is_compiling() and bool(pixel_mask.all())


def _custom_keywords(config: ClusTRConfig) -> list[str]:
    """Names of the keywords that the attention function takes beside the usual ones, if it is not transformers' own."""
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
    """Eq. 4 in the contract of transformers' attention functions: (B, H, N, C/H) -> (B, N, H, C/H), (B, H, N, M)."""
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

    A layer of the Hub's `kernels` library with this signature can replace it: map the name `ClusTRClustering` in the
    `KernelConfig` that transformers takes.
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

    All scales share the queries; each has key and value projections of its own, applied to its cluster tokens, and a
    softmax of its own. Their outputs are added before the output projection (Eq. 8).
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
        """The modules by which tokens become those that keys and values are projected from."""
        # Where every ratio is 1 there is nothing to merge, so nothing to weight: plain attention.
        self.is_clustered = any(ratio > 1 for ratio in self.reduction_ratios)
        self.token_weight = nn.Linear(hidden_size, 1) if self.is_clustered else None
        self.clustering = ClusTRClustering()

    def forward(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int] | None = None,
        cluster_index: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, N, C)`): Normalised tokens.
            size (`tuple[int, int]`, *optional*):
                (height, width) of their grid; needed for `config.cluster_window` and for spatial reduction.
            cluster_index (`tuple[torch.LongTensor]`, *optional*):
                The cluster of each token for every scale, each `(B, N)`; default is to find them.

        Returns:
            The attended tokens `(B, N, C)`; the attention weights of all scales side by side, `(B, H, N, sum of M)`,
            or `None` where the attention function gives none; the cluster of each token for every scale, each
            `(B, N)`, or `None` in a stage that does not cluster.
        """
        key_value_tokens, cluster_index = self._aggregate(tokens, size, cluster_index)
        query = self._split_heads(self.q_proj(tokens))
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        scale_outputs, scale_weights = [], []
        for scale_tokens, kv_proj in zip(key_value_tokens, self.kv_projs):
            key, value = map(self._split_heads, kv_proj(scale_tokens).chunk(2, dim=-1))
            scale_output, weights = attention_interface(
                self,
                query,
                key,
                value,
                attention_mask=self._attention_mask(query, key),
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
        cluster_index: tuple[torch.Tensor, ...] | None,
    ) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...] | None]:
        """The tokens that become keys and values, (B, M, C) for each scale, and the clusters that they are of."""
        num_clusters = self._count_clusters(tokens.shape[1])
        if cluster_index is None:
            cluster_index = self._find_clusters(tokens, size, num_clusters)
        return self._merge_tokens(tokens, size, cluster_index, num_clusters), cluster_index

    def _attention_mask(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores of (B, H, N, C/H) queries and (B, H, M, C/H) keys: nothing."""
        return None

    def _count_clusters(self, num_tokens: int) -> list[int]:
        """M of each scale, not yet divided among windows."""
        most = num_tokens if self.config.max_clusters is None else self.config.max_clusters
        return [min(most, max(1, int(num_tokens // ratio))) for ratio in self.reduction_ratios]

    def _find_clusters(
        self, tokens: torch.Tensor, size: tuple[int, int] | None, num_clusters: list[int]
    ) -> tuple[torch.Tensor, ...] | None:
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
        return tuple(cluster_index)

    def _merge_tokens(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int] | None,
        cluster_index: tuple[torch.Tensor, ...] | None,
        num_clusters: list[int],
    ) -> list[torch.Tensor]:
        """
        The tokens that become keys and values, (B, M, C) for each scale (Eq. 7).

        A token's weight is exp of a linear function, as in the authors' release; Eq. 3 leaves its form open. Without
        such weights, where only `max_clusters` makes a stage cluster, clusters are means.
        """
        token_weight = None
        if self.token_weight is not None:
            log_weight = self.token_weight(tokens)
            token_weight = log_weight.to(torch.promote_types(log_weight.dtype, torch.float32)).exp()
        merged = []
        for scale, number in enumerate(num_clusters):
            if number < tokens.shape[1]:
                number = count_clusters(number, size, self.config.cluster_window)
                merged.append(aggregate_tokens(tokens, cluster_index[scale], number, token_weight))
            else:  # One cluster a token: attention does not depend on the order of the keys, so none is imposed.
                merged.append(tokens if token_weight is None else weight_tokens(tokens, token_weight))
        return merged

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, H, N, C/H)."""
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _side_by_side(scale_weights: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Attention weights of all scales, each (B, H, N, M), along the last dimension; None if there are none."""
    if scale_weights[0] is None or len(scale_weights) == 1:
        return scale_weights[0]
    return torch.cat(scale_weights, dim=-1)


class ClusTRSpatialReductionAttention(ClusTRAttention):
    """
    Spatial-reduction attention (Wang et al. 2021), which Table 6 compares with: a grid in place of clusters.

    A convolution whose kernel and stride are r = sqrt(lambda), and a layer norm, make one key and value of r x r
    tokens; with r = 1 it is plain attention. Rows and columns that fill no whole cell are left out, as in PVT; a grid
    that is smaller than a cell is padded with zeros to one.
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
    Spatial-reduction attention in which a query attends only to the `config.attention_top_k` keys with the largest
    scores (k-NN attention, Wang et al. 2022), or to all if there are not more. The choice has no gradient.
    """

    def _attention_mask(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        if key.shape[-2] <= self.config.attention_top_k:
            return None
        with torch.no_grad():
            scores = query @ key.mT
            kept = scores.topk(self.config.attention_top_k, dim=-1, sorted=False).indices
            return torch.full_like(scores, -torch.inf, dtype=query.dtype).scatter_(-1, kept, 0.0)


ATTENTION_CLASSES = {
    "clustered": ClusTRAttention,
    "spatial_reduction": ClusTRSpatialReductionAttention,
    "spatial_reduction_knn": ClusTRNearestKeysAttention,
}
