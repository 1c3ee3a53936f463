# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What people look at: curves, results, the dry run."""

import io
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..visualization import plot_training_curves
from .checkpoints import TrainingState, write_atomically, write_json


logger = logging.getLogger(__name__)
# How many absent classes a warning names.
MOST_NAMES = 20
CURVE, RESULTS, EVALUATION = "training_curve.png", "all_results.json", "eval_results.json"


def write_picture(figure: Figure, path: Path):
    """The figure as a PNG file that is whole whenever it is looked at."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def write_table(table: Mapping[str, Mapping[str, float]], path: Path):
    """Scores of each class as JSON; NaN, where a class does not occur, becomes null."""
    rows = {
        label: {name: None if value != value else value for name, value in row.items()} for label, row in table.items()
    }
    write_json(path, rows)


def format_table(path: Path, kind: str = "class") -> str:
    """The table that [`write_table`] wrote, in Markdown: shares in percent, and how many there are."""
    rows = json.loads(path.read_text())
    titles = [_title(name, is_share=not isinstance(value, int)) for name, value in next(iter(rows.values())).items()]
    lines = [f"| {kind} | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
    for label, row in rows.items():
        lines.append(f"| {label} | {' | '.join(map(_cell, row.values()))} |")
    return "\n".join(lines)


def _title(name: str, is_share: bool) -> str:
    words = ["IoU" if word == "iou" else word for word in name.split("_")]
    words = [word.upper() if re.fullmatch(r"a[pr]\d*", word) else word for word in words]
    return " ".join([*words, *(["(%)"] if is_share else [])])


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"


def warn_of_absent(what: str, names: Sequence[str], counts: Sequence[int], kind: str = "classes", advice: str = ""):
    """
    Name the classes, or parts, that do not occur in the validation data: the scores say nothing about them.

    Args:
        what (`str`): What is counted, such as "pixel" or "object".
        names (`Sequence[str]`): Of the classes.
        counts (`Sequence[int]`): How many there are of each.
        kind (`str`): What the names are of.
        advice (`str`): What else to say if some are absent.
    """
    absent = [name for name, count in zip(names, counts) if count == 0]
    if not absent or int(os.environ.get("RANK", 0)) > 0:  # one process of many says it
        return
    shown = ", ".join(absent[:MOST_NAMES]) + (", ..." if len(absent) > MOST_NAMES else "")
    logger.warning(
        f"no {what} of the validation data belongs to {len(absent)} of {len(names)} {kind}, of which the scores say "
        f"nothing: {shown}{advice}"
    )


def write_history(state: TrainingState, metric: str, output_dir: Path):
    """`log_history.json` and the curves drawn from it."""
    write_json(output_dir / "log_history.json", state.log_history)
    write_picture(plot_training_curves(state.log_history, metric), output_dir / CURVE)


def summarize(state: TrainingState) -> dict[str, float]:
    """The last losses and metrics, the best one, and what the run took: `all_results.json`."""
    results = {"step": state.step}
    for entry in state.log_history:
        results.update(entry)
    results["train_loss"] = results.pop("loss", None)
    return {
        **results,
        "best_metric": state.best_metric,
        "best_step": state.best_step,
        "skipped_samples": len(state.skipped),
        "train_runtime": round(state.seconds, 1),
    }


def format_values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
