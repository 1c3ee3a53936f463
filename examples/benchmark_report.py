# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What benchmark.py says about its results: markdown tables and a picture."""

import io
import math
from collections.abc import Sequence
from typing import Any

from benchmark_models import is_clustr
from matplotlib.figure import Figure

from clustr_hf.visualization import BLUE, ORANGE


PANEL_SIZE = (6.5, 3.8)  # inches
COLUMNS = 2


def markdown_tables(results: dict[str, Any]) -> str:
    """All results as markdown, a table for each section that has any."""
    environment = results["environment"]
    kernel = environment["clustering_kernel"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "transformers", "clustr_hf"))
    head = (
        f"{environment['device']}, {environment['threads']} threads, {versions}; "
        f"clustering by {f'the compiled kernel ({kernel})' if kernel else 'tensor operations'}."
    )
    sections = [_operations, _times, _growth, _memory, _clustering]
    return "\n\n".join([head, *(text for section in sections if (text := section(results)))]) + "\n"


def _operations(results: dict[str, Any]) -> str:
    header = ["model", "image", "parameters (M)", "GFLOPs", "of these clustering", "GMACs as the paper counts"]
    rows = [
        [
            entry["model"],
            f"{entry['height']} x {entry['width']}",
            f"{entry['parameters'] / 1e6:.2f}",
            *(f"{entry[name] / 1e9:.2f}" for name in ("flops", "clustering_flops", "paper_macs")),
        ]
        for entry in results["operations"]
    ]
    note = (
        "Operations of a forward for one image. GFLOPs: convolutions and all matrix products with those of attention "
        "and clustering, a multiply-add is two. As the paper counts: multiply-accumulates of convolutions and linear "
        "layers alone."
    )
    return f"{note}\n\n{_table(header, rows)}" if rows else ""


def _times(results: dict[str, Any]) -> str:
    reference = results["arguments"]["reference"]
    header = ["model", "ms an image", f"ratio to {reference}", "quartiles", "least to most", "clustering"]
    note = (
        "Times are medians; ratios are taken within each round. Clustering: the share of a forward's time that goes to "
        "`find_clusters`, from forwards of their own."
    )
    parts = [note] if results["times"] else []
    for entry in results["times"]:
        rounds = len(entry["seconds"][reference])
        rows = []
        for name, model in entry["models"].items():
            share = f"{model['clustering_share']:.0%}" if "clustering_share" in model else ""
            rows.append([name, f"{1e3 * model['median_seconds_per_image']:.1f}", *_ratio_cells(model["ratio"]), share])
        parts.append(f"{_title(entry)}, {rounds} interleaved rounds:\n\n{_table(header, rows)}")
    return "\n\n".join(parts)


def _growth(results: dict[str, Any]) -> str:
    header = ["model", "mode", "pass", "batch", "exponent"]
    rows = [
        [entry["model"], entry["mode"], entry["pass"], str(entry["batch"]), f"{entry['exponent']:.2f}"]
        for entry in results["growth"]
    ]
    return f"Growth of time with pixels, time ~ pixels^exponent:\n\n{_table(header, rows)}" if rows else ""


def _memory(results: dict[str, Any]) -> str:
    header = ["model", "image", "batch", "pass", "peak (MB)", "above the loaded model (MB)"]
    rows = [
        [
            entry["model"],
            f"{entry['height']} x {entry['width']}",
            str(entry["batch"]),
            entry["pass"],
            *(f"{entry[name] / 1e6:.0f}" for name in ("peak_bytes", "increase_bytes")),
        ]
        for entry in results["memory"]
    ]
    note = "Peak memory of eager passes in a fresh process: its resident set, or what torch allocated on the GPU."
    return f"{note}\n\n{_table(header, rows)}" if rows else ""


