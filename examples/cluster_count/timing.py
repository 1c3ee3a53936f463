# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Time of ClusTR with a number of clusters that follows the content, beside the fixed number, and where it goes."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import load_dataset
from PIL import Image
from torch import nn
from transformers import set_seed

from cluster_count.arguments import TimeArguments
from cluster_count.measure import count, recorded_clusters
from cluster_count.search import find_smallest_tolerance
from clustr_hf import ClusTRConfig, ClusTRImageProcessor, ClusTRModel
from clustr_hf.remote_code import modeling_clustr_attention


PARTS = ("clustering", "merging", "attention", "feed-forward network")


def measure_time(args: TimeArguments) -> dict[str, Any]:
    """
    Time a model with random weights on photographs, one image at a time, in turn with both numbers of clusters.

    Returns:
        `dict`: `variant`, `size`, `images` and `threads`; `tolerance`, with which the searched images have `share` of
        their clusters on average; `ratio`, the quartiles of the time by content relative to the exact one; and
        `milliseconds`, for `exact` and `content` the median of each of `PARTS` and of the `total`. "attention" is what
        the layer does besides clustering and merging.
    """
    set_seed(0)
    config = ClusTRConfig.from_variant(args.variant, cluster_sharing=args.sharing)
    model = ClusTRModel(config).eval()
    images = read_images(args)
    tolerance, share = find_tolerance(model, images[: args.search_images], args.share)
    runs: dict[str, list[dict[str, float]]] = {"exact": [], "content": []}
    for name in runs:
        time_parts(model, images[0], None if name == "exact" else tolerance)  # warm-up
    for number, image in enumerate(images):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            runs[name].append(time_parts(model, image, None if name == "exact" else tolerance))
    ratios = [content["total"] / exact["total"] for exact, content in zip(runs["exact"], runs["content"])]
    quartiles = statistics.quantiles(ratios, n=4)
    medians = {
        name: {part: 1000 * statistics.median(run[part] for run in each) for part in (*PARTS, "total")}
        for name, each in runs.items()
    }
    settings = {"variant": args.variant, "size": args.size, "images": len(images), "threads": torch.get_num_threads()}
    return {**settings, "tolerance": tolerance, "share": share, "ratio": quartiles, "milliseconds": medians}


def read_images(args: TimeArguments) -> list[torch.Tensor]:
    """Photographs as pixel values, (1, 3, size, size) each."""
    rows = load_dataset("parquet", data_files=args.images, split="train")
    processor = ClusTRImageProcessor()
    step = max(1, len(rows) // args.num_images)
    images = []
    for index in range(0, step * args.num_images, step):
        image: Image.Image = rows[index]["image"].convert("RGB").resize((args.size, args.size))
        images.append(processor(image, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"])
    return images


def find_tolerance(model: nn.Module, images: list[torch.Tensor], share: float) -> tuple[float, float]:
    """The tolerance with which images have a share of their clusters on average, and the share that it gives."""
    full = count_all(model, images, None)
    tolerance = find_smallest_tolerance(
        lambda tolerance: count_all(model, images, tolerance) <= share * full, low=1e-8, num_steps=12
    )
    return tolerance, count_all(model, images, tolerance) / full


@torch.no_grad()
def count_all(model: nn.Module, images: list[torch.Tensor], tolerance: float | None) -> int:
    """Clusters of all images, blocks and scales."""
    model.set_cluster_budget(tolerance)
    with recorded_clusters(model) as found:
        for image in images:
            model(image)
    return sum(int(count(clusters).sum()) for clusters in found)


@torch.no_grad()
def time_parts(model: nn.Module, image: torch.Tensor, tolerance: float | None) -> dict[str, float]:
    """Seconds of the model for an image, and of its parts."""
    model.set_cluster_budget(tolerance)
    seconds = dict.fromkeys((*PARTS, "total"), 0.0)
    with timed_parts(model, seconds):
        start = time.perf_counter()
        model(image)
        seconds["total"] = time.perf_counter() - start
    seconds["attention"] -= seconds["clustering"] + seconds["merging"]
    return seconds


@contextmanager
def timed_parts(model: nn.Module, seconds: dict[str, float]) -> Iterator[None]:
    """Within this context, the parts of a model add their time to `seconds`."""
    original = modeling_clustr_attention.merge_clusters
    modeling_clustr_attention.merge_clusters = _timed(original, seconds, "merging")
    kinds = {"attention": "attention", "mlp": "feed-forward network", "clustering": "clustering"}
    timed = [
        (module, kinds[name.rsplit(".", 1)[-1]])
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in kinds
    ]
    for module, part in timed:
        module.forward = _timed(module.forward, seconds, part)
    try:
        yield
    finally:
        modeling_clustr_attention.merge_clusters = original
        for module, _ in timed:
            del module.forward


def _timed(function: Callable, seconds: dict[str, float], part: str) -> Callable:
    def call(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[part] += time.perf_counter() - start
        return result

    return call
