# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Measure time, memory and operations of ClusTR and of models of similar size.

    python examples/benchmark --settings 224x4 512x1 --passes forward training --memory --output_dir out/benchmark
    python examples/benchmark --settings --clustering 3136x64 16384x64 65536x64 --output_dir out/clustering
    make benchmark-gpu    # a fixed set of measurements on an accelerator

All models run in one process. After a warm-up, each round times every model once, in a newly shuffled order. Ratios to
the reference model are taken within a round, so that temporary load on the machine cancels out. `models.py` lists the
models. Results are written after every measurement, so that an interrupted run keeps them: `benchmark.json` with all
raw times, `benchmark.md` with tables, `benchmark.png`.

On an accelerator, the clusters are first compared with those of the CPU, and the benchmark stops if they differ; every
measurement runs in a process of its own. A measurement or model that fails, because it runs out of memory or does not
compile, is listed in the report with its error message, and the benchmark continues.
"""

import argparse
import sys
from typing import Any

from benchmark.arguments import parse_args
from benchmark.environment import describe_environment
from benchmark.measurements.attempts import attempt, attempt_in_fresh_process
from benchmark.measurements.clustering import (
    MIN_AGREEMENT,
)
from benchmark.measurements.clusterings import device_agreement
from benchmark.plan import Measurement, planned_measurements
from benchmark.report.tables import (
    markdown_tables,
)
from benchmark.results import SECTIONS, growth_of, write_results
from clustr_hf.devices import (
    is_accelerator,
)


def check_agreement(args: argparse.Namespace, results: dict[str, Any]) -> str | None:
    """Record how well the device's clusters agree with the CPU's; returns why the benchmark must stop, or `None`."""
    found, failure = attempt_in_fresh_process(device_agreement, args.device, args.seed)
    if failure is not None:
        results["failures"].append({"measurement": "clusters as on the CPU", "model": None, "message": failure})
        return f"clustering on {args.device} failed: {failure}"
    results["agreement"] = found
    results["environment"]["clustering_path"] = found[0]["clustering_path"]
    agreement = min(entry["agreement"] for entry in found)
    if agreement < MIN_AGREEMENT:
        expected = f"the CPU's for {MIN_AGREEMENT:.0%} of the tokens"
        return f"the clusters on {args.device} must be {expected}, got {agreement:.1%}"
    return None


def measure(args: argparse.Namespace, measurement: Measurement, results: dict[str, Any]):
    """Run a measurement, and add its entry and its failures to the results."""
    section, title, function, arguments = measurement
    print(title)
    needs_process = section in ("memory", "throughput") or (is_accelerator(args.device) and section != "operations")
    entry, failure = (attempt_in_fresh_process if needs_process else attempt)(function, *arguments)
    failures = {None: failure} if entry is None else entry.pop("failures", {})
    results["failures"] += [
        {"measurement": title, "model": model, "message": message} for model, message in failures.items()
    ]
    if entry is not None and entry.get("seconds") != {}:  # empty if every model failed
        results[section].append(entry)
    results["growth"] = growth_of(results["times"])


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
