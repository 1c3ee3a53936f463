#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Compile the Triton kernels ahead of time, without a GPU, and report the registers and shared memory of each launch.

    python examples/benchmark/compile_triton_kernels.py --targets sm_80 sm_90 gfx942 --output_dir out/triton

All launches of clustering and aggregation are recorded (both assignments, forward and backward) and compiled with the
same settings. `triton.json` and `triton.md` list the registers of a thread, spilled bytes, and the shared memory of a
program. The script fails if a kernel does not compile, spills, or exceeds the shared memory of the chip.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package `benchmark`

from benchmark.report.cells import markdown_table
from benchmark.triton_programs.launches import record_launches
from benchmark.triton_programs.usage import SHARED_MEMORY, compile_launch
from clustr_hf.remote_code.clustering_triton_launches_clustr import load_kernels


CHANNELS = (64, 128, 256, 320, 512)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def compile_all(targets: list[str], channels: list[int], workers: int) -> Iterator[dict[str, Any]]:
    jobs = {
        (target, launch): None
        for target in targets
        for number in channels
        for dtype in DTYPES.values()
        for launch in record_launches(target, number, dtype)
    }
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(pool.map(lambda job: compile_launch(*job), jobs), total=len(jobs), desc="Compiling")


def find_problems(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each launch that spills registers or exceeds the shared memory."""
    return [
        f"{row['kernel']} for {row['target']}, {row['tokens']} tokens of {row['channels']} channels: "
        f"{row['spilled']} bytes spilled, {row['shared_memory']} of {row['shared_memory_limit']} bytes of shared memory"
        for row in rows
        if row["spilled"] or row["shared_memory"] > row["shared_memory_limit"]
    ]


def usage_table(rows: list[dict[str, Any]]) -> str:
    """Maxima over the launches of a kernel for a chip; for `filter_nearest`, by dtype and channels."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        is_sweep = row["kernel"] == "filter_nearest"
        key = (row["tokens"], row["channels"]) if is_sweep else ("any", 0)
        groups.setdefault((row["target"], row["kernel"], *key), []).append(row)
    header = ("chip", "kernel", "tokens", "channels", "warps", "registers", "spilled (bytes)", "shared memory (bytes)")
    lines = []
    for (target, kernel, tokens, channels), group in sorted(groups.items()):
        maxima = [max(row[name] for row in group) for name in ("warps", "registers", "spilled", "shared_memory")]
        lines.append(list(map(str, (target, f"`{kernel}`", tokens, channels or "any", *maxima))))
    return markdown_table(header, lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=list(SHARED_MEMORY),
        default=list(SHARED_MEMORY),
        help="chips to compile for; default: all",
    )
    parser.add_argument(
        "--channels", nargs="+", type=int, default=list(CHANNELS), help="channels of the tokens; default: %(default)s"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="number of kernels compiled at a time; default: %(default)s"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("out/triton"),
        help="folder for triton.json and triton.md; default: %(default)s",
    )
    args = parser.parse_args()
    if load_kernels().filter_nearest.__class__.__name__ != "JITFunction":
        parser.error("TRITON_INTERPRET=1 makes Triton interpret kernels instead of compiling them: unset this variable")
    rows = list(compile_all(args.targets, args.channels, args.workers))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "triton.json").write_text(json.dumps(rows, indent=1))
    (args.output_dir / "triton.md").write_text(usage_table(rows))
    print(usage_table(rows))
    if problems := find_problems(rows):
        raise SystemExit("\n".join(problems))
    print(f"{len(rows)} launches compiled, none spills; written to {args.output_dir}")


if __name__ == "__main__":
    main()
