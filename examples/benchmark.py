#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Time, memory and operations of ClusTR beside models of its size, in one process, round by round.

    python examples/benchmark.py --settings 224x4 512x1 --passes forward training --memory --output_dir out/benchmark
    python examples/benchmark.py --settings --clustering 3136x64 16384x64 65536x64 --output_dir out/clustering

After a warm-up of every model, each round times each model once, in an order shuffled anew. Ratios to the reference
model are taken within a round, so what slows the machine down for a while cancels. Models: see benchmark_models.py;
how each number comes about: benchmark_measure.py. Results are written after every measurement, so that an interrupted
run keeps what it has: `benchmark.json` with all raw times, `benchmark.md` with tables, `benchmark.png`.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmark_measure import (
    CLUSTERINGS,
    Setting,
    benchmark_num_clusters,
    clustering_memory,
    clustering_share,
    count_operations,
    growth_exponent,
    image_like_noise,
    in_fresh_process,
    interleaved_seconds,
    make_step,
    model_memory,
    random_tokens,
    summarize,
)
from benchmark_models import PEERS, build_model, is_clustr, is_model_name, least_image_side
from benchmark_report import draw_results, markdown_tables

import clustr_hf
from clustr_hf.clustering_kernel_clustr import supported_instruction_sets


CLUSTR_MODELS = ["clustr-tiny", "clustr-small", "clustr-base"]
DEFAULT_REFERENCE = "swin-small"
# Tokens up to which N x N matrices are made: at 20,000 each of the few that exist at a time takes 1.6 GB.
MOST_DIRECT_TOKENS = 20_000
# Share of tokens that must get the same cluster from both clusterings; rounding may swap centres of almost equal rank.
LEAST_AGREEMENT = 0.98


def parse_setting(text: str) -> Setting:
    match = re.fullmatch(r"(\d+)x(?:(\d+)x)?(\d+)", text)
    numbers = [int(number) for number in match.groups(default=match[1])] if match else [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"expected SIZExBATCH or HEIGHTxWIDTHxBATCH such as 224x4 or 800x1333x1, got {text!r}"
        )
    return Setting(*numbers)


def parse_tokens(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or int(match[1]) < 5 or int(match[2]) < 1:
        raise argparse.ArgumentTypeError(f"expected TOKENSxCHANNELS such as 3136x64, at least 5 tokens, got {text!r}")
    return int(match[1]), int(match[2])


def parse_model(text: str) -> str:
    if not is_model_name(text):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(PEERS)} or clustr-VARIANT[-backbone][+SWITCH...], VARIANT nano, tiny, small "
            f"or base, SWITCH window, sharing, max or options, got {text!r}"
        )
    return text


def number_from(least: int):
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time, memory and operations of ClusTR beside models of its size.")
    add = parser.add_argument
    add("--models", nargs="+", type=parse_model, default=[*CLUSTR_MODELS, *PEERS], metavar="MODEL")
    add("--reference", help="model that the ratios refer to; default: swin-small, or the first of --models")
    add(
        "--settings",
        nargs="*",
        type=parse_setting,
        default=[Setting(224, 224, 4)],
        help="SIZExBATCH or HEIGHTxWIDTHxBATCH",
    )
    add("--passes", nargs="+", choices=("forward", "backward", "training"), default=["forward"])
    add("--modes", nargs="+", choices=("eager", "compiled"), default=["eager"])
    add("--repeats", type=number_from(0), default=20, help="rounds; 0 leaves times out")
    add("--warmup", type=number_from(1), default=2, help="passes of each model before the first round")
    add("--memory", action="store_true", help="peak memory of each model in eager passes, each in a fresh process")
    add("--clustering", nargs="+", type=parse_tokens, default=[], help="TOKENSxCHANNELS to time find_clusters on")
    add("--cluster_window", type=number_from(1), default=28, help="value for models with +window or +options")
    add("--cluster_sharing", choices=("block", "stage"), default="stage", help="for +sharing or +options")
    add("--max_clusters", type=number_from(1), default=196, help="for +max or +options")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=number_from(0), default=0)
    add("--output_dir", type=Path, default=Path("out/benchmark"))
    args = parser.parse_args()

    args.models = list(dict.fromkeys(args.models))
    if args.reference is None:
        args.reference = DEFAULT_REFERENCE if DEFAULT_REFERENCE in args.models else args.models[0]
    if args.reference not in args.models:
        parser.error(f"argument --reference: expected one of the models {args.models}, got {args.reference!r}")
    for setting, name in itertools.product(args.settings, args.models):
        if min(setting.height, setting.width) < least_image_side(name):
            parser.error(f"argument --settings: expected at least {least_image_side(name)} for {name}, got {setting}")
    return args


def speed_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("cluster_window", "cluster_sharing", "max_clusters")}


def describe_environment(device: str) -> dict[str, Any]:
    """What the numbers depend on, besides the arguments."""
    instruction_sets = supported_instruction_sets()
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "clustering_kernel": instruction_sets[0] if instruction_sets and not on_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "clustr_hf": clustr_hf.__version__,
    }


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return match[1] if match else platform.processor() or platform.machine()


