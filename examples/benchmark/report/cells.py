# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Cells and titles of the report."""

from collections.abc import Sequence
from typing import Any


NOT_KNOWN = "not known"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def ratio_cells(ratio: dict[str, float] | None) -> list[str]:
    """Median, quartiles and extremes of a ratio."""
    if ratio is None:
        return ["", "", ""]
    return [
        f"{ratio['median']:.2f}",
        f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}",
        f"{ratio['min']:.2f} to {ratio['max']:.2f}",
    ]


def title_of(entry: dict[str, Any]) -> str:
    size = f"{entry['height']} x {entry['width']}, batch {entry['batch']}"
    return f"{size}, {entry['mode']} {entry['pass']}, {entry['dtype']}"


def throughput_title(entry: dict[str, Any]) -> str:
    return f"{entry['height']} x {entry['width']}, {entry['pass']}, {entry['dtype']}"


def format_number(value: float) -> str:
    """A number with at least three digits and no exponent: 0.512, 5.12, 51.2, 512.3."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def megabytes(number: int | None) -> str:
    return NOT_KNOWN if number is None else f"{number / 1e6:.0f}"


def escape_cell(text: str) -> str:
    """Text with its `|` escaped."""
    return text.replace("|", "\\|")
