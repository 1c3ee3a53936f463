#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Compile the Triton kernels ahead of time, without a GPU, and report the registers and shared memory of each launch.

    python examples/compile_triton_kernels.py --targets sm_80 sm_90 gfx942 --output_dir out/triton

Every launch that clustering and aggregation make is recorded (both assignments, forward and backward) and compiled with
the same settings. `triton.json` and `triton.md` list registers of a thread, bytes that spill, and shared memory of a
program. The script fails if a kernel does not compile, spills, or takes more shared memory than the chip has.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clustr_hf.remote_code import clustering_triton_clustr, clustering_triton_merge_clustr
from clustr_hf.remote_code.clustering_triton_launches_clustr import choose_launch, launches_of, load_kernels


# Most shared memory of a program, in bytes.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
CHANNELS = (64, 128, 256, 320, 512)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


class KernelLaunch(NamedTuple):
    """A kernel with the types of its arguments and its constants, as Triton compiles it."""

    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]

    def source(self) -> ASTSource:
        kernel = getattr(load_kernels(), self.name)
        positions = {name: (position,) for position, name in enumerate(kernel.arg_names)}
        aligned = {positions[name]: [["tt.divisibility", 16]] for name, kind in self.signature if kind.startswith("*")}
        constants = {positions[name]: value for name, value in self.constants}
        return ASTSource(kernel, dict(self.signature), constants, aligned)


class Recorder:
    """Stands in for the module of kernels: launches are noted, different ones once, and counted instead of run."""

    def __init__(self):
        self.kernels = load_kernels()
        self.tl = self.kernels.tl
        self.launches: dict[KernelLaunch, None] = {}
        self.number = 0

    def __getattr__(self, name: str):
        kernel = getattr(self.kernels, name)

        class Launcher:
            def __getitem__(_, grid):
                return lambda *args, **settings: self._note(name, kernel, args, settings)

        return Launcher()

    def _note(self, name: str, kernel, args: tuple, settings: dict[str, Any]):
        self.number += 1
        options = tuple((key, settings.pop(key)) for key in ("num_warps", "num_stages") if key in settings)
        values = {**dict(zip(kernel.arg_names, args)), **settings}
        constant = {key for key, kind in kernel.fn.__annotations__.items() if kind is self.tl.constexpr}
        constant |= {key for key, value in values.items() if value is None}
        signature = tuple(
            (key, "constexpr" if key in constant else _type_name(values[key])) for key in kernel.arg_names
        )
        constants = tuple((key, values[key]) for key in kernel.arg_names if key in constant)
        self.launches[KernelLaunch(name, signature, constants, options)] = None


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def record_launches(target: str, channels: int, dtype: torch.dtype, num_neighbors: int = 5) -> list[KernelLaunch]:
    """All launches of clustering and aggregation of tokens with `channels` channels, on a chip."""
    tokens = torch.empty(2, 3136, channels, dtype=dtype, device="meta")
    launch = choose_launch(launches_of(target, target), 8 * tokens.element_size(), channels)
    weight = torch.empty(2, 3136, device="meta")
    recorder = Recorder()
    with (
        mock.patch.object(clustering_triton_clustr, "load_kernels", lambda: recorder),
        mock.patch.object(clustering_triton_merge_clustr, "load_kernels", lambda: recorder),
    ):
        for assignment in ("density_parent", "nearest_center"):
            clustering_triton_clustr.cluster(tokens, [49, 196], num_neighbors, assignment, launch)
        cluster_index = torch.empty(2, 3136, dtype=torch.long, device="meta")
        merged, weight_sum = clustering_triton_merge_clustr.launch_merge(tokens, weight, cluster_index, 49, 1e-6)
        arguments = (tokens, weight, cluster_index, merged, weight_sum, merged, 1e-6)
        clustering_triton_merge_clustr.launch_merge_gradients(*arguments)
    return list(recorder.launches)


def compile_launch(target: str, launch: KernelLaunch) -> dict[str, Any]:
    """Registers of a thread, bytes that spill, and shared memory of a program, in bytes."""
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    compiled = triton.compile(launch.source(), target=gpu, options=dict(launch.options))
    usage = read_nvidia_usage(target, compiled.asm["ptx"]) if nvidia else read_amd_usage(compiled.asm["amdgcn"])
    constants = dict(launch.constants)
    first_pointer = next(kind for _, kind in launch.signature if kind.startswith("*"))
    return {
        "target": target,
        "kernel": launch.name,
        "tokens": first_pointer[1:],
        "channels": constants.get("CHANNELS"),
        "neighbors": constants.get("NEIGHBORS"),
        "prefix": constants.get("PREFIX"),
        "warps": dict(launch.options).get("num_warps", 4),
        **usage,
        "shared_memory": compiled.metadata.shared,
        "shared_memory_limit": SHARED_MEMORY[target],
    }


def read_nvidia_usage(target: str, ptx: str) -> dict[str, int]:
    """What the assembler says of PTX code."""
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [PTXAS, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", report)]
    return {"registers": int(re.search(r"Used (\d+) registers", report)[1]), "spilled": sum(spills)}


def read_amd_usage(assembly: str) -> dict[str, int]:
    """What the assembly says of itself; spilled registers are counted at 4 bytes."""

    def read(name: str) -> int:
        return int(re.search(rf"\.{name}: *(\d+)", assembly)[1])

    return {
        "registers": read("vgpr_count"),
        "spilled": 4 * (read("vgpr_spill_count") + read("sgpr_spill_count")),
    }


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


def complaints(rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with a launch: registers that spill, or too much shared memory."""
    return [
        f"{row['kernel']} for {row['target']}, {row['tokens']} tokens of {row['channels']} channels: "
        f"{row['spilled']} bytes spill, {row['shared_memory']} of {row['shared_memory_limit']} bytes of shared memory"
        for row in rows
        if row["spilled"] or row["shared_memory"] > row["shared_memory_limit"]
    ]


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The sweep over matrix products by channels, all other kernels by chip; the most of any launch."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        is_sweep = row["kernel"] == "filter_nearest"
        key = (row["tokens"], row["channels"]) if is_sweep else ("any", 0)
        groups.setdefault((row["target"], row["kernel"], *key), []).append(row)
    lines = [
        "| chip | kernel | tokens | channels | warps | registers | spilled (bytes) | shared memory (bytes) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (target, kernel, tokens, channels), group in sorted(groups.items()):
        most = [max(row[name] for row in group) for name in ("warps", "registers", "spilled", "shared_memory")]
        cells = (target, f"`{kernel}`", tokens, channels or "any", *most)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--targets", nargs="+", choices=list(SHARED_MEMORY), default=list(SHARED_MEMORY))
    parser.add_argument("--channels", nargs="+", type=int, default=list(CHANNELS), help="channels of the tokens")
    parser.add_argument("--workers", type=int, default=2, help="number of kernels compiled at a time (default: 2)")
    parser.add_argument("--output_dir", type=Path, default=Path("out/triton"))
    args = parser.parse_args()
    if load_kernels().filter_nearest.__class__.__name__ != "JITFunction":
        parser.error(
            "kernels are interpreted, not compiled, with the environment variable TRITON_INTERPRET=1: unset it"
        )
    rows = list(compile_all(args.targets, args.channels, args.workers))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "triton.json").write_text(json.dumps(rows, indent=1))
    (args.output_dir / "triton.md").write_text(markdown_table(rows))
    print(markdown_table(rows))
    if found := complaints(rows):
        raise SystemExit("\n".join(found))
    print(f"{len(rows)} launches compiled, none spills; written to {args.output_dir}")


if __name__ == "__main__":
    main()
