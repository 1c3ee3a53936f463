"""Names, clocks and memory of devices; fake modules of torch stand in for accelerators."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from clustr_hf import devices


@pytest.fixture
def accelerator(monkeypatch):
    """Replace torch's module for the accelerator."""

    def pretend(**functions):
        module = SimpleNamespace(**functions)
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)
        return module

    return pretend


@pytest.mark.parametrize(
    "available, text, expected",
    [
        (["cpu"], "cpu", "cpu"),
        (["cpu", "cuda:0", "cuda:1"], "cpu", "cpu"),
        (["cpu", "cuda:0", "cuda:1"], "cuda", "cuda:0"),
        (["cpu", "cuda:0", "cuda:1"], "cuda:1", "cuda:1"),
        (["cpu", "xpu:0"], "accelerator", "xpu:0"),
        (["cpu", "mps:0"], "mps", "mps:0"),
    ],
)
def test_devices_that_are_there(monkeypatch, available, text, expected):
    monkeypatch.setattr(devices, "available_devices", lambda: available)
    assert devices.parse_device(text) == expected
    assert devices.default_device() == available[min(1, len(available) - 1)]


@pytest.mark.parametrize(
    "available, text, message",
    [
        (["cpu"], "cuda", "expected cpu, for torch .* finds no accelerator on this machine, got 'cuda'"),
        (["cpu", "cuda:0"], "cuda:1", "expected accelerator or one of cpu, cuda:0, got 'cuda:1'"),
        (["cpu", "cuda:0"], "xpu", "expected accelerator or one of cpu, cuda:0, got 'xpu'"),
        (["cpu", "cuda:0"], "meta", "got 'meta'"),
    ],
)
def test_devices_that_are_not_there(monkeypatch, available, text, message):
    monkeypatch.setattr(devices, "available_devices", lambda: available)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        devices.parse_device(text)


@pytest.mark.parametrize("kind, number", [(None, 0), ("cuda", 2), ("mps", 1)])
def test_lists_what_torch_finds(monkeypatch, kind, number):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)
    assert devices.available_devices() == ["cpu", *(f"{kind}:{index}" for index in range(number))]


class FakeEvent:
    """An event that the device reaches a millisecond after the previously recorded event."""

    reached = 0
    has_timing = True

    def record(self):
        FakeEvent.reached += 1
        self.milliseconds, self.is_waited_for = FakeEvent.reached, False

    def synchronize(self):
        self.is_waited_for = True

    def elapsed_time(self, end):
        if not self.has_timing:
            raise NotImplementedError
        assert end.is_waited_for
        return float(end.milliseconds - self.milliseconds)


def no_events():
    raise RuntimeError("no events")


@pytest.mark.parametrize("makers", [[FakeEvent], [no_events, FakeEvent]])
def test_accelerators_are_timed_by_events(monkeypatch, accelerator, makers):
    chosen = []
    accelerator(set_device=chosen.append)
    monkeypatch.setattr(devices, "_event_makers", lambda device: makers)
    clock = devices.make_clock("cuda:1")
    start = clock.mark()
    clock.mark()
    assert clock.seconds(start, clock.mark()) == pytest.approx(2e-3)
    assert chosen == [1]


@pytest.mark.parametrize("has_events", [True, False])
def test_devices_without_timed_events_are_waited_for(monkeypatch, accelerator, has_events):
    accelerator()
    waited_for = []
    monkeypatch.setattr(FakeEvent, "has_timing", False)
    monkeypatch.setattr(devices, "_event_makers", lambda device: [FakeEvent if has_events else no_events])
    monkeypatch.setattr(torch.accelerator, "synchronize", waited_for.append)
    clock = devices.make_clock("mps:0")
    assert clock.seconds(clock.mark(), clock.mark()) >= 0
    assert waited_for == ["mps:0"] * 2


def test_peak_memory_is_the_allocators(accelerator):
    bytes_held = {"now": 100, "peak": 900}
    accelerator(
        memory_allocated=lambda device: bytes_held["now"],
        reset_peak_memory_stats=lambda device: bytes_held.update(peak=bytes_held["now"]),
        max_memory_allocated=lambda device: bytes_held["peak"],
    )
    peak = devices.peak_memory(lambda: bytes_held.update(peak=350), "xpu:0")
    assert peak == {"peak_bytes": 350, "increase_bytes": 250}
    assert devices.allocated_memory("xpu:0") == 100


def test_what_a_backend_does_not_count_is_unknown(accelerator):
    accelerator()
    called = []
    peak = devices.peak_memory(lambda: called.append(1), "mps:0")
    assert peak == {"peak_bytes": None, "increase_bytes": None} and called == [1]
    assert devices.total_memory("mps:0") is None and devices.allocated_memory("mps:0") is None
    devices.free_memory("mps:0")
    assert set(devices.describe_device("mps:0")) == set(devices.describe_device("cuda:0"))


def test_an_accelerator_is_described(accelerator, monkeypatch):
    properties = SimpleNamespace(total_memory=80 * 10**9)
    accelerator(
        get_device_name=lambda device: "H100",
        get_device_properties=lambda device: properties,
        get_device_capability=lambda device: (9, 0),
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "get_nvidia_driver_version", lambda run: "580.1")
    assert devices.describe_device("cuda:0") == {
        "device": "H100",
        "device_memory_bytes": 80 * 10**9,
        "compute_capability": "9.0",
        "driver": "580.1",
        "runtime": "CUDA 13.0",
    }


def test_memory_of_a_process_counts_what_it_holds():
    held = []
    peak = devices.peak_memory(lambda: held.append(torch.ones(50_000_000 // 4)), "cpu")
    assert peak["peak_bytes"] > peak["increase_bytes"] >= 0
    assert set(devices.describe_device("cpu")) == {"device"}
