# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What ablations.py says of its runs: a table beside the paper's, differences within each seed, and curves."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark.measure import Setting, count_operations, image_like_noise, interleaved_seconds, make_step, summarize
from scipy.stats import t as student_t
from torch import nn

from ablations.tables import ROWS, TABLES, Table, row_overrides
from clustr_hf.training.baselines import BaselineArguments
from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import RESULTS, write_picture
from clustr_hf.training.tasks.image_classification.model import load_classifier
from clustr_hf.visualization import plot_compared_curves


# What is read of a run of each task, and what a table calls it.
METRICS = {"classification": ("eval_accuracy", "top-1 (%)"), "segmentation": ("eval_mean_iou", "mean IoU (%)")}
# The paper's columns, for ClusTR-T.
PAPER = {"parameters": "parameters (M)", "flops": "FLOPs (G)", "top1": "top-1 (%)", "mean_iou": "mean IoU (%)"}
TIMED_BATCH, TIMED_ROUNDS = 8, 15
NUM_LABELS = 10


def report_table(name: str, runs: Sequence, args) -> str:
    """
    Write `table-NAME.json`, `.md` and `.png` into the output folder, and print the table.

    Args:
        name (`str`): Of a table in `TABLES`.
        runs (`Sequence[Run]`): Its complete runs.
        args (`AblationArguments`): With the recipe of the classification runs.

    Returns:
        `str`: The table in Markdown.
    """
    table, folder = TABLES[name], Path(args.output_dir)
    costs = measure_costs(table, args)
    results = {"rows": {}, "runs": read_runs(runs)}
    for row in table.rows:
        scores = {task: compare(results["runs"], task, row, table.reference) for task in METRICS}
        results["rows"][row] = {"title": ROWS[row].title, "paper": ROWS[row].paper, **costs[row], **scores}
    text = format_results(table, results["rows"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"table-{name}.json", results)
    (folder / f"table-{name}.md").write_text(text)
    draw_curves(table, runs, folder / f"table-{name}.png")
    print(text)
    return text


def read_runs(runs: Sequence) -> list[dict[str, Any]]:
    """Row, seed, task and last score of each run, with its seconds and steps."""
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
    Scores of a row, and its differences from the reference with the same seed.

    Returns:
        `dict`: `seeds` of the row; number of images that each was evaluated on, `samples`; `mean` and standard
        deviation `std` of its scores; `difference` over the seeds that the reference has too, and its standard error
        `error`. Shares, not percent; `None` where there are too few seeds, or no runs at all.
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


def measure_costs(table: Table, args) -> dict[str, dict[str, Any]]:
    """
    For each row parameters and operations, and the time of an image beside the others: float32, a forward of a batch,
    every model with the attention function that transformers gives it (PVTv2 has but the eager one).
    """
    recipe = args.read_recipe("classification")
    side = recipe["image_size"]
    costs = {}
    for row in table.rows:
        with torch.device("meta"):
            costs[row] = count_operations(make_model(recipe, row), side, side)
    if args.time_per_image:
        setting = Setting(side, side, TIMED_BATCH)
        images = image_like_noise(setting, seed=0)
        steps = {row: make_step(make_model(recipe, row), images, "forward", compiled=False) for row in table.rows}
        seconds, failures = interleaved_seconds(steps, TIMED_ROUNDS, 3, 0, "cpu", table.title)
        if failures:
            raise RuntimeError(f"Every row of {table.title!r} must be timed, these failed: {failures}")
        for row, summary in summarize(seconds, table.reference, TIMED_BATCH).items():
            costs[row]["time"] = summary
    return costs


def make_model(recipe: dict[str, Any], row: str) -> nn.Module:
    """A row's classifier with random weights, as its script makes it, for the ten classes of either data set."""
    labels = [str(index) for index in range(NUM_LABELS)]
    settings = {"variant": recipe.get("variant", "nano"), "config_overrides": row_overrides(recipe, row)}
    arguments = BaselineArguments(**settings, baseline=ROWS[row].peer, image_size=recipe["image_size"])
    return load_classifier(arguments, labels)[0]


def format_results(table: Table, rows: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown; the paper's columns only where the paper has the rows."""
    tasks = [task for task in METRICS if any(row[task] for row in rows.values())]
    with_paper = all(row["paper"] for row in rows.values())
    paper = {name: title for name, title in PAPER.items() if table.has_segmentation or name != "mean_iou"}
    header = [table.title, "parameters (M)", "GMACs, the paper's count", "GFLOPs, all", "ms an image (ratio)"]
    header += [METRICS[task][1] for task in tasks]
    header += [f"*paper: {title}*" for title in paper.values()] if with_paper else []
    lines = [header, ["---"] * len(header)]
    for row in rows.values():
        cells = [row["title"], f"{row['parameters'] / 1e6:.2f}", f"{row['paper_macs'] / 1e9:.3f}"]
        cells += [f"{row['flops'] / 1e9:.3f}", _time(row.get("time"))]
        cells += [_score(row[task]) for task in tasks]
        cells += [str(row["paper"].get(name, "-")) for name in paper] if with_paper else []
        lines.append(cells)
    return "\n".join([*("| " + " | ".join(cells) + " |" for cells in lines), "", *_notes(table, rows)]) + "\n"


def _time(time: dict[str, Any] | None) -> str:
    if time is None:
        return "-"
    return f"{1000 * time['median_seconds_per_image']:.2f} ({time['ratio']['median']:.2f})"


def _score(score: dict[str, Any] | None) -> str:
    """Mean and spread, and in brackets the difference with its standard error."""
    if score is None:
        return "-"
    text = _with_spread(f"{100 * score['mean']:.1f}", score["std"])
    if score["difference"] is None:
        return text
    difference = _with_spread(f"{100 * score['difference']:+.1f}", score["error"])
    return f"{text} ({difference})"


def _with_spread(text: str, spread: float | None) -> str:
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def _notes(table: Table, rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the scores are, and which are not of all seeds."""
    seeds = {(task, name): row[task]["seeds"] for task in METRICS for name, row in rows.items() if row[task]}
    if not seeds:
        return []
    most = max(seeds.values(), key=len)
    reference = rows[table.reference]
    samples = {task: rows[name][task]["samples"] for task, name in seeds}
    images = [f"{METRICS[task][1]} of {number:,} images" for task, number in samples.items()]
    notes = [
        f"{', '.join(images)}: mean ± standard deviation of the seeds {_listed(most)}; in brackets the difference from "
        f"*{reference['title']}* with the same seed, mean ± standard error."
    ]
    if len(most) > 1:
        width = student_t.ppf(0.975, df=len(most) - 1)
        notes.append(f"A 95 % confidence interval of {len(most)} seeds is ± {width:.1f} standard errors.")
    if reference.get("time"):
        notes.append(
            f"Time: a forward of {TIMED_BATCH} images in float32, random weights, in one process with the rows taking "
            f"turns; median, and median of the ratios to *{reference['title']}*."
        )
    return notes + [
        f"Only seeds {_listed(numbers)}: {METRICS[task][1]} of *{rows[name]['title']}*."
        for (task, name), numbers in seeds.items()
        if numbers != most
    ]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def draw_curves(table: Table, runs: Sequence, path: Path):
    """Training loss and accuracy of the classification runs (Figures A1 and A2)."""
    histories = {}
    for row in table.rows:
        folders = [run.folder for run in runs if run.row == row and run.task == "classification"]
        if folders:
            histories[ROWS[row].title] = [json.loads((folder / "log_history.json").read_text()) for folder in folders]
    if histories:
        write_picture(plot_compared_curves(histories), path)
