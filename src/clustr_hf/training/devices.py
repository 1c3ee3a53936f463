# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Devices: which are there, what they are, their clocks and their memory.

The same functions serve CUDA, ROCm, XPU, MPS and CPUs, through `torch.accelerator` and the module that torch has for
each kind of device. What a backend cannot tell is None.
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
    """`cpu`, and the devices of the accelerator if torch finds one: cuda:0, cuda:1, ..."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]


def default_device() -> str:
    """The first accelerator, or the CPU where there is none."""
    return available_devices()[:2][-1]


def parse_device(text: str) -> str:
    """For argparse: the name of a device that is there. `accelerator` and names without a number are the first one."""
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
    """The product's name, such as NVIDIA H100 80GB HBM3."""
    if is_accelerator(device) and (name := _call(device, "get_device_name", device)):
        return name
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return match[1] if match else platform.processor() or platform.machine()


def total_memory(device: str | torch.device) -> int | None:
    """Bytes of memory that the accelerator has."""
    return getattr(_call(device, "get_device_properties", device), "total_memory", None)


def describe_device(device: str) -> dict[str, Any]:
    """Name of the device and, of an accelerator, its memory and versions."""
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
    """The host's clock, read when the device has done all that it was given."""

    def __init__(self, device: str):
        self.device = device

    def mark(self) -> float:
        if is_accelerator(self.device):
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class EventClock:
    """The device's own clock: marks are events in its queue, and the host waits only where it reads them."""

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
    """The device's own clock if it has one, else the host's. Makes the device the current one, whose queue is timed."""
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
    """Bytes that torch's tensors take on the accelerator."""
    return _call(device, "memory_allocated", device)


def peak_memory(action: Callable[[], Any], device: str | torch.device) -> dict[str, int | None]:
    """
    Peak bytes while the action runs, and how far that is above what was held before: allocated on the accelerator, or
    resident in this process on a CPU. None where the backend does not count.
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


def free_memory(device: str | torch.device):
    """Give back what no tensor uses any more; cycles may hold the models of the measurement before."""
    gc.collect()
    if is_accelerator(device):
        _call(device, "empty_cache")


def _call(device: str | torch.device, function: str, *args) -> Any:
    """Result of a function of torch's module for the accelerator, None where the module has no such function."""
    call = getattr(torch.get_device_module(device), function, None)
    return None if call is None else call(*args)


def _resident_bytes() -> tuple[int, int]:
    """
    Resident set of this process now, and its peak (Linux).

    Not `getrusage`: its `ru_maxrss` starts at the size of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return kibibytes["VmRSS"] * 1024, kibibytes["VmHWM"] * 1024
