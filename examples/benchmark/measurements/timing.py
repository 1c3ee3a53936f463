# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Time in interleaved rounds."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmark.measurements.attempts import attempt
from clustr_hf.devices import EventClock, HostClock, free_memory, make_clock


def seconds_of(action: Callable[[], Any], clock: HostClock | EventClock) -> float:
    """Seconds of one call, including the work that it starts on the device."""
    start = clock.mark()
    action()
    return clock.seconds(start, clock.mark())


def interleaved_seconds(
    actions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int, seed: int, device: str, description: str
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """
    Seconds of every action in every round.

    Each round runs each action once, in a newly shuffled order, so that other load on the machine affects all actions
    alike and the actions of a round can be compared.

    Returns:
        `tuple[dict[str, list[float]], dict[str, str]]`: the seconds of each action; and the error message of each
        action that failed, which has no seconds and is not called again.
    """
    names, order, clock = list(actions), random.Random(seed), make_clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    calls = [(name, False) for name in names for _ in range(warmup)]
    calls += [(name, True) for _ in range(rounds) for name in order.sample(names, len(names))]
    for name, is_counted in tqdm(calls, desc=description):
        if name in failures:
            continue
        spent, failure = attempt(seconds_of, actions[name], clock)
        if failure is not None:
            failures[name] = failure
            del seconds[name]
            free_memory(device)
        elif is_counted:
            seconds[name].append(spent)
    return seconds, failures


def summarize(seconds: Mapping[str, Sequence[float]], reference: str, batch: int) -> dict[str, dict[str, Any]]:
    """
    Median time of each action, and quartiles and extremes of its ratio to the reference's time in the same round. The
    ratio is `None` if the reference has no times.
    """
    summary = {}
    for name, times in seconds.items():
        ratio = None
        if reference in seconds:
            values = np.quantile(np.divide(times, seconds[reference]), [0, 0.25, 0.5, 0.75, 1]).tolist()
            ratio = dict(zip(("min", "lower_quartile", "median", "upper_quartile", "max"), values))
        median = statistics.median(times)
        summary[name] = {"median_seconds": median, "median_seconds_per_image": median / batch, "ratio": ratio}
    return summary


def growth_exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """p of the power law seconds ~ pixels^p, as the least-squares slope of the logarithms."""
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])
