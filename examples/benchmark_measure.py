# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
How benchmark.py measures: time in interleaved rounds, memory in fresh processes, operations without running anything.

Shapes: B images, N tokens, C channels, M clusters.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from benchmark_models import NUM_LABELS, build_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from clustr_hf import modeling_clustr_attention
from clustr_hf.clustering_clustr import find_clusters


# Training steps leave the random weights almost as they are, so that no round meets another network.
LEARNING_RATE = 1e-6

# Convolutions and linear layers; attention's products are batched ones.
LAYER_OPERATORS = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)


class Setting(NamedTuple):
    """Image size in pixels and number of images."""

    height: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.batch}"


def image_like_noise(setting: Setting, seed: int) -> torch.Tensor:
    """
    Noise with the spectrum of photographs, (B, 3, height, width): equal variance in every octave, 1 in all.

    White noise would look the same everywhere: its tokens have no clusters to find.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width, batch = setting
    cells = [2**octave for octave in range(int(math.log2(min(height, width))))]
    noise = torch.zeros(batch, 3, height, width)
    for cell in cells:
        octave = torch.randn(batch, 3, -(-height // cell), -(-width // cell), generator=generator)
        noise += nn.functional.interpolate(octave, size=(height, width), mode="bilinear")
    return noise / noise.std()


def make_step(model: nn.Module, pixel_values: torch.Tensor, pass_name: str, compiled: bool) -> Callable[[], None]:
    """
    What is timed: a `"forward"` in inference mode; a `"backward"`, which is a forward with loss and its gradients; or a
    `"training"` step, which is both and AdamW. The loss of a backbone is the sum of the means of its maps.
    """
    run = _compile(model) if compiled else model
    if pass_name == "forward":
        model.eval()

        def forward():
            with torch.inference_mode():
                run(pixel_values)

        return forward

    model.train()
    labels = torch.arange(len(pixel_values), device=pixel_values.device) % NUM_LABELS
    is_backbone = hasattr(model, "out_features")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def train():
        if is_backbone:
            loss = sum(feature_map.mean() for feature_map in run(pixel_values).feature_maps)
        else:
            loss = run(pixel_values, labels=labels).loss
        loss.backward()
        if pass_name == "training":
            optimizer.step()
        optimizer.zero_grad()

    return train


def seconds_of(action: Callable[[], Any], device: str) -> float:
    """Wall time of one call, with all that it started on the device."""
    _synchronize(device)
    start = time.perf_counter()
    action()
    _synchronize(device)
    return time.perf_counter() - start


def interleaved_seconds(
    actions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int, seed: int, device: str, description: str
) -> dict[str, list[float]]:
    """
    Seconds of every action in every round. Each round runs each action once, in an order shuffled anew, so that what
    else the machine does meets all of them alike; the actions of a round can be compared.
    """
    names, order = list(actions), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=(rounds + warmup) * len(names), desc=description) as progress:
        for name in names:
            for _ in range(warmup):
                seconds_of(actions[name], device)
                progress.update()
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                seconds[name].append(seconds_of(actions[name], device))
                progress.update()
    return seconds


def summarize(seconds: Mapping[str, Sequence[float]], reference: str, batch: int) -> dict[str, dict[str, Any]]:
    """Median time of each action, and its ratio to the reference's time in the same round: quartiles and extremes."""
    summary = {}
    for name, times in seconds.items():
        ratios = np.divide(times, seconds[reference])
        values = np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1]).tolist()
        median = statistics.median(times)
        summary[name] = {
            "median_seconds": median,
            "median_seconds_per_image": median / batch,
            "ratio": dict(zip(("min", "lower_quartile", "median", "upper_quartile", "max"), values)),
        }
    return summary


def growth_exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """p of the power law seconds ~ pixels^p: the least-squares slope of their logarithms."""
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def clustering_share(step: Callable[[], None], device: str, repeats: int = 3) -> float:
    """
    Share of an eager step's time that is spent in `find_clusters`, median of a few steps.

    In steps of their own: on a GPU, waiting for each clustering would slow those down that give the times.
    """
    spent: list[float] = []

    def timed(*args, **kwargs):
        found = []
        spent.append(seconds_of(lambda: found.append(find_clusters(*args, **kwargs)), device))
        return found[0]

    shares = []
    with mock.patch.object(modeling_clustr_attention, "find_clusters", timed):
        for _ in range(repeats):
            spent.clear()
            whole = seconds_of(step, device)
            shares.append(sum(spent) / whole)
    return statistics.median(shares)


