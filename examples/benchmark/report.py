# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What benchmark.py says about its results: markdown tables and a picture."""

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmark.models import is_clustr
from clustr_hf.visualization import BLUE, ORANGE


PANEL_SIZE = (6.5, 3.8)  # inches
COLUMNS = 2  # or as many as there are precisions
NOT_KNOWN = "not known"


def markdown_tables(results: dict[str, Any]) -> str:
    """All results as markdown, a table for each section that has any."""
    sections = [_machine, _agreement, _operations, _times, _growth, _memory, _throughput, _clustering, _failures]
    return "\n\n".join(text for section in sections if (text := section(results))) + "\n"


def _machine(results: dict[str, Any]) -> str:
    rows = []
    for name, value in results["environment"].items():
        if value is not None:
            shown = f"{value / 1e9:.1f} GB" if name.endswith("_bytes") else str(value)
            rows.append([name.removesuffix("_bytes").replace("_", " "), shown])
    return _table(["machine and versions", ""], rows)


def _agreement(results: dict[str, Any]) -> str:
    header = ["tokens", "kind", "channels", "clustering by", "same cluster as on the CPU"]
    rows = [
        [
            *(str(entry[name]) for name in ("tokens", "kind", "channels", "clustering_path")),
            f"{entry['agreement']:.2%}",
        ]
        for entry in results["agreement"]
    ]
    return f"Clusters of float32 tokens, checked before anything is timed:\n\n{_table(header, rows)}" if rows else ""


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
    counts_memory = any(model["peak_bytes"] for entry in results["times"] for model in entry["models"].values())
    header += ["peak memory (MB)"] if counts_memory else []
    note = (
        "Times are medians; ratios are taken within each round. Clustering: the share of a forward's time that goes to "
        "`find_clusters`, from forwards of their own, and what ran. Peak memory: of the model and its pass, as torch "
        "counts it on accelerators. bfloat16: weights and images in it; autocast: float32 weights under autocast to "
        "bfloat16."
    )
    parts = [note] if results["times"] else []
    for entry in results["times"]:
        rounds = len(next(iter(entry["seconds"].values())))
        rows = []
        for name, model in entry["models"].items():
            share = f"{model['clustering_share']:.0%}" if "clustering_share" in model else ""
            paths = f" ({', '.join(model['clustering_paths'])})" if share else ""
            per_image = _number(1e3 * model["median_seconds_per_image"])
            peak = [_megabytes(model["peak_bytes"])] if counts_memory else []
            rows.append([name, per_image, *_ratio_cells(model["ratio"]), share + paths, *peak])
        parts.append(f"{_title(entry)}, {rounds} interleaved rounds:\n\n{_table(header, rows)}")
    return "\n\n".join(parts)


def _growth(results: dict[str, Any]) -> str:
    header = ["model", "mode", "pass", "precision", "batch", "exponent"]
    rows = [
        [
            *(str(entry[name]) for name in ("model", "mode", "pass", "dtype", "batch")),
            f"{entry['exponent']:.2f}",
        ]
        for entry in results["growth"]
    ]
    return f"Growth of time with pixels, time ~ pixels^exponent:\n\n{_table(header, rows)}" if rows else ""


def _memory(results: dict[str, Any]) -> str:
    header = ["model", "image", "batch", "pass", "precision", "peak (MB)", "above the loaded model (MB)"]
    rows = [
        [
            entry["model"],
            f"{entry['height']} x {entry['width']}",
            str(entry["batch"]),
            entry["pass"],
            entry["dtype"],
            *(_megabytes(entry[name]) for name in ("peak_bytes", "increase_bytes")),
        ]
        for entry in results["memory"]
    ]
    note = (
        "Peak memory of eager passes in a fresh process: its resident set, or what torch allocated on the accelerator."
    )
    return f"{note}\n\n{_table(header, rows)}" if rows else ""


