# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tables in Markdown."""

from collections.abc import Sequence
from typing import Any

from benchmark.report.cells import markdown_table

from ablations.costs import TIMED_BATCH
from ablations.scores import METRICS
from ablations.tables import CONTROL, ROWS, Table


# The paper's columns, for ClusTR-T.
PAPER = {"parameters": "parameters (M)", "flops": "FLOPs (G)", "top1": "top-1 (%)"}


def format_results(table: Table, rows: dict[str, dict[str, Any]]) -> str:
    """A table in Markdown, with the paper's columns if all rows but the control are in the paper."""
    tasks = [task for task in METRICS if any(row[task] for row in rows.values())]
    with_paper = all(row["paper"] for name, row in rows.items() if name != CONTROL)
    header = [table.title, "parameters (M)", "GMACs, the paper's count", "GFLOPs, all"]
    header += ["ms per image (ratio)"] if table.is_timed else []
    header += [title for task in tasks for title in (METRICS[task][1], "attention off")]
    header += [f"*paper: {title}*" for title in PAPER.values()] if with_paper else []
    lines = []
    for row in rows.values():
        digits = 2 if row["parameters"] >= 1e6 else 3
        cells = [row["title"], f"{row['parameters'] / 1e6:.{digits}f}", f"{row['paper_macs'] / 1e9:.3f}"]
        cells += [f"{row['flops'] / 1e9:.3f}"] + ([_time(row.get("time"))] if table.is_timed else [])
        cells += [cell for task in tasks for cell in (_score(row[task]), _score_without_attention(row[task]))]
        cells += [str(row["paper"].get(name, "-")) for name in PAPER] if with_paper else []
        lines.append(cells)
    return "\n".join([markdown_table(header, lines), "", *_notes(table, rows)]) + "\n"


def _time(time: dict[str, Any] | None) -> str:
    """Milliseconds per image, and the ratio to the reference in parentheses."""
    if time is None:
        return "-"
    return f"{1000 * time['median_seconds_per_image']:.2f} ({time['ratio']['median']:.2f})"


def _score(score: dict[str, Any] | None) -> str:
    """Mean and standard deviation; in parentheses the difference and the half width of its confidence interval."""
    if score is None:
        return "-"
    text = in_points(score["mean"], score["std"], "{:.1f}")
    if score["difference"] is None:
        return text
    return f"{text} ({in_points(score['difference'], score['interval'], '{:+.1f}')})"


def _score_without_attention(score: dict[str, Any] | None) -> str:
    return "-" if score is None or score["attention_off"] is None else f"{100 * score['attention_off']:.1f}"


def in_points(value: float, spread: float | None, digits: str) -> str:
    """A share and its spread in percentage points, such as 45.1 ± 2.2; `digits` formats the value."""
    return digits.format(100 * value) + ("" if spread is None else f" ± {100 * spread:.1f}")


def _notes(table: Table, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Explanations of scores and times, and the rows that lack seeds."""
    seeds = {(task, name): row[task]["seeds"] for task in METRICS for name, row in rows.items() if row[task]}
    if not seeds:
        return []
    longest = max(seeds.values(), key=len)
    notes = [
        _explain_scores(table, rows, longest),
        "Attention off: the score of the trained models after the output projections of their attention were set to 0.",
    ]
    if rows[table.reference].get("time"):
        notes.append(
            f"Time: a forward pass of {TIMED_BATCH} images in float32 with random weights, all rows in turns in one "
            f"process; median, and in parentheses the median ratio to *{rows[table.reference]['title']}*."
        )
    return notes + [
        f"Only {_listed(numbers)}: {METRICS[task][1]} of *{rows[name]['title']}*."
        for (task, name), numbers in seeds.items()
        if numbers != longest
    ]


def _explain_scores(table: Table, rows: dict[str, dict[str, Any]], seeds: Sequence[int]) -> str:
    samples = {task: row[task]["samples"] for task in METRICS for row in rows.values() if row[task]}
    scores = ", ".join(f"{METRICS[task][1]} of {number:,} images" for task, number in samples.items())
    has_groups = any(ROWS[name].reference for name in rows)
    compared = "the row of its group without parentheses" if has_groups else f"*{rows[table.reference]['title']}*"
    if len(seeds) == 1:
        return f"{scores}, {_listed(seeds)}; in parentheses, the difference from {compared}."
    return (
        f"{scores}: mean ± standard deviation over the {_listed(seeds)}; in parentheses, the difference from {compared}"
        " with the same seed, mean ± half width of the 95 % confidence interval."
    )


def _listed(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