def count_operations(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """
    Parameters of a model and the operations of a forward for one image, counted on tensors without data.

    Args:
        model (`PreTrainedModel`): On the meta device; its attention becomes the eager one.
        height, width (`int`): Of the image, pixels.

    Returns:
        `dict[str, int]`:
        - `flops`: floating point operations of all convolutions and matrix products (a multiply-add is two), those of
          attention and clustering included.
        - `clustering_flops`: the part of the clustering. Its kernels are hidden from the counter, so the model is
          counted with a stand-in for them, and 2 N^2 C is added for each image that is clustered: the product that
          all distances come from; 2 N w^2 C where tokens are compared in windows of w x w. Selections, and distances
          that are measured again, are left out.
        - `paper_macs`: multiply-accumulates of convolutions and linear layers alone. The paper's tables leave out
          attention's products and the clustering too; their figures for ClusTR are 3 to 4 % higher.
    """
    model.eval()
    # The counter sees plain matrix products on every device, but not every fused attention.
    model.set_attn_implementation("eager")
    window = getattr(model.config, "cluster_window", None)
    clustering_flops = 0

    def stand_in(tokens: torch.Tensor, num_clusters: Sequence[int], *args, **kwargs) -> list[torch.Tensor]:
        nonlocal clustering_flops
        batch_size, num_tokens, channels = tokens.shape
        num_compared = num_tokens if window is None else min(num_tokens, window**2)
        clustering_flops += 2 * batch_size * num_tokens * num_compared * channels
        return [tokens.new_zeros(batch_size, num_tokens, dtype=torch.long) for _ in num_clusters]

    with (
        mock.patch.object(modeling_clustr_attention, "find_clusters", stand_in),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(torch.empty(1, 3, height, width, device="meta"))
    by_operator = counter.get_flop_counts()["Global"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": counter.get_total_flops() + clustering_flops,
        "clustering_flops": clustering_flops,
        "paper_macs": sum(by_operator.get(operator, 0) for operator in LAYER_OPERATORS) // 2,
    }


def model_memory(
    name: str, speed_options: Mapping[str, Any], setting: Setting, pass_name: str, device: str, seed: int
) -> dict[str, int]:
    """Peak memory of an eager pass of a model; to be called in a fresh process."""
    torch.manual_seed(seed)
    model = build_model(name, speed_options).to(device)
    step = make_step(model, image_like_noise(setting, seed).to(device), pass_name, compiled=False)
    return _peak_memory(lambda: (step(), step()), device)  # the second training step finds the optimizer's state


def clustering_memory(algorithm: str, num_tokens: int, channels: int, device: str, seed: int) -> dict[str, int]:
    """Peak memory of one of `CLUSTERINGS`; to be called in a fresh process."""
    tokens = random_tokens(num_tokens, channels, seed).to(device)
    return _peak_memory(lambda: CLUSTERINGS[algorithm](tokens, benchmark_num_clusters(num_tokens)), device)


def in_fresh_process(function: Callable, *args) -> Any:
    """Result of the function in a new process, which has no other model's memory to begin with."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def random_tokens(num_tokens: int, channels: int, seed: int) -> torch.Tensor:
    """Normally distributed tokens of one image, (1, N, C)."""
    return torch.randn(1, num_tokens, channels, generator=torch.Generator().manual_seed(seed))


def benchmark_num_clusters(num_tokens: int) -> list[int]:
    """M of both scales of the paper's first stage."""
    return [max(1, num_tokens // ratio) for ratio in (64, 16)]


@torch.no_grad()
def direct_clusters(tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int = 5) -> list[torch.Tensor]:
    """
    Eqs. 1 to 3 as they are written, on whole N x N matrices, anew for each scale: what `find_clusters` is compared to.

    The same arguments and result as `find_clusters` for tokens without ties and at most N clusters.
    """
    return [_direct_scale(tokens, number, num_neighbors) for number in num_clusters]


def _direct_scale(tokens: torch.Tensor, num_clusters: int, num_neighbors: int) -> torch.Tensor:
    """(B, N, C) -> (B, N)."""
    num_tokens, channels = tokens.shape[1:]
    distance = torch.cdist(tokens, tokens) / math.sqrt(channels)
    nearest = distance.topk(num_neighbors, dim=-1, largest=False).values
    density = nearest.square().mean(dim=-1).neg().exp()  # Eq. 1

    is_denser = density.unsqueeze(1) > density.unsqueeze(2)
    separation, parent = distance.masked_fill(~is_denser, torch.inf).min(dim=-1)  # Eq. 2
    separation = torch.where(separation.isinf(), distance.amax(dim=-1), separation)
    centers = (density * separation).topk(num_clusters, dim=-1).indices

    # A token that is no centre follows its nearest denser token, that one its own, up to a centre (section 3.1).
    parent = parent.scatter(1, centers, centers)
    for _ in range((num_tokens - 1).bit_length()):
        parent = parent.gather(1, parent)
    label = torch.arange(num_clusters, device=tokens.device).expand_as(centers)
    return torch.zeros_like(parent).scatter(1, centers, label).gather(1, parent)


CLUSTERINGS: dict[str, Callable[[torch.Tensor, Sequence[int]], list[torch.Tensor]]] = {
    "find_clusters": find_clusters,
    "direct": direct_clusters,
}


def _compile(model: nn.Module) -> Callable:
    # Transformers' models share one outermost function, so each counts as a recompilation of it; the default allows 8.
    torch._dynamo.config.recompile_limit = 64
    # As a whole or not at all: nothing falls back to eager unnoticed.
    return torch.compile(model, fullgraph=True, dynamic=False)


def _synchronize(device: str):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(action: Callable[[], Any], device: str) -> dict[str, int]:
    """Peak bytes, and how far that is above what was held before: on the GPU, or resident in this process."""
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        action()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        before, _ = _resident_bytes()
        action()
        _, peak = _resident_bytes()
    return {"peak_bytes": peak, "increase_bytes": peak - before}


def _resident_bytes() -> tuple[int, int]:
    """
    Resident set of this process now, and its peak (Linux).

    Not `getrusage`: its `ru_maxrss` starts at the size of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return kibibytes["VmRSS"] * 1024, kibibytes["VmHWM"] * 1024
