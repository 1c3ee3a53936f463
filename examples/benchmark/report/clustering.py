# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The results of the clustering as Markdown tables."""

from typing import Any

from benchmark.report.cells import format_number, markdown_table, megabytes, ratio_cells


def agreement_table(results: dict[str, Any]) -> str:
    header = ["tokens", "kind", "channels", "implementation", "same cluster as on the CPU"]
    rows = [
        [
            *(str(entry[name]) for name in ("tokens", "kind", "channels", "clustering_path")),
            f"{entry['agreement']:.2%}",
        ]
        for entry in results["agreement"]
    ]
    return (
        f"Clusters of float32 tokens, checked before anything is timed:\n\n{markdown_table(header, rows)}"
        if rows
        else ""
    )


def clustering_table(results: dict[str, Any]) -> str:
    header = ["tokens", "channels", "clusters", "algorithm", "ms", "ratio", "quartiles", "range"]
    header += ["memory above the tokens (MB)", "same cluster"]
    rows = []
    for entry in results["clustering"]:
        clusters = " + ".join(str(number) for number in entry["num_clusters"])
        same = "" if entry["agreement"] is None else f"{entry['agreement']:.2%}"
        for name, memory in entry["memory"].items():
            measured = entry["algorithms"].get(name)
            cells = ["skipped", "", "", "", ""]
            if measured:
                ratio = ratio_cells(measured["ratio"]) if "direct" in entry["algorithms"] else ["", "", ""]
                increase = megabytes(memory and memory["increase_bytes"])
                cells = [format_number(1e3 * measured["median_seconds"]), *ratio, increase]
            rows.append([str(entry["tokens"]), str(entry["channels"]), clusters, name, *cells, same])
    note = (
        "Clustering alone, of one image of random tokens. Direct: the paper's equations on N x N matrices, the "
        "reference of the ratios."
    )
    return f"{note}\n\n{markdown_table(header, rows)}" if rows else ""
