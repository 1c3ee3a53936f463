# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of curves: a score against the number of clusters and against the time."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from clustr_hf.visualization.colors import BLUE, ORANGE


NAMES = {"fixed": "the same number in every image", "content": "chosen by content"}
COLORS = {"fixed": ORANGE, "content": BLUE}
STYLES = ("-", "--", ":")


def plot_curves(
    groups: Mapping[str, Sequence[dict[str, Any]]], metric: str, places: Sequence[str] = ("clusters", "milliseconds")
) -> Figure:
    """
    Curves of `"fixed"` and `"content"`, with a band for the standard error of several seeds.

    Args:
        groups (`Mapping[str, Sequence[dict]]`): Title of a group, such as "fine-tuned" -> its points, from [`measure`];
            points of one kind and value are those of several seeds.
        metric (`str`): Metric of the vertical axis, such as `"eval_accuracy"`.
        places (`Sequence[str]`): Quantities of the horizontal axes.
    """
    figure = Figure(figsize=(5 * len(places) + 1, 4), layout="constrained")
    axes = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for axis, place in zip(axes, places):
        for style, (group, points) in zip(STYLES, groups.items()):
            for kind, name in NAMES.items():
                own = [point for point in points if point["kind"] == kind]
                label = ", ".join(part for part in (name, group) if part)
                _draw(axis, own, place, metric, label, COLORS[kind], style)
        axis.set_xlabel("clusters of an image, mean" if place == "clusters" else "milliseconds per image")
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_ylabel(f"{metric.removeprefix('eval_').replace('_', ' ').replace('iou', 'IoU')} (%)")
    axes[0].legend()
    return figure


def _draw(axis, points: Sequence[dict], place: str, metric: str, label: str, color: str, style: str) -> None:
    by_value: dict[float, list[dict]] = {}
    for point in points:
        by_value.setdefault(point["value"], []).append(point)
    if not by_value:
        return
    line = []
    for same in by_value.values():
        scores = [100 * point["metrics"][metric] for point in same]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        line.append((statistics.mean(point[place] for point in same), statistics.mean(scores), error))
    x, y, error = zip(*sorted(line))
    axis.plot(x, y, style, color=color, label=label, marker="o")
    if any(error):
        low, high = ([a + sign * b for a, b in zip(y, error)] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=color, alpha=0.15)
