# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The devices of this machine: their names, clocks and memory.

The functions work for CUDA, ROCm, XPU, MPS and CPUs, through `torch.accelerator` and torch's module for each kind of
device. Values that a backend does not provide are None.
"""

import argparse
import gc
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.collect_env import get_nvidia_driver_version, run


ANY_ACCELERATOR = "accelerator"


def available_devices() -> list[str]:
    """The names of all devices: `cpu`, and those of the accelerator if torch finds one, such as cuda:0 and cuda:1."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]


def default_device() -> str:
    """The first accelerator, or the CPU if there is no accelerator."""
    return available_devices()[:2][-1]


def parse_device(text: str) -> str:
    """The argparse type of an available device. `accelerator` and names without an index mean the first one."""
    available = available_devices()
    for name in available:
        if text in (name, name.partition(":")[0]) or (text == ANY_ACCELERATOR and is_accelerator(name)):
            return name
    expected = f"{ANY_ACCELERATOR} or one of {', '.join(available)}"
    if len(available) == 1:
        expected = f"cpu, for torch {torch.__version__} finds no accelerator on this machine"
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


def is_accelerator(device: str | torch.device) -> bool:
    return torch.device(device).type != "cpu"


def device_name(device: str | torch.device) -> str:
    """The product name of a device, such as NVIDIA H100 80GB HBM3."""
    if is_accelerator(device) and (name := _call(device, "get_device_name", device)):
        return name
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return match[1] if match else platform.processor() or platform.machine()


def total_memory(device: str | torch.device) -> int | None:
    """Total memory of the accelerator in bytes."""
    return getattr(_call(device, "get_device_properties", device), "total_memory", None)


def describe_device(device: str) -> dict[str, Any]:
    """Name of the device; for an accelerator also memory, driver and runtime versions."""
    if not is_accelerator(device):
        return {"device": device_name(device)}
    driver = getattr(_call(device, "get_device_properties", device), "driver_version", None)
    if driver is None and torch.version.cuda:
        driver = get_nvidia_driver_version(run)
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": getattr(torch.version, "xpu", None)}
    capability = _call(device, "get_device_capability", device)
    return {
        "device": device_name(device),
        "device_memory_bytes": total_memory(device),
        "compute_capability": ".".join(map(str, capability)) if isinstance(capability, tuple) else None,
        "driver": driver,
        "runtime": next((f"{name} {version}" for name, version in versions.items() if version), None),
    }


class HostClock:
    """The clock of the host, read after the device has finished its work."""

    def __init__(self, device: str):
        self.device = device

    def mark(self) -> float:
        if is_accelerator(self.device):
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class EventClock:
    """The clock of the device: marks are events in its queue, and the host waits only when it reads them."""

    def __init__(self, make_event: Callable[[], Any]):
        self.make_event = make_event

    def mark(self) -> Any:
        event = self.make_event()
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def make_clock(device: str) -> HostClock | EventClock:
    """The clock of the device, or of the host if the device has none. Makes the device the current one."""
    if not is_accelerator(device):
        return HostClock(device)
    index = torch.device(device).index
    if index is not None:
        _call(device, "set_device", index)
    for make_event in _event_makers(device):
        clock = EventClock(make_event)
        try:
            clock.seconds(clock.mark(), clock.mark())
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            continue
        return clock
    return HostClock(device)


def _event_makers(device: str) -> list[Callable[[], Any]]:
    return [
        lambda: torch.Event(device=device, enable_timing=True),
        lambda: torch.get_device_module(device).Event(enable_timing=True),
    ]


def allocated_memory(device: str | torch.device) -> int | None:
    """Bytes that torch has allocated for tensors on the accelerator."""
    return _call(device, "memory_allocated", device)


def peak_memory(action: Callable[[], Any], device: str | torch.device) -> dict[str, int | None]:
    """
    Measure the peak memory of an action.

    Returns:
        `dict[str, int | None]`: `peak_bytes`, allocated on the accelerator or, on a CPU, resident in this process; and
        `increase_bytes`, the difference to the memory before the action. None if the backend does not count memory.
    """
    if not is_accelerator(device):
        before, _ = _resident_bytes()
        action()
        _, peak = _resident_bytes()
        return {"peak_bytes": peak, "increase_bytes": peak - before}
    before = allocated_memory(device)
    _call(device, "reset_peak_memory_stats", device)
    action()
    peak = _call(device, "max_memory_allocated", device)
    return {"peak_bytes": peak, "increase_bytes": None if None in (peak, before) else peak - before}


def free_memory(device: str | torch.device) -> None:
    """Free cached memory, including the memory of models that only reference cycles keep alive."""
    gc.collect()
    if is_accelerator(device):
        _call(device, "empty_cache")


def _call(device: str | torch.device, function: str, *args) -> Any:
    """Call a function of the torch module of the accelerator; None if the module lacks the function."""
    call = getattr(torch.get_device_module(device), function, None)
    return None if call is None else call(*args)


def _resident_bytes() -> tuple[int, int]:
    """
    The resident set size of this process and its peak, in bytes (Linux).

    `getrusage` is not an alternative: its `ru_maxrss` starts at the size of the parent process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return kibibytes["VmRSS"] * 1024, kibibytes["VmHWM"] * 1024
