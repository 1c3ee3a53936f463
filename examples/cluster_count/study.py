# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Measures the runs of the study: base models with all settings, fine-tuned models as they were fine-tuned."""

import json
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ablations.runs import Run, as_options
from benchmark.report.cells import markdown_table

from cluster_count.arguments import StudyArguments
from cluster_count.curve import CURVE, draw_curve
from cluster_count.figure import plot_curves
from clustr_hf.training.checkpoints import write_json


GROUPS = ("without training", "fine-tuned")


def measure_runs(runs: Sequence[Run], args: StudyArguments) -> None:
    """Measure the complete runs that have not been measured."""
    for run in runs:
        folder = run.folder / "cluster-count"
        if not run.is_complete() or (folder / CURVE).is_file():
            continue
        given = {**run.arguments, **run.housekeeping, "model_name_or_path": run.folder, "config_overrides": {}}
        options = as_options({**given, "output_dir": folder})
        settings = args.settings(run.task)
        for kind in ("fixed", "content"):
            options += [f"--{kind}", *(str(each.value) for each in settings if each.kind == kind)]
        draw_curve(run.task, options if run.row == "base" else [*options, "--own", "True"])


def report(runs: Sequence[Run], args: StudyArguments) -> str:
    """Write cluster_count.json, tables and pictures of the measured runs to the output folder; returns the tables."""
    texts, results = [], {}
    for task in ("classification", "segmentation"):
        groups = _read_points([run for run in runs if run.task == task])
        if not groups[GROUPS[0]]:
            continue
        metric = "eval_accuracy" if task == "classification" else "eval_mean_iou"
        results[task] = groups
        texts.append(f"### {task.capitalize()}\n\n{_table(groups, metric)}\n")
        drawn = {title: points for title, points in groups.items() if points}
        plot_curves(drawn, metric).savefig(Path(args.output_dir) / f"{task}.png", dpi=100)
    write_json(Path(args.output_dir) / CURVE, results)
    text = "\n".join(texts)
    (Path(args.output_dir) / "cluster_count.md").write_text(text)
    return text


def _read_points(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """The points of both groups; a fine-tuned point has the kind and the value that it was fine-tuned with."""
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for run in runs:
        path = run.folder / "cluster-count" / CURVE
        if not path.is_file():
            continue
        for point in json.loads(path.read_text())["points"]:
            if run.row != "base":
                kind, value = run.row.split("-", 1)
                point |= {"kind": kind, "value": float(value)}
            groups[GROUPS[run.row != "base"]].append({**point, "seed": run.seed})
    return groups


def _table(groups: dict[str, list[dict[str, Any]]], metric: str) -> str:
    """Scores, losses and clusters of each setting, and the share of the clusters that equal loss takes."""
    name = metric.removeprefix("eval_").replace("_", " ")
    header = [
        "clusters",
        *(f"{title}: {each}" for title in GROUPS for each in ("share", f"{name} (%)", "loss", "of fixed")),
    ]
    keys = dict.fromkeys((point["kind"], point["value"]) for points in groups.values() for point in points)
    rows = []
    for kind, value in keys:
        row = [f"{kind} {value:g}"]
        for points in groups.values():
            row += _cells(points, kind, value, metric)
        rows.append(row)
    return markdown_table(header, rows)


def _cells(points: list[dict], kind: str, value: float, metric: str) -> list[str]:
    own = [point for point in points if (point["kind"], point["value"]) == (kind, value)]
    if not own:
        return ["", "", "", ""]
    full = {point["seed"]: point for point in points if (point["kind"], point["value"]) == ("fixed", 1)}
    share = statistics.mean(point["clusters"] / full[point["seed"]]["clusters"] for point in own)
    score = statistics.mean(100 * point["metrics"][metric] for point in own)
    loss = statistics.mean(point["metrics"]["eval_loss"] for point in own)
    differences = [100 * (point["metrics"][metric] - full[point["seed"]]["metrics"][metric]) for point in own]
    difference = "" if own[0] is full.get(own[0]["seed"]) else f" ({_with_error(differences, '+.1f')})"
    ratios = [_share_of_equal_loss(point, [p for p in points if p["seed"] == point["seed"]]) for point in own]
    needed = "" if kind == "fixed" or None in ratios else _with_error(ratios, ".2f")
    return [f"{share:.3f}", f"{score:.1f}{difference}", f"{loss:.4f}", needed]


def _with_error(values: Sequence[float], form: str) -> str:
    """Mean and standard error."""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:{form.removeprefix('+')}}"


def _share_of_equal_loss(point: dict, points: Sequence[dict]) -> float | None:
    """Clusters of a point, divided by those with which a fixed number has the same loss; None beyond the curve."""
    curve = sorted((p["metrics"]["eval_loss"], math.log(p["clusters"])) for p in points if p["kind"] == "fixed")
    loss = point["metrics"]["eval_loss"]
    for (low, first), (high, second) in pairwise(curve):
        if low <= loss <= high and high > low:
            needed = first + (second - first) * (loss - low) / (high - low)
            return point["clusters"] / math.exp(needed)
    return None
