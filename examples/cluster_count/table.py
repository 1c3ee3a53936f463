# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Curves as tables."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmark.report.cells import markdown_table

from cluster_count.paired import full_points, standard_error


TITLES = {"fixed": "N / lambda in every image, times", "content": "by content, tolerance", "own": "as configured"}


def curve_table(curve: dict[str, Any]) -> str:
    """The points of one checkpoint."""
    header = ["clusters", f"{curve['metric'].removeprefix('eval_')} (%)", "per image", "between images", "ms", "time"]
    rows = []
    for point in curve["points"]:
        low, high = point["time_quartiles"]
        rows.append(
            [
                f"{TITLES.get(point['kind'], point['kind'])} {point['value']:g}",
                f"{100 * point['metrics'][curve['metric']]:.2f}",
                f"{point['clusters']:.0f}",
                f"± {point['clusters_std']:.0f}",
                f"{point['milliseconds']:.1f}",
                f"{point['time']:.2f} ({low:.2f} to {high:.2f})",
            ]
        )
    return markdown_table(header, rows)


def compare_table(groups: dict[str, list[dict[str, Any]]], metric: str) -> str:
    """
    Means over the seeds for each setting: share of the clusters, score with the difference from all clusters and its
    standard error, loss, and clusters relative to those with which a fixed number has the same loss.

    Args:
        groups (`dict[str, list[dict]]`): Title of a group of columns -> its points with their `seed`.
        metric (`str`): Name of the score.
    """
    name = metric.removeprefix("eval_").replace("_", " ")
    columns = ("share", f"{name} (%)", "loss", "of fixed")
    header = ["clusters", *(f"{title}: {column}".removeprefix(": ") for title in groups for column in columns)]
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
    full = full_points(points)
    share = statistics.mean(point["clusters"] / full[point["seed"]]["clusters"] for point in own)
    score = statistics.mean(100 * point["metrics"][metric] for point in own)
    loss = statistics.mean(point["metrics"]["eval_loss"] for point in own)
    differences = [100 * (point["metrics"][metric] - full[point["seed"]]["metrics"][metric]) for point in own]
    difference = "" if own[0] is full.get(own[0]["seed"]) else f" ({_with_error(differences, '+.1f')})"
    ratios = [share_of_equal_loss(point, [p for p in points if p["seed"] == point["seed"]]) for point in own]
    needed = "" if kind == "fixed" or None in ratios else _with_error(ratios, ".2f")
    return [f"{share:.3f}", f"{score:.1f}{difference}", f"{loss:.4f}", needed]


def _with_error(values: Sequence[float], form: str) -> str:
    """Mean and standard error."""
    mean, error = f"{statistics.mean(values):{form}}", standard_error(values)
    return mean if error is None else f"{mean} ± {error:{form.removeprefix('+')}}"


def share_of_equal_loss(point: dict, points: Sequence[dict]) -> float | None:
    """
    Clusters of a point, divided by those with which a fixed number has the same loss; None beyond the fixed
    numbers' curve, and if their loss does not rise with every cut of the clusters.
    """
    fixed = sorted((p for p in points if p["kind"] == "fixed"), key=lambda p: -p["clusters"])
    curve = [(p["metrics"]["eval_loss"], math.log(p["clusters"])) for p in fixed]
    if any(later <= earlier for (earlier, _), (later, _) in pairwise(curve)):
        return None
    loss = point["metrics"]["eval_loss"]
    for (low, first), (high, second) in pairwise(curve):
        if low <= loss <= high:
            return point["clusters"] / math.exp(first + (second - first) * (loss - low) / (high - low))
    return None
