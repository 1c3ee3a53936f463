# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
What the attention of a source receives and returns, beside the attention of the model that was converted from it.

Shapes: B images, N = h w tokens, C channels.
"""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..remote_code.modeling_clustr_attention import ClusTRAttention
from .source_families import KEY, VALUE, backbone_of, find_class, module_names


Place = tuple[int, int]  # stage and block, counted from 0


@dataclass
class Recording:
    """
    One forward pass of an attention of the source.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Its input.
        size (`tuple[int, int]`): (height, width) of the grid of tokens.
        output (`torch.Tensor` of shape `(B, N, C)`): Its output, after the output projection.
        keys_and_values (`torch.Tensor` of shape `(B, N, 2C)`): For each token, key and value of its cell.
        cluster_index (`tuple[torch.LongTensor]`, *optional*):
            The clusters of our attention for the same tokens, `(B, N)` per scale.
    """

    tokens: torch.Tensor
    size: tuple[int, int]
    output: torch.Tensor
    keys_and_values: torch.Tensor
    cluster_index: tuple[torch.Tensor, ...] | None = None


class AttentionPair(NamedTuple):
    """The attention of a block of the source and ours, and the side of the source's cells."""

    theirs: nn.Module
    key: nn.Module
    value: nn.Module
    ours: ClusTRAttention
    cell: int
    shares_clusters: bool

    @torch.no_grad()
    def find_clusters(self, recording: Recording) -> tuple[torch.Tensor, ...] | None:
        """The clusters of our attention for recorded tokens, `(B, N)` for each scale."""
        num_clusters = self.ours._count_clusters(recording.tokens.shape[1])
        return self.ours._find_clusters(recording.tokens, recording.size, num_clusters)


def paired_attentions(model: PreTrainedModel, source: PreTrainedModel) -> dict[Place, AttentionPair]:
    """
    The attentions of both models for each (stage, block) where they differ: wherever either of them reduces the tokens.

    Raises:
        ValueError: if the models have different numbers of blocks or channels, or different patch embeddings.
    """
    family, _ = find_class(source)
    names = {ours: theirs for theirs, ours in family.block_modules.items()}
    for name in ("depths", "hidden_sizes"):
        if list(getattr(model.config, name)) != list(getattr(source.config, name)):
            raise ValueError(
                f"`source` must be the model that `model` was converted from, with `{name}` of "
                f"{getattr(model.config, name)}, got {getattr(source.config, name)}."
            )
    _check_embeddings(model, source)
    pairs = {}
    for stage, depth in enumerate(source.config.depths):
        cell = source.config.sr_ratios[stage]
        for block in range(depth):
            ours = backbone_of(model).stages[stage].blocks[block].attention
            if cell == 1 and not ours.is_clustered and model.config.max_clusters is None:
                continue
            theirs = backbone_of(source).get_submodule(f"{family.stage.format(stage=stage)}.blocks.{block}")
            key, value = (theirs.get_submodule(names[name]) for name in (KEY, VALUE))
            shares = model.config.cluster_sharing == "stage"
            pairs[stage, block] = AttentionPair(theirs.attention, key, value, ours, cell, shares)
    return pairs


def _check_embeddings(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Raise a `ValueError` unless both models have the same first patch embedding, which is carried over exactly."""
    family, _ = find_class(source)
    theirs, ours = next(names for names in module_names(family, source.config) if names[1].endswith("projection"))
    theirs, ours = backbone_of(source).get_submodule(theirs).weight, backbone_of(model).get_submodule(ours).weight
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-5):
        raise ValueError("`source` must be the model that `model` was converted from, but has other patch embeddings.")


@torch.no_grad()
def record_attentions(
    source: PreTrainedModel, pairs: Mapping[Place, AttentionPair], pixel_values: torch.Tensor
) -> dict[Place, Recording]:
    """Run the source on images (B, channels, H, W) and record its attentions."""
    seen: dict[Place, dict[str, Any]] = {place: {} for place in pairs}
    with ExitStack() as hooks:
        for place, pair in pairs.items():
            for name in ("theirs", "key", "value"):
                hook = _record_into(seen[place], name)
                handle = getattr(pair, name).register_forward_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
        source(pixel_values=pixel_values.to(source.device))
    recordings = {}
    for place, pair in pairs.items():
        call = inspect.signature(pair.theirs.forward).bind(*seen[place]["args"], **seen[place]["kwargs"]).arguments
        size = call["height"], call["width"]
        by_cell = torch.cat([seen[place]["key"], seen[place]["value"]], dim=-1)
        cells = cell_of_each_token(size, pair.cell).to(by_cell.device)
        recordings[place] = Recording(call["hidden_states"], size, seen[place]["theirs"], by_cell[:, cells])
    return recordings


def _record_into(seen: dict[str, Any], name: str):
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any):
        seen[name] = output[0] if isinstance(output, tuple) else output
        if name == "theirs":
            seen.update(args=args, kwargs=kwargs)

    return hook


def cell_of_each_token(size: tuple[int, int], cell: int) -> torch.Tensor:
    """
    The index of the cell of each token, (N,) int64, both in row-major order. Tokens beyond the last whole cell, which
    the source drops, belong to the nearest cell.
    """
    rows, columns = ((torch.arange(side, device="cpu") // cell).clamp(max=max(1, side // cell) - 1) for side in size)
    return (rows[:, None] * max(1, size[1] // cell) + columns).flatten()
