# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Other rules for the number of clusters, which were tried and are not part of the model.

Those of number_rules.py keep the centres with the largest decision values. The others merge clusters as the model does.

Shapes: B images, N tokens, C channels, M clusters.
"""

from collections.abc import Callable
from types import MethodType

import torch

from cluster_count.number_rules import NUMBER_RULES
from cluster_count.search import find_smallest_tolerance
from clustr_hf.remote_code.clustering_content_clustr import MergedClusters, merge_clusters
from clustr_hf.remote_code.modeling_clustr_attention import ClusTRAttention


def _merge_with(weight: float, average: str = "clusters") -> Callable:
    """
    The model's merging, but a merged key counts (number of original clusters)^`weight` times, and is the weighted mean
    of its `"clusters"`, as in the model, or of its `"tokens"`, in which large clusters prevail.
    """

    def find_clusters(attention, tokens, size, num_clusters, value):
        config, found = attention.config, []
        labels = attention.clustering(tokens, num_clusters, config.num_neighbors, config.cluster_assignment)
        for label, number in zip(labels, num_clusters):
            merged = merge_clusters(tokens, label, number, value)
            count = torch.where(merged.num_merged > 0, merged.num_merged**weight, 0.0)
            merged = merged._replace(num_merged=count)
            found.append(_as_original(merged, number) if average == "tokens" else merged)
        return tuple(found)

    return find_clusters


def _as_original(merged: MergedClusters, num_original: int) -> MergedClusters:
    """Clusters whose tokens are averaged directly, as if they had not been merged."""
    label = merged.cluster_index
    itself = torch.arange(num_original, device=label.device).clamp(max=merged.num_merged.shape[1] - 1)
    return merged._replace(original_index=label, merged_index=itself.expand(len(label), -1))


def _merge_to_share(attention, tokens, size, num_clusters, value):
    """The model's merging, but down to the same number in every image: the share `value` of N / lambda."""
    config = attention.config
    labels = attention.clustering(tokens, num_clusters, config.num_neighbors, config.cluster_assignment)
    found = []
    for label, number in zip(labels, num_clusters):
        target = max(1, round(value * number))
        images = [_merge_image(tokens[i : i + 1], label[i : i + 1], number, target) for i in range(len(tokens))]
        found.append(_as_batch(images))
    return tuple(found)


def _as_batch(images: list[MergedClusters]) -> MergedClusters:
    """The clusters of several images, padded to the number of the image with the most."""
    width = max(each.num_merged.shape[1] for each in images)
    padded = [
        each._replace(num_merged=torch.nn.functional.pad(each.num_merged, (0, width - each.num_merged.shape[1])))
        for each in images
    ]
    return MergedClusters(*map(torch.cat, zip(*padded)))


def _merge_image(tokens: torch.Tensor, label: torch.Tensor, number: int, target: int) -> MergedClusters:
    """Merge the clusters of one image until at most `target` are left."""
    tolerance = find_smallest_tolerance(
        lambda tolerance: merge_clusters(tokens, label, number, tolerance).num_merged.shape[1] <= target,
        low=1e-7,
        num_steps=14,
    )
    return merge_clusters(tokens, label, number, tolerance)


RULES: dict[str, Callable] = {
    **NUMBER_RULES,
    "merged-fixed": _merge_to_share,
    "content-once": _merge_with(0.0),
    "content-root": _merge_with(0.5),
    "content-tokens": _merge_with(1.0, average="tokens"),
    "content-tokens-root": _merge_with(0.5, average="tokens"),
}


def use_rule(attention: ClusTRAttention, rule: Callable | None, value: float) -> None:
    """Let an attention layer choose its clusters by a rule; None restores its own way."""
    attention.__dict__.pop("_find_clusters", None)
    if rule is not None:
        attention._find_clusters = MethodType(
            lambda self, tokens, size, num_clusters: rule(self, tokens, size, num_clusters, value), attention
        )
