#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A model of what clustering costs on an H100, from counted operations and the chip's published limits. Nothing is timed.

    python examples/clustering_cost.py --settings 224x128 512x16 --images 224 512

Networks are counted on the meta device, eager and in bfloat16: floating point operations, bytes that each operation
reads and writes, and launches. Clustering is counted from the sizes of its sweeps in
clustering_triton_kernels_clustr.py: matrix products, instructions for each pair of tokens, and the bytes of its passes
over the tokens. The least time of each is what the chip needs at its limits; real kernels reach a part of them.

`--images` adds which share of the tokens the sweeps have to look at again, in the photographs that scikit-image ships.
"""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmark.arguments import parse_setting
from benchmark.compile_triton_kernels import Recorder
from benchmark.measure import Setting, count_operations
from benchmark.models import build_model
from clustr_hf import ClusTRImageProcessor
from clustr_hf.remote_code import (
    clustering_clustr,
    clustering_triton_clustr,
    clustering_triton_support_clustr,
    modeling_clustr_attention,
)
from clustr_hf.remote_code.clustering_tensor_clustr import _center, log_local_density, nearest_tokens
from clustr_hf.remote_code.clustering_triton_launches_clustr import LAUNCHES, Launch, choose_launch, error_bound


# H100 SXM, dense, from NVIDIA's data sheet: operations and bytes a second.
BF16_FLOPS = 989e12
TF32_FLOPS = 495e12
# A fused multiply-add is two operations, any other instruction one lane of the same units.
FP32_INSTRUCTIONS = 67e12 / 2
MEMORY_BYTES = 3.35e12
# An estimate, of a pair of tokens in `filter_nearest`: bound (4), masks (3), minimum (2), and three rounds of insertion
# in a tile; of a pair in `measure_nearest` whose tile is not measured.
FILTER_INSTRUCTIONS, BOUND_INSTRUCTIONS = 20, 10
# Shares of the tokens that the sweeps look at again, and of their tiles that are measured: the largest means that
# `--images 224 512` finds, rounded up.
MISSING_SHARE, FLAGGED_SHARE, MEASURED_SHARE = 0.05, 0.14, 0.18
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


class Clustering(NamedTuple):
    """A call of `find_clusters`: B images of N tokens with C channels, and the number of scales."""

    batch: int
    tokens: int
    channels: int
    scales: int

    @property
    def pairs(self) -> float:
        """Pairs of tokens in both sweeps: all of them, and for tokens without a denser neighbour the denser ones."""
        return self.batch * self.tokens**2 * (1 + MISSING_SHARE / 2)

    @property
    def flops(self) -> float:
        """Of one pass of the matrix products, the flagged rows' second time included."""
        return 2 * self.pairs * (1 + FLAGGED_SHARE) * self.channels

    def matrix_seconds(self, is_wide: bool) -> float:
        return 3 * self.flops / TF32_FLOPS if is_wide else self.flops / BF16_FLOPS

    def vector_seconds(self) -> float:
        # Measured tiles take a difference and a multiply-add for each channel.
        again = FLAGGED_SHARE * (BOUND_INSTRUCTIONS + MEASURED_SHARE * 2 * self.channels)
        return self.pairs * (FILTER_INSTRUCTIONS + again) / FP32_INSTRUCTIONS

    def memory_seconds(self, is_wide: bool) -> float:
        """Passes over all tokens: origin (2), centring (2), density (1 + k), order of density (2), parents (2)."""
        passes = 4 * is_wide + 6 + 4
        return passes * self.batch * self.tokens * self.channels * (4 if is_wide else 2) / MEMORY_BYTES

    def seconds(self, is_wide: bool) -> float:
        """Matrix units and vector lanes may work side by side, but rarely do: their times are added."""
        return self.matrix_seconds(is_wide) + self.vector_seconds() + self.memory_seconds(is_wide)


class Traffic(TorchDispatchMode):
    """Counts launches, and bytes that operations read and write; views do neither."""

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
        """A launch that reads or writes these tensors."""
        self.launches += 1
        self.bytes += sum(t.numel() * t.element_size() for t in values if isinstance(t, torch.Tensor))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """`scaled_dot_product_attention` as one fused launch; the meta device would take it apart."""
        with _disable_current_modes():
            output = torch.empty_like(query)
        self.note(query, key, value, output)
        return output


