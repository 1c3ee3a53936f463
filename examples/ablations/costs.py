# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Parameters, operations and time of the rows of a table."""

from typing import Any

import torch
from benchmark.measurements.inputs import Setting, image_like_noise
from benchmark.measurements.operations import count_operations
from benchmark.measurements.steps import make_step
from benchmark.measurements.timing import interleaved_seconds, summarize
from torch import nn

from ablations.tables import ROWS, Table, row_overrides
from ablations.variants import attention_of
from clustr_hf.training.baselines import BaselineArguments
from clustr_hf.training.tasks.image_classification.model import load_classifier


TIMED_BATCH, TIMED_ROUNDS = 8, 15
NUM_LABELS = 10


def measure_costs(table: Table, args) -> dict[str, dict[str, Any]]:
    """
    Parameters and operations of each row, and its time per image, measured in interleaved rounds with the other rows.

    The time is that of a forward pass of a batch in float32, with the attention function that transformers chooses for
    each model (PVTv2 has only the eager one).
    """
    recipe = args.read_recipe("classification")
    side = recipe["image_size"]
    costs = {}
    for row in table.rows:
        with torch.device("meta"):
            costs[row] = count_operations(make_model(recipe, row), side, side)
    if args.time_per_image and table.is_timed:
        setting = Setting(side, side, TIMED_BATCH)
        images = image_like_noise(setting, seed=0)
        steps = {row: make_step(make_model(recipe, row), images, "forward", compiled=False) for row in table.rows}
        seconds, failures = interleaved_seconds(steps, TIMED_ROUNDS, 3, 0, "cpu", table.title)
        if failures:
            raise RuntimeError(f"Every row of {table.title!r} must be timed, but some failed: {failures}")
        for row, summary in summarize(seconds, table.reference, TIMED_BATCH).items():
            costs[row]["time"] = summary
    return costs


def make_model(recipe: dict[str, Any], row: str) -> nn.Module:
    """The classifier of a row with random weights, as its training script creates it, with ten classes."""
    labels = [str(index) for index in range(NUM_LABELS)]
    settings = {"variant": recipe.get("variant", "nano"), "config_overrides": row_overrides(recipe, row)}
    arguments = BaselineArguments(**settings, baseline=ROWS[row].baseline, image_size=recipe["image_size"])
    with attention_of(ROWS[row].variant):
        return load_classifier(arguments, labels)[0]
