# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The curve of one checkpoint: measures it with several numbers of clusters, and writes table and picture."""

from pathlib import Path
from typing import Any

from ablations.train_variant import TASKS

from cluster_count.arguments import CurveArguments
from cluster_count.figure import plot_curves
from cluster_count.measure import measure
from cluster_count.table import curve_table
from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.distributed import make_accelerator
from clustr_hf.training.tasks.base import Run, make_task


CURVE = "cluster_count.json"


def draw_curve(name: str, arguments: list[str]) -> dict[str, Any]:
    """
    Measure the checkpoint that the arguments of a task's training script name, on its validation images.

    Args:
        name (`str`): Name of the task, one of `TASKS`.
        arguments (`list[str]`): Of the training script of the task and of [`CurveArguments`].

    Returns:
        `dict`: content of the file cluster_count.json in the output folder; beside it are cluster_count.md and
        cluster_count.png.
    """
    definition = TASKS[name]
    classes = [*definition.arguments.values(), CurveArguments, LoopArguments]
    *parsed, curve, loop = parse_arguments(*classes, arguments=[*arguments, "--eval_only", "True"])
    run = Run(**dict(zip(definition.arguments, parsed)), loop=loop, accelerator=make_accelerator(loop))
    task = make_task(definition, run)
    points = measure(task, curve.settings, loop.per_device_eval_batch_size)
    result = {"task": name, "metric": task.metric, "seed": loop.seed, "points": points}
    folder = Path(loop.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CURVE, result)
    (folder / "cluster_count.md").write_text(curve_table(result) + "\n")
    plot_curves({"": result["points"]}, task.metric).savefig(folder / "cluster_count.png")
    return result