def find_clusterings(name: str, setting: Setting) -> tuple[list[Clustering], Traffic]:
    """The calls of `find_clusters` in a forward, and the traffic of all else."""
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
    """Launches of a clustering: Triton's, and those of torch's operations between them."""
    tokens = torch.empty(clustering[:3], dtype=dtype, device="meta")
    numbers = [max(1, clustering.tokens // 4**scale) for scale in range(clustering.scales)]
    recorder = Recorder()
    launch = choose_launch(LAUNCHES["sm_90"], 8 * tokens.element_size(), clustering.channels)
    with mock.patch.object(clustering_triton_clustr, "load_kernels", lambda: recorder), Traffic() as traffic:
        clustering_triton_clustr.cluster(tokens, numbers, 5, "density_parent", launch)
    return recorder.number + traffic.launches


def cost_rows(setting: Setting) -> Iterator[dict[str, Any]]:
    """Swin-S, ClusTR-S without its clustering, and the clustering of float32 and of bfloat16 tokens."""
    network_seconds = {}
    for name in ("swin-small", "clustr-small"):
        with torch.device("meta"):
            counts = count_operations(build_model(name, {}), setting.height, setting.width)
        flops = setting.batch * (counts["flops"] - counts["clustering_flops"])
        clusterings, traffic = find_clusterings(name, setting)
        seconds = {"matrix": flops / BF16_FLOPS, "memory": traffic.bytes / MEMORY_BYTES}
        network_seconds[name] = max(seconds.values())
        label = "Swin-S" if name == "swin-small" else "ClusTR-S without clustering"
        yield row(setting, label, flops, traffic.bytes, traffic.launches, seconds, network_seconds[name])
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
        yield row(setting, label, flops, memory * MEMORY_BYTES, launches, seconds, total, share)


def operation_rows(settings: list[Setting]) -> Iterator[dict[str, Any]]:
    """Dispatched operations of a forward, views included, by the implementation of the clustering."""
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


def row(setting, label, flops, moved, launches, seconds, total, share=None) -> dict[str, Any]:
    bound = max(seconds, key=seconds.get)
    return {
        "setting": f"{setting.height} x {setting.batch}",
        "what": label,
        "TFLOP": f"{flops / 1e12:.2f}",
        "GB": f"{moved / 1e9:.1f}",
        "launches": launches,
        "least time (ms)": f"{total * 1e3:.1f}",
        "bound": bound,
        "share of ClusTR-S": "" if share is None else f"{share:.0%}",
        "measured": "not measured",
    }


def markdown_table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    lines += [f"| {' | '.join(map(str, entry.values()))} |" for entry in rows]
    return "\n".join(lines)


@torch.no_grad()
def shares_looked_at_again(tokens: torch.Tensor, launch: Launch, k: int = 5) -> dict[str, float]:
    """
    Of the tokens of an image, (1, N, C): the share that `filter_nearest` flags, the share of their tiles that
    `measure_nearest` measures, and the share of tokens that have no denser token among their k nearest.
    """
    tokens = _center(tokens)
    bound = error_bound("tf32x3", tokens.shape[2])
    norm = tokens.square().sum(dim=-1)[0]
    products = (tokens @ tokens.mT)[0]
    error = 2 * bound * norm.sqrt()[:, None] * norm.sqrt()
    least = (norm[:, None] + norm) * (1 - bound) - 2 * products - error
    outside = least.topk(launch.slots, largest=False).values.amax(dim=1)
    neighbors, _ = nearest_tokens(tokens, k)
    farthest = (tokens[0][neighbors[0]] - tokens[0][:, None]).square().sum(dim=-1).amax(dim=1) * (1 + bound)
    is_flagged = farthest >= outside
    density = log_local_density(tokens, neighbors)[0]
    has_denser = (density[neighbors[0]] > density[:, None]).any(dim=1)
    return {
        "flagged": is_flagged.double().mean().item(),
        "measured": _share_of_tiles(least[is_flagged] <= farthest[is_flagged, None], launch),
        "missing": 1 - has_denser.double().mean().item(),
    }


def _share_of_tiles(is_near: torch.Tensor, launch: Launch) -> float:
    """Share of the tiles of `measure_nearest` in which something is near."""
    if len(is_near) == 0:
        return 0.0
    tile = (launch.exact_rows, launch.exact_columns)
    return nn.functional.max_pool2d(is_near[None].float(), tile, ceil_mode=True).mean().item()


def photograph_rows(size: int) -> Iterator[dict[str, Any]]:
    """Mean and largest of those shares over the photographs, in the stages of ClusTR-S with random weights."""
    import skimage.data

    torch.manual_seed(0)
    model = build_model("clustr-small", {}).eval()
    processor = ClusTRImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    shares: dict[tuple[int, int], list[dict[str, float]]] = {}

    def note(tokens: torch.Tensor, num_clusters: list[int], *args) -> list[torch.Tensor]:
        shares.setdefault(tuple(tokens.shape[1:]), []).append(shares_looked_at_again(tokens, Launch()))
        return find_clusters(tokens, num_clusters, *args)

    find_clusters = modeling_clustr_attention.find_clusters
    with mock.patch.object(modeling_clustr_attention, "find_clusters", note), torch.no_grad():
        for name in PHOTOGRAPHS:
            image = Image.fromarray(np.asarray(getattr(skimage.data, name)()))
            model(**processor(image, return_tensors="pt"))
    for (num_tokens, channels), found in shares.items():
        flagged, measured, missing = ([entry[name] for entry in found] for name in ("flagged", "measured", "missing"))
        yield {
            "image": size,
            "tokens": num_tokens,
            "channels": channels,
            "flagged, mean": f"{np.mean(flagged):.1%}",
            "flagged, most": f"{np.max(flagged):.1%}",
            "of their tiles measured, mean": f"{np.mean(measured):.1%}",
            "no denser neighbour, mean": f"{np.mean(missing):.1%}",
            "no denser neighbour, most": f"{np.max(missing):.1%}",
        }


def main():
    parser = argparse.ArgumentParser(description="A model of what clustering costs on an H100; nothing is timed.")
    settings = [Setting(224, 224, 128), Setting(512, 512, 16)]
    parser.add_argument(
        "--settings",
        nargs="+",
        type=parse_setting,
        default=settings,
        help="images as SIZExBATCH or HEIGHTxWIDTHxBATCH (default: 224x128 512x16)",
    )
    parser.add_argument(
        "--images",
        nargs="*",
        type=int,
        metavar="SIZE",
        help="also count the tokens that the sweeps look at again, in photographs of these sizes (default: none)",
    )
    args = parser.parse_args()
    print(markdown_table(list(operation_rows(args.settings))))
    print("\n" + markdown_table([entry for setting in args.settings for entry in cost_rows(setting)]))
    if args.images:
        print("\n" + markdown_table([entry for size in args.images for entry in photograph_rows(size)]))


if __name__ == "__main__":
    main()
