# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The results of a run and their files."""

import json
import os
from pathlib import Path
from typing import Any

from benchmark.measurements.timing import growth_exponent
from benchmark.report.pictures import draw_results
from benchmark.report.tables import markdown_tables


SECTIONS = ("agreement", "operations", "clustering", "times", "growth", "memory", "throughput", "failures")


def growth_of(times: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Growth of each model's time with the number of pixels, for modes, passes and batches timed at several sizes."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in times:
        groups.setdefault(tuple(entry[key] for key in ("mode", "pass", "dtype", "batch")), []).append(entry)
    growth = []
    for (mode, pass_name, dtype, batch), entries in groups.items():
        entries.sort(key=lambda entry: entry["height"] * entry["width"])
        sizes = [(entry["height"], entry["width"]) for entry in entries]
        pixels = [height * width for height, width in sizes]
        if len(set(pixels)) < 2:
            continue
        which = {"mode": mode, "pass": pass_name, "dtype": dtype, "batch": batch}
        for name in entries[0]["models"]:
            if not all(name in entry["models"] for entry in entries):  # it failed at one of the sizes
                continue
            seconds = [entry["models"][name]["median_seconds"] for entry in entries]
            line = {"sizes": sizes, "median_seconds": seconds, "exponent": growth_exponent(pixels, seconds)}
            growth.append({"model": name, **which, **line})
    return growth


def write_atomically(path: Path, content: bytes):
    """Write a file atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_results(results: dict[str, Any], folder: Path):
    """Write `benchmark.json`, `benchmark.md` and, if there is anything to draw, `benchmark.png`."""
    write_atomically(folder / "benchmark.json", json.dumps(results, indent=1).encode())
    write_atomically(folder / "benchmark.md", markdown_tables(results).encode())
    if results["times"] or results["throughput"]:
        write_atomically(folder / "benchmark.png", draw_results(results))
