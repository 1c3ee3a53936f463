# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The measurements of models: one function for each section of the results."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmark.measurements.attempts import attempt
from benchmark.measurements.clusterings import clustering_share
from benchmark.measurements.inputs import Setting, image_like_noise
from benchmark.measurements.memory import model_memory
from benchmark.measurements.operations import count_operations
from benchmark.measurements.steps import make_step
from benchmark.measurements.throughput import images_per_second
from benchmark.measurements.timing import interleaved_seconds, summarize
from benchmark.models import build_model, is_clustr
from clustr_hf.devices import (
    allocated_memory,
    free_memory,
    is_accelerator,
    peak_memory,
)


def speed_options(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the speed options, for the models whose names switch them on."""
    return {name: getattr(args, name) for name in ("cluster_window", "cluster_sharing", "max_clusters")}


def count_model(args: argparse.Namespace, name: str, height: int, width: int) -> dict[str, Any]:
    """Parameters and operations of a model."""
    with torch.device("meta"):
        model = build_model(name, speed_options(args))
    return {"model": name, "height": height, "width": width, **count_operations(model, height, width)}


def time_models(args: argparse.Namespace, setting: Setting, pass_name: str, dtype: str, mode: str) -> dict[str, Any]:
    """Times of all models in interleaved rounds; the models are in memory during this measurement only."""
    free_memory(args.device)
    torch.compiler.reset()
    torch.manual_seed(args.seed)
    pixel_values = image_like_noise(setting, args.seed).to(args.device)
    steps, peaks, failures = {}, {}, {}
    for name in args.models:
        built, failure = attempt(build_step, args, name, pixel_values, pass_name, mode, dtype)
        if failure is None:
            steps[name], peaks[name] = built
        else:
            failures[name] = failure
            free_memory(args.device)
    description = f"{setting} {mode} {pass_name} {dtype}"
    seconds, failed = interleaved_seconds(steps, args.repeats, args.warmup, args.seed, args.device, description)
    failures |= failed
    summary = summarize(seconds, args.reference, setting.batch)
    for name, model in summary.items():
        model["peak_bytes"] = peaks[name]
        if mode == "eager" and pass_name == "forward" and is_clustr(name):
            share, failure = attempt(clustering_share, steps[name], args.device)
            model |= share or {}
            failures |= {f"clustering of {name}": failure} if failure is not None else {}
    which = {**setting._asdict(), "mode": mode, "pass": pass_name, "dtype": dtype}
    return {**which, "models": summary, "seconds": seconds, "failures": failures}


def build_step(
    args: argparse.Namespace, name: str, pixel_values: torch.Tensor, pass_name: str, mode: str, dtype: str
) -> tuple[Callable[[], None], int | None]:
    """A model's step and, on an accelerator, the peak memory of model and step, for which the step is run."""
    before = allocated_memory(args.device) if is_accelerator(args.device) else None
    model = build_model(name, speed_options(args)).to(args.device)
    step = make_step(model, pixel_values, pass_name, mode == "compiled", dtype)
    if before is None:
        return step, None
    step()
    step()  # the first step has created the optimizer's state
    return step, peak_memory(step, args.device)["peak_bytes"] - before


def measure_memory(args: argparse.Namespace, name: str, setting: Setting, pass_name: str, dtype: str) -> dict[str, Any]:
    """Peak memory of a model."""
    peak = model_memory(name, speed_options(args), setting, pass_name, dtype, args.device, args.seed)
    return {"model": name, **setting._asdict(), "pass": pass_name, "dtype": dtype, **peak}


def measure_throughput(
    args: argparse.Namespace, name: str, size: tuple[int, int], pass_name: str, dtype: str
) -> dict[str, Any]:
    """Images per second of a model in growing batches."""
    torch.manual_seed(args.seed)
    model = build_model(name, speed_options(args)).to(args.device)
    found = images_per_second(model, size, pass_name, dtype, args.device, args.largest_batch, args.seed)
    return {"model": name, "height": size[0], "width": size[1], "pass": pass_name, "dtype": dtype, **found}
