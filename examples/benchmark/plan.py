# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The measurements of a run, in order."""

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmark.measurements.clustering import (
    compare_clusterings,
)
from benchmark.measurements.models import (
    count_model,
    measure_memory,
    measure_throughput,
    time_models,
)


class Measurement(NamedTuple):
    """A call whose result is one entry in a section of the results."""

    section: str
    title: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple


def planned_measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    """All measurements of a run; times come last, since compiled models take minutes to compile."""
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
        title = f"images per second of {name} {size[0]}x{size[1]} {pass_name} {dtype}"
        yield Measurement("throughput", title, measure_throughput, (args, name, size, pass_name, dtype))
    if args.repeats:
        for mode, *which in itertools.product(args.modes, args.settings, args.passes, args.dtypes):
            title = " ".join(["times of", *map(str, which), mode])
            yield Measurement("times", title, time_models, (args, *which, mode))
