# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Report files of a run: results, history, curves and tables of scores; and warnings about absent classes."""

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..name_lists import join_names
from ..visualization import plot_training_curves
from .checkpoints import TrainingState, write_atomically, write_json
from .distributed import is_main_process


logger = logging.getLogger(__name__)
CURVE, RESULTS, EVALUATION = "training_curve.png", "all_results.json", "eval_results.json"


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def write_table(table: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Write the scores of each class as JSON. NaN, the score of a class that does not occur, becomes null."""
    rows = {
        label: {name: None if value != value else value for name, value in row.items()} for label, row in table.items()
    }
    write_json(path, rows)


def format_table(path: Path, kind: str = "class") -> str:
    """
    Format a file of [`write_table`] as a Markdown table: scores in percent, counts as they are.

    Args:
        path (`Path`): The file.
        kind (`str`): Title of the first column.
    """
    rows = json.loads(path.read_text())
    titles = [_title(name, is_score=not isinstance(value, int)) for name, value in next(iter(rows.values())).items()]
    lines = [f"| {kind} | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
    for label, row in rows.items():
        lines.append(f"| {label} | {' | '.join(map(_cell, row.values()))} |")
    return "\n".join(lines)


def _title(name: str, is_score: bool) -> str:
    """The title of a column: `iou` becomes `IoU (%)`, `box_ap50` becomes `box AP50 (%)`."""
    words = ["IoU" if word == "iou" else word for word in name.split("_")]
    words = [word.upper() if re.fullmatch(r"a[pr]\d*", word) else word for word in words]
    return " ".join([*words, *(["(%)"] if is_score else [])])


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"


def warn_of_absent(
    what: str, names: Sequence[str], counts: Sequence[int], kind: str = "classes", advice: str = ""
) -> None:
    """
    Warn of classes or parts that do not occur in the validation data, which the scores therefore do not cover.

    Args:
        what (`str`): Unit of the counts, such as "pixel" or "object".
        names (`Sequence[str]`): Names of the classes.
        counts (`Sequence[int]`): Number of occurrences of each class.
        kind (`str`): Plural noun for the names in the warning.
        advice (`str`): Text to append to the warning.
    """
    absent = [name for name, count in zip(names, counts) if count == 0]
    if absent and is_main_process():
        logger.warning(
            f"no {what} of the validation data belongs to {len(absent)} of {len(names)} {kind}, which the scores "
            f"therefore do not cover: {join_names(absent)}{advice}"
        )


def write_history(state: TrainingState, metric: str, output_dir: Path) -> None:
    """Write `log_history.json` and plot its curves."""
    write_json(output_dir / "log_history.json", state.log_history)
    write_picture(plot_training_curves(state.log_history, metric), output_dir / CURVE)


def summarize(state: TrainingState) -> dict[str, float]:
    """The content of `all_results.json`: the last losses and metrics, the best metric, and the duration of the run."""
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
