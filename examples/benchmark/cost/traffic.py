# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Launches and bytes of a forward pass, counted on the meta device."""

from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmark.cost.model import Clustering
from benchmark.measurements.inputs import Setting
from benchmark.models import build_model
from benchmark.triton_programs.launches import Recorder
from clustr_hf.remote_code import (
    clustering_triton_clustr,
    clustering_triton_support_clustr,
    modeling_clustr_attention,
)
from clustr_hf.remote_code.clustering_triton_launches_clustr import LAUNCHES, choose_launch


class Traffic(TorchDispatchMode):
    """Counts launches and the bytes that operations read and write; views are not counted."""

    def __init__(self):
        super().__init__()
        self.dispatched, self.launches, self.bytes = 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.dispatched += 1
        if not function.is_view:
            self.note(*args, *(result if isinstance(result, tuple) else (result,)))
        return result

    def note(self, *values: Any):
        """Count a launch that reads or writes these tensors."""
        self.launches += 1
        self.bytes += sum(t.numel() * t.element_size() for t in values if isinstance(t, torch.Tensor))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """`scaled_dot_product_attention` as one fused launch; the meta device would decompose it."""
        with _disable_current_modes():
            output = torch.empty_like(query)
        self.note(query, key, value, output)
        return output


def find_clusterings(name: str, setting: Setting) -> tuple[list[Clustering], Traffic]:
    """The calls of `find_clusters` in a forward pass, and the traffic of the rest of the network."""
    with torch.device("meta"):
        model = build_model(name, {}).eval().to(torch.bfloat16)
    found, traffic = [], Traffic()

    def stand_in(tokens: torch.Tensor, num_clusters: list[int], *args, **kwargs) -> list[torch.Tensor]:
        found.append(Clustering(*tokens.shape, len(num_clusters)))
        with _disable_current_modes():
            return [torch.zeros(tokens.shape[:2], dtype=torch.long, device="meta") for _ in num_clusters]

    pixel_values = torch.empty(setting.batch, 3, setting.height, setting.width, dtype=torch.bfloat16, device="meta")
    with (
        mock.patch.object(modeling_clustr_attention, "find_clusters", stand_in),
        mock.patch.object(clustering_triton_support_clustr, "is_on_gpu", lambda tokens: True),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", traffic.attend),
        torch.no_grad(),
        traffic,
    ):
        model(pixel_values)
    return found, traffic


def count_launches(clustering: Clustering, dtype: torch.dtype) -> int:
    """Launches of a clustering: Triton kernels, and the PyTorch operations between them."""
    tokens = torch.empty(clustering[:3], dtype=dtype, device="meta")
    numbers = [max(1, clustering.tokens // 4**scale) for scale in range(clustering.scales)]
    recorder = Recorder()
    launch = choose_launch(LAUNCHES["sm_90"], 8 * tokens.element_size(), clustering.channels)
    with mock.patch.object(clustering_triton_clustr, "load_kernels", lambda: recorder), Traffic() as traffic:
        clustering_triton_clustr.cluster(tokens, numbers, 5, "density_parent", launch)
    return recorder.number + traffic.launches