def measurements(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every measurement of the run, with the section of the results that it belongs to."""
    sizes = dict.fromkeys((setting.height, setting.width) for setting in args.settings)
    for (height, width), name in itertools.product(sizes, args.models):
        with torch.device("meta"):
            model = build_model(name, speed_options(args))
        counts = count_operations(model, height, width)
        yield "operations", {"model": name, "height": height, "width": width, **counts}
    if args.repeats:
        for setting, mode, pass_name in itertools.product(args.settings, args.modes, args.passes):
            yield "times", time_models(args, setting, mode, pass_name)
    if args.memory:
        for setting, pass_name, name in itertools.product(args.settings, args.passes, args.models):
            print(f"Memory of {name}, {setting}, {pass_name}")
            settings = (name, speed_options(args), setting, pass_name, args.device, args.seed)
            peak = in_fresh_process(model_memory, *settings)
            yield "memory", {"model": name, **setting._asdict(), "pass": pass_name, **peak}
    for num_tokens, channels in args.clustering:
        yield "clustering", compare_clusterings(args, num_tokens, channels)


def time_models(args: argparse.Namespace, setting: Setting, mode: str, pass_name: str) -> dict[str, Any]:
    """All models in interleaved rounds; only they are in memory, and only for this measurement."""
    gc.collect()  # cycles may hold the models of the measurement before
    torch.compiler.reset()
    torch.manual_seed(args.seed)
    pixel_values = image_like_noise(setting, args.seed).to(args.device)
    steps = {}
    for name in args.models:
        model = build_model(name, speed_options(args)).to(args.device)
        steps[name] = make_step(model, pixel_values, pass_name, compiled=mode == "compiled")
    description = f"{setting} {mode} {pass_name}"
    seconds = interleaved_seconds(steps, args.repeats, args.warmup, args.seed, args.device, description)
    summary = summarize(seconds, args.reference, setting.batch)
    if mode == "eager" and pass_name == "forward":
        for name in filter(is_clustr, args.models):
            summary[name]["clustering_share"] = clustering_share(steps[name], args.device)
    return {**setting._asdict(), "mode": mode, "pass": pass_name, "models": summary, "seconds": seconds}


def compare_clusterings(args: argparse.Namespace, num_tokens: int, channels: int) -> dict[str, Any]:
    """`find_clusters` beside the direct transcription of the equations: time, memory, and whether they agree."""
    tokens = random_tokens(num_tokens, channels, args.seed).to(args.device)
    num_clusters = benchmark_num_clusters(num_tokens)
    names, agreement = list(CLUSTERINGS), None
    if num_tokens > MOST_DIRECT_TOKENS:
        matrix = 4 * num_tokens**2 / 1e9
        print(f"{num_tokens} tokens: direct transcription skipped, each of its matrices would take {matrix:.0f} GB")
        names.remove("direct")
    else:
        ours, direct = (torch.stack(CLUSTERINGS[name](tokens, num_clusters)) for name in names)
        agreement = (ours == direct).double().mean().item()
        if agreement < LEAST_AGREEMENT:
            raise RuntimeError(
                f"find_clusters and the direct transcription must agree on {LEAST_AGREEMENT:.0%} of the tokens, "
                f"got {agreement:.1%} of {num_tokens}"
            )
    actions = {name: lambda cluster=CLUSTERINGS[name]: cluster(tokens, num_clusters) for name in names}
    description = f"{num_tokens}x{channels} clustering"
    seconds = interleaved_seconds(actions, max(1, args.repeats), args.warmup, args.seed, args.device, description)
    memory: dict[str, dict[str, int] | None] = dict.fromkeys(CLUSTERINGS)
    for name in names:
        memory[name] = in_fresh_process(clustering_memory, name, num_tokens, channels, args.device, args.seed)
    return {
        "tokens": num_tokens,
        "channels": channels,
        "num_clusters": num_clusters,
        "algorithms": summarize(seconds, names[-1], batch=1),
        "agreement": agreement,
        "memory": memory,
        "seconds": seconds,
    }


def growth_of(times: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Growth of each model's time with the pixels, where a mode, pass and batch was timed at several sizes."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in times:
        groups.setdefault((entry["mode"], entry["pass"], entry["batch"]), []).append(entry)
    growth = []
    for (mode, pass_name, batch), entries in groups.items():
        entries.sort(key=lambda entry: entry["height"] * entry["width"])
        sizes = [(entry["height"], entry["width"]) for entry in entries]
        pixels = [height * width for height, width in sizes]
        if len(set(pixels)) < 2:
            continue
        for name in entries[0]["models"]:
            seconds = [entry["models"][name]["median_seconds"] for entry in entries]
            line = {"sizes": sizes, "median_seconds": seconds, "exponent": growth_exponent(pixels, seconds)}
            growth.append({"model": name, "mode": mode, "pass": pass_name, "batch": batch, **line})
    return growth


def write_whole(path: Path, content: bytes):
    """Write a file that is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def main():
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    arguments = {name: value for name, value in vars(args).items() if name != "output_dir"}
    results: dict[str, Any] = {
        "environment": describe_environment(args.device),
        "arguments": {**arguments, "settings": [str(setting) for setting in args.settings]},
        **{section: [] for section in ("operations", "times", "growth", "memory", "clustering")},
    }
    for section, entry in measurements(args):
        results[section].append(entry)
        results["growth"] = growth_of(results["times"])
        write_whole(args.output_dir / "benchmark.json", json.dumps(results, indent=1).encode())
        write_whole(args.output_dir / "benchmark.md", markdown_tables(results).encode())
        if section == "times":
            write_whole(args.output_dir / "benchmark.png", draw_results(results))
    print(f"\n{markdown_tables(results)}\nWritten to {args.output_dir}")


if __name__ == "__main__":
    main()
