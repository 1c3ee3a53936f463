# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The results as a picture."""

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmark.models import is_clustr
from benchmark.report.cells import throughput_title, title_of
from clustr_hf.visualization import BLUE, ORANGE


PANEL_SIZE = (6.5, 3.8)  # inches
MIN_COLUMNS = 2  # more if there are more precisions


def draw_results(results: dict[str, Any]) -> bytes:
    """
    A PNG with a panel of bars for each timed setting, a panel of growth for each mode, pass, precision and batch, and a
    panel of images per second for each image size, pass and precision.
    """
    reference = results["arguments"]["reference"]
    growth = _group(results["growth"], lambda e: f"batch {e['batch']}, {e['mode']} {e['pass']}, {e['dtype']}")
    throughput = _group(results["throughput"], throughput_title)
    draw = [partial(_draw_bars, entry=entry, reference=reference) for entry in results["times"]]
    draw += [partial(_draw_growth, title=title, lines=lines) for title, lines in growth.items()]
    draw += [partial(_draw_throughput, title=title, lines=lines) for title, lines in throughput.items()]
    columns = max(MIN_COLUMNS, len(results["arguments"]["dtypes"]))
    rows = math.ceil(len(draw) / columns)
    figure = Figure(figsize=(columns * PANEL_SIZE[0], rows * PANEL_SIZE[1]), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(draw) :]:
        panel.set_axis_off()
    for draw_on, panel in zip(draw, panels):
        draw_on(panel)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _group(entries: Sequence[dict[str, Any]], title: Callable[[dict], str]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(title(entry), []).append(entry)
    return groups


def _draw_bars(panel, entry: dict[str, Any], reference: str):
    """Time per image of each model, with its ratio to the reference."""
    names = list(entry["models"])
    milliseconds = [1e3 * model["median_seconds_per_image"] for model in entry["models"].values()]
    ratios = [model["ratio"] for model in entry["models"].values()]
    bars = panel.barh(names, milliseconds, color=[ORANGE if is_clustr(name) else BLUE for name in names])
    panel.bar_label(bars, [f"{ratio['median']:.2f}" if ratio else "" for ratio in ratios], padding=3)
    panel.invert_yaxis()
    panel.margins(x=0.15)
    panel.locator_params(axis="x", nbins=5)
    panel.set_title(title_of(entry), fontsize=10)
    panel.set_xlabel(f"ms per image (next to the bars: ratio to {reference})")


def _draw_growth(panel, title: str, lines: Sequence[dict[str, Any]]):
    """Time over pixels on logarithmic axes, where a power law is a straight line."""
    for line in lines:
        style = "-" if is_clustr(line["model"]) else "--"
        pixels = [height * width for height, width in line["sizes"]]
        per_image = [1e3 * seconds / line["batch"] for seconds in line["median_seconds"]]
        label = f"{line['model']}: {line['exponent']:.2f}"
        panel.loglog(pixels, per_image, style, marker="o", markersize=4, label=label)
    panel.set_xticks(pixels, [f"{height} x {width}" for height, width in line["sizes"]])
    panel.set_xticks([], minor=True)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("image size")
    panel.set_ylabel("ms per image")
    panel.legend(title="exponent", loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, title_fontsize=7)


def _draw_throughput(panel, title: str, lines: Sequence[dict[str, Any]]):
    """Images per second over the batch size; a line ends where memory was full."""
    for line in lines:
        style = "-" if is_clustr(line["model"]) else "--"
        batches = [row["batch"] for row in line["batches"]]
        rates = [row["images_per_second"] for row in line["batches"]]
        panel.semilogx(batches, rates, style, base=2, marker="o", markersize=4, label=line["model"])
    batches = sorted({row["batch"] for line in lines for row in line["batches"]})
    panel.set_xticks(batches, map(str, batches))
    panel.set_xticks([], minor=True)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("batch size")
    panel.set_ylabel("images per second")
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
