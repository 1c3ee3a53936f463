#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Time, memory and operations of ClusTR beside models of its size, in one process, round by round.

    python examples/benchmark.py --settings 224x4 512x1 --passes forward training --memory --output_dir out/benchmark
    python examples/benchmark.py --settings --clustering 3136x64 16384x64 65536x64 --output_dir out/clustering
    make benchmark-gpu    # a fixed set on an accelerator

After a warm-up of every model, each round times each model once, in an order shuffled anew. Ratios to the reference
model are taken within a round, so what slows the machine down for a while cancels. Models: see benchmark_models.py;
how each number comes about: benchmark_measure.py. Results are written after every measurement, so that an interrupted
run keeps what it has: `benchmark.json` with all raw times, `benchmark.md` with tables, `benchmark.png`.

On an accelerator the clusters are compared with the CPU's first, and a benchmark of wrong clusters is refused. Each
measurement there has a process of its own. A measurement or a model that fails, for want of memory or because it does
not compile, is listed in the report with its message, and the others go on.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import clustr_hf
from benchmark.arguments import parse_args
from benchmark.attempts import attempt, attempt_in_fresh_process
from benchmark.measure import (
    CLUSTERINGS,
    Setting,
    benchmark_num_clusters,
    clustering_memory,
    clustering_share,
    count_operations,
    device_agreement,
    growth_exponent,
    image_like_noise,
    images_a_second,
    interleaved_seconds,
    make_step,
    model_memory,
    random_tokens,
    summarize,
)
from benchmark.models import build_model, is_clustr
from benchmark.report import draw_results, markdown_tables
from clustr_hf.devices import allocated_memory, describe_device, free_memory, is_accelerator, peak_memory
from clustr_hf.remote_code.clustering_clustr import clustering_path
from clustr_hf.remote_code.clustering_kernel_clustr import supported_instruction_sets


# Tokens up to which N x N matrices are made: at 20,000 each of the few that exist at a time takes 1.6 GB.
MOST_DIRECT_TOKENS = 20_000
# Share of tokens that must get the same cluster from both clusterings; rounding may swap centres of almost equal rank.
LEAST_AGREEMENT = 0.98

SECTIONS = ("agreement", "operations", "clustering", "times", "growth", "memory", "throughput", "failures")


class Measurement(NamedTuple):
    """A call that gives one entry of a section of the results."""

    section: str
    title: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple


def planned_measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    """Every measurement of the run; compiled models come last, for they take minutes to compile."""
    sizes = dict.fromkeys((setting.height, setting.width) for setting in args.settings)
    for (height, width), name in itertools.product(sizes, args.models):
        yield Measurement("operations", f"operations of {name}", count_model, (args, name, height, width))
    for num_tokens, channels in args.clustering:
        title = f"clustering of {num_tokens}x{channels}"
        yield Measurement("clustering", title, compare_clusterings, (args, num_tokens, channels))
    each = list(itertools.product(args.passes, args.dtypes, args.models))
    if args.memory:
        for setting, (pass_name, dtype, name) in itertools.product(args.settings, each):
            title = f"memory of {name} {setting} {pass_name} {dtype}"
            yield Measurement("memory", title, measure_memory, (args, name, setting, pass_name, dtype))
    for size, (pass_name, dtype, name) in itertools.product(args.throughput, each):
        title = f"images a second of {name} {size[0]}x{size[1]} {pass_name} {dtype}"
        yield Measurement("throughput", title, measure_throughput, (args, name, size, pass_name, dtype))
    if args.repeats:
        for mode, *which in itertools.product(args.modes, args.settings, args.passes, args.dtypes):
            title = " ".join(["times of", *map(str, which), mode])
            yield Measurement("times", title, time_models, (args, *which, mode))


def speed_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("cluster_window", "cluster_sharing", "max_clusters")}