def _clustering(results: dict[str, Any]) -> str:
    header = ["tokens", "channels", "clusters", "algorithm", "ms", "ratio", "quartiles", "least to most"]
    header += ["memory above the tokens (MB)", "same cluster"]
    rows = []
    for entry in results["clustering"]:
        clusters = " + ".join(str(number) for number in entry["num_clusters"])
        same = "" if entry["agreement"] is None else f"{entry['agreement']:.2%}"
        for name, memory in entry["memory"].items():
            measured = entry["algorithms"].get(name)
            cells = ["skipped", "", "", "", ""]
            if measured:
                ratio = _ratio_cells(measured["ratio"]) if "direct" in entry["algorithms"] else ["", "", ""]
                increase = f"{memory['increase_bytes'] / 1e6:.0f}"
                cells = [f"{1e3 * measured['median_seconds']:.1f}", *ratio, increase]
            rows.append([str(entry["tokens"]), str(entry["channels"]), clusters, name, *cells, same])
    note = (
        "Clustering alone, one image of random tokens. Direct: the paper's equations on whole N x N matrices, the "
        "reference of the ratios."
    )
    return f"{note}\n\n{_table(header, rows)}" if rows else ""


def _ratio_cells(ratio: dict[str, float]) -> list[str]:
    return [
        f"{ratio['median']:.2f}",
        f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}",
        f"{ratio['min']:.2f} to {ratio['max']:.2f}",
    ]


def _title(entry: dict[str, Any]) -> str:
    return f"{entry['height']} x {entry['width']}, batch {entry['batch']}, {entry['mode']} {entry['pass']}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def draw_results(results: dict[str, Any]) -> bytes:
    """A PNG with a panel of bars for each timed setting, and one of growth for each mode, pass and batch."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in results["growth"]:
        groups.setdefault(f"batch {entry['batch']}, {entry['mode']} {entry['pass']}", []).append(entry)
    num_panels = len(results["times"]) + len(groups)
    rows = math.ceil(num_panels / COLUMNS)
    figure = Figure(figsize=(COLUMNS * PANEL_SIZE[0], rows * PANEL_SIZE[1]), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel in panels[num_panels:]:
        panel.set_axis_off()
    for panel, entry in zip(panels, results["times"]):
        _draw_bars(panel, entry, results["arguments"]["reference"])
    for panel, (title, lines) in zip(panels[len(results["times"]) :], groups.items()):
        _draw_growth(panel, title, lines)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _draw_bars(panel, entry: dict[str, Any], reference: str):
    """Time per image of each model, with its ratio to the reference."""
    names = list(entry["models"])
    milliseconds = [1e3 * model["median_seconds_per_image"] for model in entry["models"].values()]
    bars = panel.barh(names, milliseconds, color=[ORANGE if is_clustr(name) else BLUE for name in names])
    panel.bar_label(bars, [f"{model['ratio']['median']:.2f}" for model in entry["models"].values()], padding=3)
    panel.invert_yaxis()
    panel.margins(x=0.15)
    panel.locator_params(axis="x", nbins=5)
    panel.set_title(_title(entry), fontsize=10)
    panel.set_xlabel(f"ms an image (beside the bars: ratio to {reference})")


def _draw_growth(panel, title: str, lines: Sequence[dict[str, Any]]):
    """Time against pixels on logarithmic axes; a power law is a straight line."""
    for line in lines:
        style = "-" if is_clustr(line["model"]) else "--"
        pixels = [height * width for height, width in line["sizes"]]
        per_image = [1e3 * seconds / line["batch"] for seconds in line["median_seconds"]]
        label = f"{line['model']}: {line['exponent']:.2f}"
        panel.loglog(pixels, per_image, style, marker="o", markersize=4, label=label)
    panel.set_xticks(pixels, [f"{height} x {width}" for height, width in line["sizes"]])
    panel.set_xticks([], minor=True)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("image, placed by its pixels")
    panel.set_ylabel("ms an image")
    panel.legend(title="exponent", loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, title_fontsize=7)
