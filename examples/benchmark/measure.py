# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
How benchmark.py measures: time in interleaved rounds, memory in fresh processes, operations without running anything.

Shapes: B images, N tokens, C channels, M clusters.
"""

import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmark.attempts import attempt
from benchmark.models import NUM_LABELS, build_model
from clustr_hf.remote_code import modeling_clustr_attention
from clustr_hf.remote_code.clustering_clustr import clustering_path, find_clusters, reference_clusters
from clustr_hf.training.devices import EventClock, HostClock, free_memory, make_clock, peak_memory


# Precisions: weights and images in one dtype, or float32 weights under autocast to bfloat16 as Trainer's --bf16 has it.
DTYPES = ("float32", "bfloat16", "autocast")

# For images a second: timed passes of each batch, and the different images in it (their noise is drawn on the CPU).
BATCH_REPEATS = 5
MOST_DIFFERENT_IMAGES = 32

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
    noise = torch.zeros(batch, 3, height, width, device="cpu")
    for cell in cells:
        octave = torch.randn(batch, 3, -(-height // cell), -(-width // cell), generator=generator, device="cpu")
        noise += nn.functional.interpolate(octave, size=(height, width), mode="bilinear")
    return noise / noise.std()


def image_like_tokens(seed: int) -> torch.Tensor:
    """Patches of 4 x 4 pixels of an image-like noise of 224 x 224 pixels, (1, 3136, 48)."""
    return nn.functional.pixel_unshuffle(image_like_noise(Setting(224, 224, 1), seed), 4).flatten(2).mT


def make_step(
    model: nn.Module, pixel_values: torch.Tensor, pass_name: str, compiled: bool, dtype: str = "float32"
) -> Callable[[], None]:
    """
    What is timed: a `"forward"` in inference mode; a `"backward"`, which is a forward with loss and its gradients; or a
    `"training"` step, which is both and AdamW. The loss of a backbone is the sum of the means of its maps.

    Args:
        model, pixel_values: On the same device, in float32; with `dtype="bfloat16"` both are cast.
        pass_name (`str`): Which pass.
        compiled (`bool`): Whether the model is compiled.
        dtype (`str`, defaults to `"float32"`): One of `DTYPES`.
    """
    if dtype == "bfloat16":
        model, pixel_values = model.to(torch.bfloat16), pixel_values.to(torch.bfloat16)
    run = _compile(model) if compiled else model
    if pass_name == "forward":
        model.eval()

        def forward():
            with torch.inference_mode(), _autocast(pixel_values.device, dtype):
                run(pixel_values)

        return forward
    return _training_step(model, run, pixel_values, pass_name, dtype)


def _training_step(
    model: nn.Module, run: Callable, pixel_values: torch.Tensor, pass_name: str, dtype: str
) -> Callable[[], None]:
    """`run` is the model or its compiled form."""
    model.train()
    labels = torch.arange(len(pixel_values), device=pixel_values.device) % NUM_LABELS
    is_backbone = hasattr(model, "out_features")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def train():
        with _autocast(pixel_values.device, dtype):
            if is_backbone:
                loss = sum(feature_map.mean() for feature_map in run(pixel_values).feature_maps)
            else:
                loss = run(pixel_values, labels=labels).loss
        loss.backward()
        if pass_name == "training":
            optimizer.step()
        optimizer.zero_grad()

    return train


def seconds_of(action: Callable[[], Any], clock: HostClock | EventClock) -> float:
    """Time of one call, with all that it started on the device."""
    start = clock.mark()
    action()
    return clock.seconds(start, clock.mark())


def interleaved_seconds(
    actions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int, seed: int, device: str, description: str
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """
    Seconds of every action in every round. Each round runs each action once, in an order shuffled anew, so that what
    else the machine does meets all of them alike; the actions of a round can be compared.

    Returns:
        `tuple[dict[str, list[float]], dict[str, str]]`: the seconds; and the message of each action that failed, which
        has no seconds and is not called again.
    """
    names, order, clock = list(actions), random.Random(seed), make_clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    calls = [(name, False) for name in names for _ in range(warmup)]
    calls += [(name, True) for _ in range(rounds) for name in order.sample(names, len(names))]
    for name, is_counted in tqdm(calls, desc=description):
        if name in failures:
            continue
        spent, failure = attempt(seconds_of, actions[name], clock)
        if failure is not None:
            failures[name] = failure
            del seconds[name]
            free_memory(device)
        elif is_counted:
            seconds[name].append(spent)
    return seconds, failures


def summarize(seconds: Mapping[str, Sequence[float]], reference: str, batch: int) -> dict[str, dict[str, Any]]:
    """
    Median time of each action, and its ratio to the reference's time in the same round: quartiles and extremes, or None
    if the reference has no times.
    """
    summary = {}
    for name, times in seconds.items():
        ratio = None
        if reference in seconds:
            values = np.quantile(np.divide(times, seconds[reference]), [0, 0.25, 0.5, 0.75, 1]).tolist()
            ratio = dict(zip(("min", "lower_quartile", "median", "upper_quartile", "max"), values))
        median = statistics.median(times)
        summary[name] = {"median_seconds": median, "median_seconds_per_image": median / batch, "ratio": ratio}
    return summary


def growth_exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """p of the power law seconds ~ pixels^p: the least-squares slope of their logarithms."""
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def clustering_share(step: Callable[[], None], device: str, repeats: int = 3) -> dict[str, Any]:
    """
    Share of an eager step's time that is spent in `find_clusters`, median of a few steps of their own.

    Returns:
        `dict[str, Any]`: `clustering_share`, and `clustering_paths`, the implementations that ran.
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
            whole = seconds_of(step, clock)
            shares.append(sum(clock.seconds(*span) for span in spans) / whole)
    return {"clustering_share": statistics.median(shares), "clustering_paths": sorted(paths)}