def _throughput(results: dict[str, Any]) -> str:
    batches = sorted({row["batch"] for entry in results["throughput"] for row in entry["batches"]})
    header = ["model", *map(str, batches), "largest batch", "stopped by"]
    tables: dict[str, list[list[str]]] = {}
    for entry in results["throughput"]:
        rates = {row["batch"]: _number(row["images_per_second"]) for row in entry["batches"]}
        end = [str(max(rates, default=0)), entry["stopped_by"] or "--largest_batch"]
        row = [entry["model"], *(rates.get(batch, "") for batch in batches), *map(_cell, end)]
        tables.setdefault(_throughput_title(entry), []).append(row)
    note = ["Images a second by batch, eager; batches are doubled until memory is full:"] if tables else []
    return "\n\n".join(note + [f"{title}:\n\n{_table(header, rows)}" for title, rows in tables.items()])


def _failures(results: dict[str, Any]) -> str:
    header = ["failed", "model", "message"]
    rows = [[entry["measurement"], entry["model"] or "", _cell(entry["message"])] for entry in results["failures"]]
    return f"Failures:\n\n{_table(header, rows)}" if rows else ""


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
                increase = _megabytes(memory and memory["increase_bytes"])
                cells = [_number(1e3 * measured["median_seconds"]), *ratio, increase]
            rows.append([str(entry["tokens"]), str(entry["channels"]), clusters, name, *cells, same])
    note = (
        "Clustering alone, one image of random tokens. Direct: the paper's equations on whole N x N matrices, the "
        "reference of the ratios."
    )
    return f"{note}\n\n{_table(header, rows)}" if rows else ""


def _ratio_cells(ratio: dict[str, float] | None) -> list[str]:
    if ratio is None:
        return ["", "", ""]
    return [
        f"{ratio['median']:.2f}",
        f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}",
        f"{ratio['min']:.2f} to {ratio['max']:.2f}",
    ]


def _title(entry: dict[str, Any]) -> str:
    size = f"{entry['height']} x {entry['width']}, batch {entry['batch']}"
    return f"{size}, {entry['mode']} {entry['pass']}, {entry['dtype']}"


def _throughput_title(entry: dict[str, Any]) -> str:
    return f"{entry['height']} x {entry['width']}, {entry['pass']}, {entry['dtype']}"


def _number(value: float) -> str:
    """Three digits or more, without an exponent: 0.512, 5.12, 51.2, 512.3."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _megabytes(number: int | None) -> str:
    return NOT_KNOWN if number is None else f"{number / 1e6:.0f}"


def _cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return text.replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def draw_results(results: dict[str, Any]) -> bytes:
    """
    A PNG with a panel of bars for each timed setting, one of growth for each mode, pass, precision and batch, and one
    of images a second for each image size, pass and precision.
    """
    reference = results["arguments"]["reference"]
    growth = _group(results["growth"], lambda e: f"batch {e['batch']}, {e['mode']} {e['pass']}, {e['dtype']}")
    throughput = _group(results["throughput"], _throughput_title)
    draw = [partial(_draw_bars, entry=entry, reference=reference) for entry in results["times"]]
    draw += [partial(_draw_growth, title=title, lines=lines) for title, lines in growth.items()]
    draw += [partial(_draw_throughput, title=title, lines=lines) for title, lines in throughput.items()]
    columns = max(COLUMNS, len(results["arguments"]["dtypes"]))
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


def _draw_throughput(panel, title: str, lines: Sequence[dict[str, Any]]):
    """Images a second against the batch; where a line ends, memory was full."""
    for line in lines:
        style = "-" if is_clustr(line["model"]) else "--"
        batches = [row["batch"] for row in line["batches"]]
        rates = [row["images_per_second"] for row in line["batches"]]
        panel.semilogx(batches, rates, style, base=2, marker="o", markersize=4, label=line["model"])
    batches = sorted({row["batch"] for line in lines for row in line["batches"]})
    panel.set_xticks(batches, map(str, batches))
    panel.set_xticks([], minor=True)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("images in a batch")
    panel.set_ylabel("images a second")
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
