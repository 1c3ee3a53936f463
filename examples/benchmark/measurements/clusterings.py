# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The clusterings to compare, their share of a forward pass, and the agreement of a device with the CPU."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from benchmark.measurements.inputs import benchmark_num_clusters, image_like_tokens, random_tokens
from benchmark.measurements.timing import seconds_of
from clustr_hf.devices import make_clock
from clustr_hf.remote_code import modeling_clustr_attention
from clustr_hf.remote_code.clustering_clustr import clustering_path, find_clusters
from clustr_hf.remote_code.clustering_equations_clustr import reference_clusters


def direct_clusters(tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int = 5) -> list[torch.Tensor]:
    """
    The equations as written, on N x N matrices that are recomputed for each scale: the reference for `find_clusters`.
    """
    return [reference_clusters(tokens, [number], num_neighbors)[0] for number in num_clusters]


CLUSTERINGS: dict[str, Callable[[torch.Tensor, Sequence[int]], list[torch.Tensor]]] = {
    "find_clusters": find_clusters,
    "direct": direct_clusters,
}


def clustering_share(step: Callable[[], None], device: str, repeats: int = 3) -> dict[str, Any]:
    """
    Share of an eager step's time that is spent in `find_clusters`: the median of a few separate steps.

    Returns:
        `dict[str, Any]`: `clustering_share`, and `clustering_paths`, the names of the implementations that ran.
    """
    clock = make_clock(device)
    spans: list[tuple[Any, Any]] = []
    paths: set[str] = set()

    def timed(tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int, *args) -> list[torch.Tensor]:
        start = clock.mark()
        clusters = find_clusters(tokens, num_clusters, num_neighbors, *args)
        spans.append((start, clock.mark()))
        paths.add(clustering_path(tokens, num_neighbors))
        return clusters

    shares = []
    with mock.patch.object(modeling_clustr_attention, "find_clusters", timed):
        for _ in range(repeats):
            spans.clear()
            total = seconds_of(step, clock)
            shares.append(sum(clock.seconds(*span) for span in spans) / total)
    return {"clustering_share": statistics.median(shares), "clustering_paths": sorted(paths)}


def device_agreement(device: str, seed: int) -> list[dict[str, Any]]:
    """
    Agreement of the device's clusters with the CPU's in float32, for random and for image-like tokens: the share of
    equal labels, and the implementation that the device ran.
    """
    kinds = {"random": random_tokens(3136, 64, seed), "image-like": image_like_tokens(seed)}
    return [{"kind": kind, **_agreement(tokens, device)} for kind, tokens in kinds.items()]


def _agreement(tokens: torch.Tensor, device: str) -> dict[str, Any]:
    num_clusters = benchmark_num_clusters(tokens.shape[1])
    expected = torch.stack(find_clusters(tokens, num_clusters))
    tokens = tokens.to(device)
    found = torch.stack(find_clusters(tokens, num_clusters)).cpu()
    return {
        "tokens": tokens.shape[1],
        "channels": tokens.shape[2],
        "agreement": (found == expected).double().mean().item(),
        "clustering_path": clustering_path(tokens, 5),
    }
