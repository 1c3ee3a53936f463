# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The scores of the runs, and their differences within each seed."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from clustr_hf.training.report import RESULTS


# Task -> the metric of its runs, and the title of its column.
METRICS = {"classification": ("eval_accuracy", "top-1 (%)"), "segmentation": ("eval_mean_iou", "mean IoU (%)")}


def read_runs(runs: Sequence) -> list[dict[str, Any]]:
    """Row, seed, task, final score, duration and number of steps of each run."""
    kept = []
    for run in runs:
        results = json.loads((run.folder / RESULTS).read_text())
        kept.append(
            {
                "row": run.row,
                "seed": run.seed,
                "task": run.task,
                "score": results[METRICS[run.task][0]],
                "samples": results["eval_samples"],
                "steps": results["step"],
                "seconds": results["train_runtime"],
            }
        )
    return kept


def compare(runs: Sequence[dict[str, Any]], task: str, row: str, reference: str) -> dict[str, Any] | None:
    """
    Scores of a row, and their differences from those of the reference with the same seeds.

    Returns:
        `dict`: `seeds` of the row; `samples`, the number of images that each run was evaluated on; `mean` and standard
        deviation `std` of the scores; `difference`, the mean over the seeds that the reference shares, and its standard
        error `error`. Scores are in [0, 1]. A value is `None` if there are too few seeds for it; the result is `None`
        if there are no runs.
    """
    scores = {
        name: {run["seed"]: run["score"] for run in runs if run["task"] == task and run["row"] == name}
        for name in (row, reference)
    }
    values = list(scores[row].values())
    if not values:
        return None
    (samples,) = {run["samples"] for run in runs if run["task"] == task and run["row"] == row}
    differences = [value - scores[reference][seed] for seed, value in scores[row].items() if seed in scores[reference]]
    if row == reference:
        differences = []
    return {
        "seeds": sorted(scores[row]),
        "samples": samples,
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "difference": statistics.mean(differences) if differences else None,
        "error": statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None,
    }
