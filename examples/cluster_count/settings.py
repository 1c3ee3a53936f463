# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Settings of the number of clusters that are compared: the same for every image, or chosen by its content."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from cluster_count.rules import RULES, use_rule
from clustr_hf.remote_code.modeling_clustr_attention import ClusTRAttention
from clustr_hf.visualization.cluster_maps import coarsen_ratios


KINDS = ("fixed", "content", *RULES)


@dataclass(frozen=True)
class Setting:
    """
    How many clusters the attention has.

    Args:
        kind (`str`): `"fixed"`: the share `value` of the model's N / lambda in every image. `"content"`: the tolerance
            `value`. `"own"`: as the checkpoint's configuration says. Otherwise one of `RULES`, with its number.
        value (`float`): In (0, 1] for `"fixed"`, in [0, 1] for `"content"`.
    """

    kind: str
    value: float

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.value:g}"

    def overrides(self, ratios: list[list[float]]) -> dict[str, Any]:
        """The fields of a configuration that set it, from the model's own ratios."""
        if self.kind == "content":
            return {"cluster_count": "content", "cluster_tolerance": self.value}
        return {"reduction_ratios": coarsen_ratios(ratios, 1 / self.value)}

    def apply(self, model: PreTrainedModel) -> None:
        """Set it in a model whose configuration has the ratios of the share 1."""
        if self.kind == "own":
            return
        model.set_cluster_budget(self.value if self.kind == "content" else None)
        for stage, block in clustered_blocks(model):
            ratios = model.config.reduction_ratios[stage]
            factor = 1 / self.value if self.kind == "fixed" else 1
            (block.attention.reduction_ratios,) = coarsen_ratios([ratios], factor)
            use_rule(block.attention, RULES.get(self.kind), self.value)


def clustered_blocks(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    """Index of the stage, and the block, of every block that clusters."""
    blocks = [(index, block) for index, stage in enumerate(model.base_model.stages) for block in stage.blocks]
    return [
        (index, block)
        for index, block in blocks
        if isinstance(block.attention, ClusTRAttention) and block.attention.is_clustered
    ]