def device_agreement(device: str, seed: int) -> list[dict[str, Any]]:
    """
    Whether clusters on the device are those of the CPU, in float32: for random and for image-like tokens the share of
    equal labels, and which implementation the device ran.
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


def images_a_second(
    model: nn.Module,
    size: tuple[int, int],
    pass_name: str,
    dtype: str,
    device: str,
    largest_batch: int | None,
    seed: int,
) -> dict[str, Any]:
    """
    Images a second of an eager pass for batches of 1, 2, 4, ... images, until memory is full or `largest_batch`.

    Returns:
        `dict[str, Any]`: `batches`, a list with `batch`, `images_per_second` and `peak_bytes` of each one that fits,
        and `stopped_by`, the message of the failure that ended the list, or None.
    """
    batches, stopped_by = [], None
    for batch in (2**power for power in itertools.count()):
        if largest_batch is not None and batch > largest_batch:
            break
        measured, stopped_by = attempt(_time_batch, model, Setting(*size, batch), pass_name, dtype, device, seed)
        free_memory(device)
        if stopped_by is not None:
            break
        batches.append({"batch": batch, **measured})
    return {"batches": batches, "stopped_by": stopped_by}


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


def _time_batch(
    model: nn.Module, setting: Setting, pass_name: str, dtype: str, device: str, seed: int
) -> dict[str, float | int | None]:
    noise = image_like_noise(setting._replace(batch=min(setting.batch, MOST_DIFFERENT_IMAGES)), seed).to(device)
    pixel_values = noise.repeat(-(-setting.batch // len(noise)), 1, 1, 1)[: setting.batch]
    step = make_step(model, pixel_values, pass_name, compiled=False, dtype=dtype)
    peak = peak_memory(lambda: (step(), step()), device)  # the warm-up
    clock = make_clock(device)
    seconds = statistics.median(seconds_of(step, clock) for _ in range(BATCH_REPEATS))
    return {"images_per_second": setting.batch / seconds, "peak_bytes": peak["peak_bytes"]}


def model_memory(
    name: str, speed_options: Mapping[str, Any], setting: Setting, pass_name: str, dtype: str, device: str, seed: int
) -> dict[str, int | None]:
    """Peak memory of an eager pass of a model; to be called in a fresh process."""
    torch.manual_seed(seed)
    model = build_model(name, speed_options).to(device)
    step = make_step(model, image_like_noise(setting, seed).to(device), pass_name, compiled=False, dtype=dtype)
    return peak_memory(lambda: (step(), step()), device)  # the second training step finds the optimizer's state


def clustering_memory(algorithm: str, num_tokens: int, channels: int, device: str, seed: int) -> dict[str, int | None]:
    """Peak memory of one of `CLUSTERINGS`; to be called in a fresh process."""
    tokens = random_tokens(num_tokens, channels, seed).to(device)
    return peak_memory(lambda: CLUSTERINGS[algorithm](tokens, benchmark_num_clusters(num_tokens)), device)


def random_tokens(num_tokens: int, channels: int, seed: int) -> torch.Tensor:
    """Normally distributed tokens of one image, (1, N, C)."""
    return torch.randn(1, num_tokens, channels, generator=torch.Generator().manual_seed(seed), device="cpu")


def benchmark_num_clusters(num_tokens: int) -> list[int]:
    """M of both scales of the paper's first stage."""
    return [max(1, num_tokens // ratio) for ratio in (64, 16)]


def direct_clusters(tokens: torch.Tensor, num_clusters: Sequence[int], num_neighbors: int = 5) -> list[torch.Tensor]:
    """
    The equations as written, on N x N matrices that are computed anew for each scale: the baseline of `find_clusters`.
    """
    return [reference_clusters(tokens, [number], num_neighbors)[0] for number in num_clusters]


CLUSTERINGS: dict[str, Callable[[torch.Tensor, Sequence[int]], list[torch.Tensor]]] = {
    "find_clusters": find_clusters,
    "direct": direct_clusters,
}


def _compile(model: nn.Module) -> Callable:
    # Transformers' models share one outermost function, so each counts as a recompilation of it; the default allows 8.
    torch._dynamo.config.recompile_limit = 64
    # As a whole or not at all: nothing falls back to eager unnoticed.
    return torch.compile(model, fullgraph=True, dynamic=False)


def _autocast(device: torch.device, dtype: str):
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "autocast" else nullcontext()
