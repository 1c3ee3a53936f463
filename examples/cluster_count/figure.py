# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of curves: a score against the number of clusters and against the time."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from cluster_count.paired import full_points, standard_error
from clustr_hf.visualization.colors import BLUE, ORANGE


NAMES = {"fixed": "fixed number", "content": "by content"}
COLORS = {"fixed": ORANGE, "content": BLUE}
STYLES = ("-", "--", ":")


def plot_curves(
    groups: Mapping[str, Sequence[dict[str, Any]]], metric: str, places: Sequence[str] = ("clusters", "milliseconds")
) -> Figure:
    """
    Curves of `"fixed"` and `"content"`. Bands are standard errors of the change from the point with the most clusters,
    over several seeds.

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
                own = [point for point in _with_changes(points, metric) if point["kind"] == kind]
                label = ", ".join(part for part in (name, group) if part)
                _draw(axis, own, place, metric, label, COLORS[kind], style)
        axis.set_xlabel("clusters of an image, mean" if place == "clusters" else "milliseconds per image")
        axis.grid(alpha=0.3)
    _use_plain_numbers(axes[0])
    axes[0].set_ylabel(f"{metric.removeprefix('eval_').replace('_', ' ').replace('iou', 'IoU')} (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def _draw(axis, points: Sequence[dict], place: str, metric: str, label: str, color: str, style: str) -> None:
    by_value: dict[float, list[dict]] = {}
    for point in points:
        by_value.setdefault(point["value"], []).append(point)
    if not by_value:
        return
    line = []
    for same in by_value.values():
        error = standard_error([100 * point["change"] for point in same]) or 0.0
        score = statistics.mean(100 * point["metrics"][metric] for point in same)
        line.append((statistics.mean(point[place] for point in same), score, error))
    x, y, error = zip(*sorted(line))
    axis.plot(x, y, style, color=color, label=label, marker="o")
    if any(error):
        low, high = ([a + sign * b for a, b in zip(y, error)] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=color, alpha=0.15)


def _with_changes(points: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The points with the `change` of their score from that of their seed's point with the most clusters."""
    full = {seed: point["metrics"][metric] for seed, point in full_points(points).items()}
    return [{**point, "change": point["metrics"][metric] - full[point.get("seed")]} for point in points]


def _use_plain_numbers(axis) -> None:
    """A logarithmic axis with the ticks 1, 2 and 5 of each power of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def join_pictures(sources: Sequence[Path], target: Path) -> None:
    """Write pictures of the same height side by side."""
    pictures = [Image.open(source) for source in sources]
    joined = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width
    joined.save(target, optimize=True)