def count_model(args: argparse.Namespace, name: str, height: int, width: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = build_model(name, speed_options(args))
    return {"model": name, "height": height, "width": width, **count_operations(model, height, width)}


def time_models(args: argparse.Namespace, setting: Setting, pass_name: str, dtype: str, mode: str) -> dict[str, Any]:
    """All models in interleaved rounds; only they are in memory, and only for this measurement."""
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
    """A model's step; and the peak memory of both on an accelerator, where the step is run to learn it."""
    before = allocated_memory(args.device) if is_accelerator(args.device) else None
    model = build_model(name, speed_options(args)).to(args.device)
    step = make_step(model, pixel_values, pass_name, mode == "compiled", dtype)
    if before is None:
        return step, None
    step()
    step()  # with the optimizer's state, which the first step has made
    return step, peak_memory(step, args.device)["peak_bytes"] - before


def measure_memory(args: argparse.Namespace, name: str, setting: Setting, pass_name: str, dtype: str) -> dict[str, Any]:
    peak = model_memory(name, speed_options(args), setting, pass_name, dtype, args.device, args.seed)
    return {"model": name, **setting._asdict(), "pass": pass_name, "dtype": dtype, **peak}


def measure_throughput(
    args: argparse.Namespace, name: str, size: tuple[int, int], pass_name: str, dtype: str
) -> dict[str, Any]:
    torch.manual_seed(args.seed)
    model = build_model(name, speed_options(args)).to(args.device)
    found = images_a_second(model, size, pass_name, dtype, args.device, args.largest_batch, args.seed)
    return {"model": name, "height": size[0], "width": size[1], "pass": pass_name, "dtype": dtype, **found}


def compare_clusterings(args: argparse.Namespace, num_tokens: int, channels: int) -> dict[str, Any]:
    """`find_clusters` beside the direct transcription of the equations: time, memory, and whether they agree."""
    tokens = random_tokens(num_tokens, channels, args.seed).to(args.device)
    num_clusters = benchmark_num_clusters(num_tokens)
    agreement, failures = agreement_with_direct(tokens, num_clusters)
    names = list(CLUSTERINGS) if agreement is not None else ["find_clusters"]
    actions = {name: lambda cluster=CLUSTERINGS[name]: cluster(tokens, num_clusters) for name in names}
    description = f"{num_tokens}x{channels} clustering"
    rounds = max(1, args.repeats)
    seconds, failed = interleaved_seconds(actions, rounds, args.warmup, args.seed, args.device, description)
    failures |= failed
    memory: dict[str, dict[str, int | None] | None] = dict.fromkeys(CLUSTERINGS)
    for name in seconds:
        settings = (name, num_tokens, channels, args.device, args.seed)
        memory[name], failure = attempt_in_fresh_process(clustering_memory, *settings)
        failures |= {f"memory of {name}": failure} if failure is not None else {}
    return {
        "tokens": num_tokens,
        "channels": channels,
        "num_clusters": num_clusters,
        "algorithms": summarize(seconds, names[-1], batch=1),
        "agreement": agreement,
        "memory": memory,
        "seconds": seconds,
        "failures": failures,
    }


def agreement_with_direct(tokens: torch.Tensor, num_clusters: list[int]) -> tuple[float | None, dict[str, str]]:
    """Share of equal labels; or None, and why, where N x N matrices do not fit."""
    num_tokens = tokens.shape[1]
    if num_tokens > MOST_DIRECT_TOKENS:
        matrix = 4 * num_tokens**2 / 1e9
        print(f"{num_tokens} tokens: direct transcription skipped, each of its matrices would take {matrix:.0f} GB")
        return None, {}
    ours = CLUSTERINGS["find_clusters"](tokens, num_clusters)
    direct, failure = attempt(CLUSTERINGS["direct"], tokens, num_clusters)
    if failure is not None:
        free_memory(tokens.device)
        return None, {"direct": failure}
    agreement = (torch.stack(ours) == torch.stack(direct)).double().mean().item()
    if agreement < LEAST_AGREEMENT:
        raise RuntimeError(
            f"find_clusters and the direct transcription must agree on {LEAST_AGREEMENT:.0%} of the tokens, "
            f"got {agreement:.1%} of {num_tokens}"
        )
    return agreement, {}


def growth_of(times: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Growth of each model's time with the pixels, where a mode, pass and batch was timed at several sizes."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in times:
        groups.setdefault(tuple(entry[key] for key in ("mode", "pass", "dtype", "batch")), []).append(entry)
    growth = []
    for (mode, pass_name, dtype, batch), entries in groups.items():
        entries.sort(key=lambda entry: entry["height"] * entry["width"])
        sizes = [(entry["height"], entry["width"]) for entry in entries]
        pixels = [height * width for height, width in sizes]
        if len(set(pixels)) < 2:
            continue
        which = {"mode": mode, "pass": pass_name, "dtype": dtype, "batch": batch}
        for name in entries[0]["models"]:
            if not all(name in entry["models"] for entry in entries):  # it has failed at a size
                continue
            seconds = [entry["models"][name]["median_seconds"] for entry in entries]
            line = {"sizes": sizes, "median_seconds": seconds, "exponent": growth_exponent(pixels, seconds)}
            growth.append({"model": name, **which, **line})
    return growth


def write_whole(path: Path, content: bytes):
    """Write a file that is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def describe_environment(device: str) -> dict[str, Any]:
    """What the numbers depend on, besides the arguments. Nothing that names the machine or its folders."""
    instruction_sets = supported_instruction_sets()
    has_triton = importlib.util.find_spec("triton") is not None
    return {
        **describe_device(device),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "clustering_path": None if is_accelerator(device) else clustering_path(random_tokens(64, 8, seed=0), 5),
        "clustering_kernel": instruction_sets[0] if instruction_sets and not is_accelerator(device) else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__ if has_triton else None,
        "transformers": transformers.__version__,
        "clustr_hf": clustr_hf.__version__,
    }


def check_agreement(args: argparse.Namespace, results: dict[str, Any]) -> str | None:
    """Record how far the device's clusters are the CPU's; why the benchmark must not go on, or None."""
    found, failure = attempt_in_fresh_process(device_agreement, args.device, args.seed)
    if failure is not None:
        results["failures"].append({"measurement": "clusters as on the CPU", "model": None, "message": failure})
        return f"clustering on {args.device} failed: {failure}"
    results["agreement"] = found
    results["environment"]["clustering_path"] = found[0]["clustering_path"]
    least = min(entry["agreement"] for entry in found)
    if least < LEAST_AGREEMENT:
        expected = f"the CPU's for {LEAST_AGREEMENT:.0%} of the tokens"
        return f"the clusters on {args.device} must be {expected}, got {least:.1%}"
    return None


def measure(args: argparse.Namespace, measurement: Measurement, results: dict[str, Any]):
    """Add the measurement, and what of it failed, to the results."""
    section, title, function, arguments = measurement
    print(title)
    needs_process = section in ("memory", "throughput") or (is_accelerator(args.device) and section != "operations")
    entry, failure = (attempt_in_fresh_process if needs_process else attempt)(function, *arguments)
    failures = {None: failure} if entry is None else entry.pop("failures", {})
    results["failures"] += [
        {"measurement": title, "model": model, "message": message} for model, message in failures.items()
    ]
    if entry is not None and entry.get("seconds") != {}:  # else every model has failed
        results[section].append(entry)
    results["growth"] = growth_of(results["times"])


def write_results(results: dict[str, Any], folder: Path):
    write_whole(folder / "benchmark.json", json.dumps(results, indent=1).encode())
    write_whole(folder / "benchmark.md", markdown_tables(results).encode())
    if results["times"] or results["throughput"]:
        write_whole(folder / "benchmark.png", draw_results(results))


def main():
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    arguments = {name: value for name, value in vars(args).items() if name != "output_dir"}
    results: dict[str, Any] = {
        "environment": describe_environment(args.device),
        "arguments": {**arguments, "settings": [str(setting) for setting in args.settings]},
        **{section: [] for section in SECTIONS},
    }
    refusal = check_agreement(args, results) if is_accelerator(args.device) else None
    write_results(results, args.output_dir)
    if refusal is not None:
        sys.exit(refusal)
    for measurement in planned_measurements(args):
        measure(args, measurement, results)
        write_results(results, args.output_dir)
    print(f"\n{markdown_tables(results)}\nWritten to {args.output_dir}")
    if results["failures"]:
        print(f"{len(results['failures'])} failures, listed at the end of benchmark.md")
        if not any(results[section] for section in SECTIONS if section not in ("agreement", "failures")):
            sys.exit("every measurement failed")


if __name__ == "__main__":
    main()
