# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Registers and shared memory of a compiled kernel."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from benchmark.triton_programs.launches import KernelLaunch


# Maximum shared memory of a program, in bytes.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


def compile_launch(target: str, launch: KernelLaunch) -> dict[str, Any]:
    """Registers of a thread, spilled bytes, and bytes of shared memory of a program."""
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    compiled = triton.compile(launch.source(), target=gpu, options=dict(launch.options))
    usage = read_nvidia_usage(compiled.asm["ptx"]) if nvidia else read_amd_usage(compiled.asm["amdgcn"])
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


def read_nvidia_usage(ptx: str) -> dict[str, int]:
    """Registers and spilled bytes, as reported by the assembler for PTX code."""
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [PTXAS, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", report)]
    return {"registers": int(re.search(r"Used (\d+) registers", report)[1]), "spilled": sum(spills)}


def read_amd_usage(assembly: str) -> dict[str, int]:
    """Registers and spilled bytes, as stated in the assembly; a spilled register counts as 4 bytes."""

    def read(name: str) -> int:
        return int(re.search(rf"\.{name}: *(\d+)", assembly)[1])

    return {
        "registers": read("vgpr_count"),
        "spilled": 4 * (read("vgpr_spill_count") + read("sgpr_spill_count")),
    }
