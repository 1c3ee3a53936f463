# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tables of the cost model, row by row."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmark.cost.model import BF16_FLOPS, MEMORY_BYTES
from benchmark.cost.traffic import Traffic, count_launches, find_clusterings
from benchmark.measurements.inputs import Setting
from benchmark.measurements.operations import count_operations
from benchmark.models import build_model
from clustr_hf.remote_code import clustering_clustr, clustering_triton_support_clustr


def cost_rows(setting: Setting) -> Iterator[dict[str, Any]]:
    """Rows for Swin-S, ClusTR-S without clustering, and the clustering of float32 and of bfloat16 tokens."""
    network_seconds = {}
    for name in ("swin-small", "clustr-small"):
        with torch.device("meta"):
            counts = count_operations(build_model(name, {}), setting.height, setting.width)
        flops = setting.batch * (counts["flops"] - counts["clustering_flops"])
        clusterings, traffic = find_clusterings(name, setting)
        seconds = {"matrix": flops / BF16_FLOPS, "memory": traffic.bytes / MEMORY_BYTES}
        network_seconds[name] = max(seconds.values())
        label = "Swin-S" if name == "swin-small" else "ClusTR-S without clustering"
        yield _row(setting, label, flops, traffic.bytes, traffic.launches, seconds, network_seconds[name])
    for dtype in (torch.float32, torch.bfloat16):
        is_wide = dtype == torch.float32
        flops = sum((3 if is_wide else 1) * each.flops for each in clusterings)
        memory = sum(each.memory_seconds(is_wide) for each in clusterings)
        seconds = {
            "matrix": sum(each.matrix_seconds(is_wide) for each in clusterings),
            "vector": sum(each.vector_seconds() for each in clusterings),
            "memory": memory,
        }
        launches = sum(count_launches(each, dtype) for each in clusterings)
        label = f"clustering of {'float32' if is_wide else 'bfloat16'} tokens"
        total = sum(each.seconds(is_wide) for each in clusterings)
        share = total / (total + network_seconds["clustr-small"])
        yield _row(setting, label, flops, memory * MEMORY_BYTES, launches, seconds, total, share)


def _row(setting, label, flops, moved, launches, seconds, total, share=None) -> dict[str, Any]:
    """A row of the table; `seconds` are the times by resource, and `total` is the minimum time."""
    bound = max(seconds, key=seconds.get)
    return {
        "setting": f"{setting.height} x {setting.batch}",
        "what": label,
        "TFLOP": f"{flops / 1e12:.2f}",
        "GB": f"{moved / 1e9:.1f}",
        "launches": launches,
        "minimum time (ms)": f"{total * 1e3:.1f}",
        "bound": bound,
        "share of ClusTR-S": "" if share is None else f"{share:.0%}",
        "measured": "not measured",
    }


def operation_rows(settings: list[Setting]) -> Iterator[dict[str, Any]]:
    """Number of dispatched operations of a forward pass, including views, for each implementation of the clustering."""
    with torch.device("meta"):
        models = {name: build_model(name, {}).eval() for name in ("clustr-small", "swin-small")}
    for setting in settings:
        pixel_values = torch.empty(setting.batch, 3, setting.height, setting.width, device="meta")
        entry = {"setting": f"{setting.height} x {setting.batch}"}
        entry["ClusTR-S, tensor operations"] = _count_dispatched(models["clustr-small"], pixel_values)
        with (
            mock.patch.object(clustering_triton_support_clustr, "is_on_gpu", lambda tokens: True),
            mock.patch.object(clustering_clustr, "cluster_by_triton", torch.ops.clustr_hf.find_clusters),
        ):
            entry["ClusTR-S, Triton's operators as one each"] = _count_dispatched(models["clustr-small"], pixel_values)
        yield {**entry, "Swin-S": _count_dispatched(models["swin-small"], pixel_values)}


def _count_dispatched(model: nn.Module, pixel_values: torch.Tensor) -> int:
    with torch.no_grad(), Traffic() as traffic:
        model(pixel_values)
    return traffic.dispatched
