# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The results as Markdown tables."""

from typing import Any

from benchmark.report.cells import (
    escape_cell,
    format_number,
    markdown_table,
    megabytes,
    ratio_cells,
    throughput_title,
    title_of,
)
from benchmark.report.clustering import agreement_table, clustering_table


def markdown_tables(results: dict[str, Any]) -> str:
    """All results in Markdown, with a table for each section that has entries."""
    sections = [
        _machine,
        agreement_table,
        _operations,
        _times,
        _growth,
        _memory,
        _throughput,
        clustering_table,
        _failures,
    ]
    return "\n\n".join(text for section in sections if (text := section(results))) + "\n"


def _machine(results: dict[str, Any]) -> str:
    rows = []
    for name, value in results["environment"].items():
        if value is not None:
            shown = f"{value / 1e9:.1f} GB" if name.endswith("_bytes") else str(value)
            rows.append([name.removesuffix("_bytes").replace("_", " "), shown])
    return markdown_table(["machine and versions", ""], rows)


def _operations(results: dict[str, Any]) -> str:
    header = ["model", "image", "parameters (M)", "GFLOPs", "of which clustering", "GMACs, paper's count"]
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
        "Operations of a forward pass of one image. GFLOPs: convolutions and all matrix products, including those of "
        "attention and clustering; a multiply-add counts as two. Paper's count: multiply-accumulates of convolutions "
        "and linear layers only."
    )
    return f"{note}\n\n{markdown_table(header, rows)}" if rows else ""


def _times(results: dict[str, Any]) -> str:
    reference = results["arguments"]["reference"]
    header = ["model", "ms per image", f"ratio to {reference}", "quartiles", "range", "clustering"]
    counts_memory = any(model["peak_bytes"] for entry in results["times"] for model in entry["models"].values())
    header += ["peak memory (MB)"] if counts_memory else []
    note = (
        "Times are medians; ratios are taken within each round. Clustering: the share of a forward pass spent in "
        "`find_clusters`, from separate passes, and the implementation that ran. Peak memory: memory of the model and "
        "its pass, as counted by torch on accelerators. bfloat16: bfloat16 weights and images; autocast: float32 "
        "weights under autocast to bfloat16."
    )
    parts = [note] if results["times"] else []
    for entry in results["times"]:
        rounds = len(next(iter(entry["seconds"].values())))
        rows = []
        for name, model in entry["models"].items():
            share = f"{model['clustering_share']:.0%}" if "clustering_share" in model else ""
            paths = f" ({', '.join(model['clustering_paths'])})" if share else ""
            per_image = format_number(1e3 * model["median_seconds_per_image"])
            peak = [megabytes(model["peak_bytes"])] if counts_memory else []
            rows.append([name, per_image, *ratio_cells(model["ratio"]), share + paths, *peak])
        parts.append(f"{title_of(entry)}, {rounds} interleaved rounds:\n\n{markdown_table(header, rows)}")
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
    return f"Growth of time with pixels, time ~ pixels^exponent:\n\n{markdown_table(header, rows)}" if rows else ""


def _memory(results: dict[str, Any]) -> str:
    header = ["model", "image", "batch", "pass", "precision", "peak (MB)", "above the loaded model (MB)"]
    rows = [
        [
            entry["model"],
            f"{entry['height']} x {entry['width']}",
            str(entry["batch"]),
            entry["pass"],
            entry["dtype"],
            *(megabytes(entry[name]) for name in ("peak_bytes", "increase_bytes")),
        ]
        for entry in results["memory"]
    ]
    note = (
        "Peak memory of eager passes in a fresh process: its resident set, or torch's allocations on the accelerator."
    )
    return f"{note}\n\n{markdown_table(header, rows)}" if rows else ""


def _throughput(results: dict[str, Any]) -> str:
    batches = sorted({row["batch"] for entry in results["throughput"] for row in entry["batches"]})
    header = ["model", *map(str, batches), "largest batch", "stopped by"]
    tables: dict[str, list[list[str]]] = {}
    for entry in results["throughput"]:
        rates = {row["batch"]: format_number(row["images_per_second"]) for row in entry["batches"]}
        end = [str(max(rates, default=0)), entry["stopped_by"] or "--largest_batch"]
        row = [entry["model"], *(rates.get(batch, "") for batch in batches), *map(escape_cell, end)]
        tables.setdefault(throughput_title(entry), []).append(row)
    note = ["Images per second by batch size, eager; batches are doubled until memory is full:"] if tables else []
    return "\n\n".join(note + [f"{title}:\n\n{markdown_table(header, rows)}" for title, rows in tables.items()])


def _failures(results: dict[str, Any]) -> str:
    header = ["failed", "model", "message"]
    rows = [
        [entry["measurement"], entry["model"] or "", escape_cell(entry["message"])] for entry in results["failures"]
    ]
    return f"Failures:\n\n{markdown_table(header, rows)}" if rows else ""
