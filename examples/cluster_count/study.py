# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Measures the runs of the study: base models with all settings, fine-tuned models as they were fine-tuned."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.runs import Run, as_options
from ablations.scores import METRICS

from cluster_count.arguments import StudyArguments
from cluster_count.curve import CURVE, draw_curve
from cluster_count.figure import join_pictures, plot_curves
from cluster_count.table import compare_table
from clustr_hf.training.checkpoints import write_json


GROUPS = ("without training", "fine-tuned")


def measure_runs(runs: Sequence[Run], args: StudyArguments) -> None:
    """Measure the complete runs that have not been measured."""
    for run in runs:
        folder = run.folder / "cluster-count"
        if not run.is_complete() or (folder / CURVE).is_file():
            continue
        given = {**run.arguments, **run.housekeeping, "model_name_or_path": run.folder, "config_overrides": {}}
        options = as_options({**given, "output_dir": folder})
        settings = args.settings(run.task)
        for kind in ("fixed", "content"):
            options += [f"--{kind}", *(str(each.value) for each in settings if each.kind == kind)]
        draw_curve(run.task, options if run.row == "base" else [*options, "--own", "True"])


def report(runs: Sequence[Run], args: StudyArguments) -> str:
    """Write cluster_count.json, .md and .png of the measured runs to the output folder; returns the tables."""
    texts, pictures, results, folder = [], [], {}, Path(args.output_dir)
    for task in METRICS:
        groups = _read_points([run for run in runs if run.task == task])
        if not groups[GROUPS[0]]:
            continue
        metric, _ = METRICS[task]
        results[task] = groups
        texts.append(f"### {task.capitalize()}\n\n{compare_table(groups, metric)}\n")
        drawn = {title: points for title, points in groups.items() if points}
        pictures.append(folder / f"{task}.png")
        plot_curves(drawn, metric, places=("clusters",)).savefig(pictures[-1], dpi=100)
    if pictures:
        join_pictures(pictures, folder / "cluster_count.png")
    write_json(folder / CURVE, results)
    text = "\n".join(texts)
    (folder / "cluster_count.md").write_text(text)
    return text


def _read_points(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """The points of both groups; a fine-tuned point has the kind and the value that it was fine-tuned with."""
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for run in runs:
        path = run.folder / "cluster-count" / CURVE
        if not path.is_file():
            continue
        for point in json.loads(path.read_text())["points"]:
            if run.row != "base":
                kind, value = run.row.split("-", 1)
                point |= {"kind": kind, "value": float(value)}
            groups[GROUPS[run.row != "base"]].append({**point, "seed": run.seed})
    return groups
