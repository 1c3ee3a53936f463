# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What ablations.py says of its runs: a table beside the paper's, differences within each seed, and curves."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ablation_tables import ROWS, TABLES, Table
from benchmark_measure import Setting, count_operations, image_like_noise, interleaved_seconds, make_step, summarize
from peer_models import PeerArguments, load_peer
from torch import nn
from training_checkpoints import write_json
from training_report import write_picture

from clustr_hf import ClusTRConfig, ClusTRForImageClassification
from clustr_hf.visualization import plot_compared_curves


# What is read of a run of each task, and what a table calls it.
METRICS = {"classification": ("eval_accuracy", "top-1 (%)"), "segmentation": ("eval_mean_iou", "mean IoU (%)")}
TIMED_BATCH, TIMED_ROUNDS = 8, 15


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
        results = json.loads((run.folder / "all_results.json").read_text())
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
        `dict`: `seeds` that both have; `mean` and standard deviation `std` of the row's scores, `difference` and its
        standard error `error`, both over seeds. Shares, not percent. `None` if there are no such runs.
    """
    scores = {
        name: {run["seed"]: run["score"] for run in runs if run["task"] == task and run["row"] == name}
        for name in (row, reference)
    }
    seeds = sorted(set(scores[row]) & set(scores[reference]))
    if not seeds:
        return None
    values = [scores[row][seed] for seed in seeds]
    differences = [scores[row][seed] - scores[reference][seed] for seed in seeds]
    return {
        "seeds": seeds,
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(seeds) > 1 else None,
        "difference": None if row == reference else statistics.mean(differences),
        "error": statistics.stdev(differences) / len(seeds) ** 0.5 if len(seeds) > 1 and row != reference else None,
    }


def measure_costs(table: Table, args) -> dict[str, dict[str, Any]]:
    """For each row parameters and operations, and the time of an image beside the others."""
    recipe = json.loads(Path(args.recipe).read_text())
    side = recipe["image_size"]
    costs = {}
    for row in table.rows:
        with torch.device("meta"):
            costs[row] = count_operations(make_model(recipe, row), side, side)
    if args.time_per_image:
        setting = Setting(side, side, TIMED_BATCH)
        images = image_like_noise(setting, seed=0)
        steps = {row: make_step(make_model(recipe, row), images, "forward", compiled=False) for row in table.rows}
        seconds = interleaved_seconds(steps, TIMED_ROUNDS, 3, 0, "cpu", table.title)
        for row, summary in summarize(seconds, table.reference, TIMED_BATCH).items():
            costs[row]["time"] = summary
    return costs


def make_model(recipe: dict[str, Any], row: str) -> nn.Module:
    """A row's classifier with random weights."""
    overrides = {**recipe.get("config_overrides", {}), **ROWS[row].overrides}
    labels = [str(index) for index in range(10)]
    if ROWS[row].peer is not None:
        arguments = PeerArguments(variant=recipe["variant"], config_overrides=overrides, peer=ROWS[row].peer)
        return load_peer(arguments, "classifier", labels)
    return ClusTRForImageClassification(ClusTRConfig.from_variant(recipe["variant"], num_labels=10, **overrides))


def format_results(table: Table, rows: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown; the paper's columns only where the paper has the rows."""
    with_paper = all(row["paper"] for row in rows.values())
    tasks = [task for task in METRICS if any(row[task] for row in rows.values())]
    header = [table.title, "parameters (M)", "GMACs as the paper counts", "GFLOPs, all", "ms an image"]
    for task in tasks:
        header += [METRICS[task][1], "difference"]
    if with_paper:
        header += ["*paper:* parameters (M)", "FLOPs (G)", "top-1"] + ["mean IoU"] * table.has_segmentation
    lines = [header, ["---"] * len(header)]
    for row in rows.values():
        cells = [row["title"], f"{row['parameters'] / 1e6:.2f}", f"{row['paper_macs'] / 1e9:.3f}"]
        cells += [f"{row['flops'] / 1e9:.3f}", _time(row.get("time"))]
        for task in tasks:
            cells += _score(row[task])
        if with_paper:
            names = ("parameters", "flops", "top1", "mean_iou")[: 4 if table.has_segmentation else 3]
            cells += [str(row["paper"].get(name, "-")) for name in names]
        lines.append(cells)
    seeds = {task: next(row[task]["seeds"] for row in rows.values() if row[task]) for task in tasks}
    notes = [
        f"{METRICS[task][1]}: mean and standard deviation over the seeds {', '.join(map(str, numbers))}; difference "
        f"from {rows[table.reference]['title']} with the same seed, mean and standard error."
        for task, numbers in seeds.items()
    ]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + ["", *notes]) + "\n"


def _time(time: dict[str, Any] | None) -> str:
    if time is None:
        return "-"
    return f"{1000 * time['median_seconds_per_image']:.2f} ({time['ratio']['median']:.2f})"


def _score(score: dict[str, Any] | None) -> list[str]:
    if score is None:
        return ["-", "-"]
    spread = "" if score["std"] is None else f" ± {100 * score['std']:.2f}"
    error = "" if score["error"] is None else f" ± {100 * score['error']:.2f}"
    difference = "-" if score["difference"] is None else f"{100 * score['difference']:+.2f}{error}"
    return [f"{100 * score['mean']:.2f}{spread}", difference]


def draw_curves(table: Table, runs: Sequence, path: Path):
    """Training loss and accuracy of the classification runs (Figures A1 and A2)."""
    histories = {}
    for row in table.rows:
        folders = [run.folder for run in runs if run.row == row and run.task == "classification"]
        if folders:
            histories[ROWS[row].title] = [json.loads((folder / "log_history.json").read_text()) for folder in folders]
    if histories:
        write_picture(plot_compared_curves(histories), path)
