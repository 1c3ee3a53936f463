# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Curves as tables."""

from typing import Any

from benchmark.report.cells import markdown_table


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
