# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Which runs the tables need."""

from pathlib import Path

from ablations.arguments import AblationArguments
from ablations.data import SELECTION_FILE, TABLES_FILE
from ablations.runs import Run
from ablations.tables import ROWS, TABLES, row_overrides


def plan_runs(args: AblationArguments) -> list[Run]:
    """All runs of the tables, each once, seed by seed; a segmentation run starts from its classification run."""
    rows = dict.fromkeys(row for table in args.table for row in TABLES[table].rows)
    tasks = ["classification"] + ([] if args.segmentation_data is None else ["segmentation"])
    runs = [make_run(args, row, seed, task) for seed in args.seeds for task in tasks for row in rows]
    return [run for run in runs if any(belongs_to(run, table) for table in args.table)]


def belongs_to(run: Run, table: str) -> bool:
    return run.row in TABLES[table].rows and (run.task == "classification" or TABLES[table].has_segmentation)


def make_run(args: AblationArguments, row: str, seed: int, task: str) -> Run:
    """The run of a row with a seed; see [`Run`]."""
    recipe, baseline, start_from = args.read_recipe(task), ROWS[row].baseline, None
    if task == "classification":
        data, files = Path(args.data), _image_files(args, row)
        overrides = row_overrides(recipe, row)
        arguments = {**ROWS[row].arguments, **({"config_overrides": overrides} if overrides else {})}
    else:
        start_from = make_run(args, row, seed, "classification")
        data, files, arguments = Path(args.segmentation_data), map_files(args.segmentation_data), {"num_pictures": 0}
    arguments |= {"seed": seed, **({} if baseline is None else {"baseline": baseline})}
    files |= {"recipe": args.recipe if task == "classification" else args.segmentation_recipe}
    files |= {"dataloader_num_workers": args.dataloader_num_workers}
    folder = Path(args.output_dir) / task / f"{row}-seed{seed}"
    share = args.selection_share if task == "classification" else None
    return Run(row, seed, task, folder, arguments, recipe, data, files, ROWS[row].variant, share, start_from)


def _image_files(args: AblationArguments, row: str) -> dict[str, Path]:
    """Rows of a choice are evaluated on images of their own; others on a part of their training images."""
    if args.selection_share == 0:
        return {"train_file": Path(args.data) / "train.parquet"}
    chosen = {"validation_file": args.image_folder / SELECTION_FILE} if ROWS[row].is_choice else {}
    return {"train_file": args.image_folder / TABLES_FILE, **chosen}


def map_files(segmentation_data: str) -> dict[str, str]:
    """Options of the segmentation script for a folder of `--segmentation_data`."""
    names = {"train_file": "train.parquet", "validation_file": "val.parquet", "id2label_file": "id2label.json"}
    return {option: f"{segmentation_data}/{name}" for option, name in names.items()}
