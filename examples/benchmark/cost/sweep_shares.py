# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Shares of tokens that the sweeps of the Triton kernels process again, measured on photographs."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmark.models import build_model
from clustr_hf import ClusTRImageProcessor
from clustr_hf.remote_code import modeling_clustr_attention
from clustr_hf.remote_code.clustering_tensor_clustr import _center, log_local_density, nearest_tokens
from clustr_hf.remote_code.clustering_triton_launches_clustr import Launch, error_bound


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@torch.no_grad()
def shares_processed_again(tokens: torch.Tensor, launch: Launch, k: int = 5) -> dict[str, float]:
    """
    Shares of the tokens of an image, (1, N, C), that the kernels process again.

    Returns:
        `dict[str, float]`: `flagged`, the share of tokens that `filter_nearest` flags; `measured`, the share of their
        tiles that `measure_nearest` measures; `missing`, the share of tokens without a denser token among their k
        nearest.
    """
    tokens = _center(tokens)
    bound = error_bound("tf32x3", tokens.shape[2])
    norm = tokens.square().sum(dim=-1)[0]
    products = (tokens @ tokens.mT)[0]
    error = 2 * bound * norm.sqrt()[:, None] * norm.sqrt()
    lower_bound = (norm[:, None] + norm) * (1 - bound) - 2 * products - error
    outside = lower_bound.topk(launch.slots, largest=False).values.amax(dim=1)
    neighbors, _ = nearest_tokens(tokens, k)
    farthest = (tokens[0][neighbors[0]] - tokens[0][:, None]).square().sum(dim=-1).amax(dim=1) * (1 + bound)
    is_flagged = farthest >= outside
    density = log_local_density(tokens, neighbors)[0]
    has_denser = (density[neighbors[0]] > density[:, None]).any(dim=1)
    return {
        "flagged": is_flagged.double().mean().item(),
        "measured": _share_of_tiles(lower_bound[is_flagged] <= farthest[is_flagged, None], launch),
        "missing": 1 - has_denser.double().mean().item(),
    }


def _share_of_tiles(is_near: torch.Tensor, launch: Launch) -> float:
    """Share of the tiles of `measure_nearest` that contain a near token."""
    if len(is_near) == 0:
        return 0.0
    tile = (launch.exact_rows, launch.exact_columns)
    return nn.functional.max_pool2d(is_near[None].float(), tile, ceil_mode=True).mean().item()


def photograph_rows(size: int) -> Iterator[dict[str, Any]]:
    """Mean and maximum of the shares over the photographs, for each stage of ClusTR-S with random weights."""
    import skimage.data

    torch.manual_seed(0)
    model = build_model("clustr-small", {}).eval()
    processor = ClusTRImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    shares: dict[tuple[int, int], list[dict[str, float]]] = {}

    def record(tokens: torch.Tensor, num_clusters: list[int], *args) -> list[torch.Tensor]:
        shares.setdefault(tuple(tokens.shape[1:]), []).append(shares_processed_again(tokens, Launch()))
        return find_clusters(tokens, num_clusters, *args)

    find_clusters = modeling_clustr_attention.find_clusters
    with mock.patch.object(modeling_clustr_attention, "find_clusters", record), torch.no_grad():
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
            "flagged, maximum": f"{np.max(flagged):.1%}",
            "of their tiles measured, mean": f"{np.mean(measured):.1%}",
            "no denser neighbour, mean": f"{np.mean(missing):.1%}",
            "no denser neighbour, maximum": f"{np.max(missing):.1%}",
        }
