# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The trainings of the study: models with the N / lambda clusters of the paper, fine-tuned with other numbers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.plan import map_files
from ablations.runs import Run

from cluster_count.arguments import StudyArguments
from cluster_count.settings import Setting


# Relative to the recipe's learning rate, as chosen for the fine-tuning of conversions (docs/pretrained_weights.md).
RATE = 0.3
# Length of the fine-tuning.
SCHEDULES = {
    "classification": {"num_train_epochs": 0.5, "warmup_epochs": 0.05},
    "segmentation": {"max_train_steps": 50, "warmup_steps": 5, "eval_steps": "50", "checkpointing_steps": "50"},
}


@dataclass(frozen=True)
class PlainRun(Run):
    """A run that is not evaluated with its attention switched off."""

    has_attention = False


def plan_runs(args: StudyArguments) -> list[Run]:
    """All runs, seed by seed: the base models first, then the models that start from them."""
    runs = []
    for seed in args.seeds:
        bases = [_base(args, "classification", seed)]
        bases += [] if args.segmentation_data is None else [_base(args, "segmentation", seed, bases[0])]
        runs += bases
        for base in bases:
            runs += [_tune(args, base, setting) for setting in args.settings(base.task)]
    return runs


def _base(args: StudyArguments, task: str, seed: int, start: Run | None = None) -> Run:
    """A training with the recipe of its task; a segmentation starts from the classifier."""
    recipe = args.read_recipe(task)
    if task == "classification":
        data, files, arguments = Path(args.data), {"train_file": f"{args.data}/train.parquet"}, {"seed": seed}
    else:
        data, files = Path(args.segmentation_data), map_files(args.segmentation_data)
        arguments = {"num_pictures": 0, "seed": seed}
    files |= {"recipe": args.recipe if task == "classification" else args.segmentation_recipe}
    folder = Path(args.output_dir) / task / f"base-seed{seed}"
    return PlainRun("base", seed, task, folder, arguments, recipe, data, files, start_from=start)


def _tune(args: StudyArguments, base: Run, setting: Setting) -> Run:
    """The base model, trained further with another number of clusters."""
    ratios = args.read_recipe("classification")["config_overrides"]["reduction_ratios"]  # a segmentation keeps them
    arguments: dict[str, Any] = {
        **base.arguments,
        **SCHEDULES[base.task],
        "config_overrides": setting.overrides(ratios),
    }
    arguments["learning_rate"] = round(RATE * base.recipe["learning_rate"], 6)
    folder = base.folder.parent / f"{setting.name}-seed{base.seed}"
    return replace(base, row=setting.name, folder=folder, arguments=arguments, start_from=base)
