# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The scores of the runs, and their differences within each seed."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student_t

from ablations.attention_off import FOLDER
from clustr_hf.training.report import EVALUATION, RESULTS


# Task -> the metric of its runs, and the title of its column.
METRICS = {"classification": ("eval_accuracy", "top-1 (%)"), "segmentation": ("eval_mean_iou", "mean IoU (%)")}


def read_runs(runs: Sequence) -> list[dict[str, Any]]:
    """
    Row, seed, task, final score, score with the attention switched off (`None` if there is no attention), duration and
    number of steps of each run.
    """
    kept = []
    for run in runs:
        results, metric = json.loads((run.folder / RESULTS).read_text()), METRICS[run.task][0]
        without = run.folder / FOLDER / EVALUATION
        kept.append(
            {
                "row": run.row,
                "seed": run.seed,
                "task": run.task,
                "score": results[metric],
                "attention_off": json.loads(without.read_text())[metric] if without.is_file() else None,
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
        deviation `std` of the scores; `attention_off`, the mean of the scores with the attention switched off;
        `difference`, the mean over the seeds that the reference shares, its standard error `error`, and the half width
        `interval` of its 95 % confidence interval. Scores are in [0, 1]. A value is `None` if there are too few seeds
        for it, or no attention; the result is `None` if there are no runs.
    """
    scores = {
        name: {run["seed"]: run["score"] for run in runs if run["task"] == task and run["row"] == name}
        for name in (row, reference)
    }
    own = [run for run in runs if run["task"] == task and run["row"] == row]
    if not own:
        return None
    values, (samples,) = list(scores[row].values()), {run["samples"] for run in own}
    without = [run["attention_off"] for run in own if run["attention_off"] is not None]
    differences = [value - scores[reference][seed] for seed, value in scores[row].items() if seed in scores[reference]]
    if row == reference:
        differences = []
    number = len(differences)
    error = statistics.stdev(differences) / number**0.5 if number > 1 else None
    return {
        "seeds": sorted(scores[row]),
        "samples": samples,
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "attention_off": statistics.mean(without) if without else None,
        "difference": statistics.mean(differences) if differences else None,
        "error": error,
        "interval": None if error is None else error * float(student_t.ppf(0.975, df=number - 1)),
    }
