#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Tables 6 and 7 of the paper on small data: every row with the same seeds, schedule and budget, by the training scripts.

    python examples/ablations.py --table 6 7 --data imagenette128 --segmentation_data camvid --output_dir out/ablations

A run is one command of `run_image_classification_no_trainer.py`, or of `run_semantic_segmentation_no_trainer.py` that
starts from it; its folder holds what these write. Runs that are complete are not repeated, the one that was stopped
goes on. With the same seed all rows see the same split, batches and augmentation. `--report` trains nothing: it reads
what is complete of the tables, data and seeds that are named, and measures times, best with nothing else running.
What is compared: ablation_tables.py; commands: README.md; what came of them: results/.
"""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

from ablations.report import report_table
from ablations.tables import ROWS, TABLES, row_overrides
from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import RESULTS


EXAMPLES = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "classification": "run_image_classification_no_trainer.py",
    "segmentation": "run_semantic_segmentation_no_trainer.py",
}
SETTINGS = "ablation.json"
# Arguments of a run that its result does not depend on, or that its settings say otherwise: the recipe by its contents,
# the checkpoint by the run that it is of.
HOUSEKEEPING = ("--dataloader_num_workers", "--resume_from_checkpoint", "--recipe", "--model_name_or_path")


@dataclass
class AblationArguments:
    """What to run, and where."""

    table: list[str] = field(metadata={"help": f"Any of {list(TABLES)}."})
    data: str = field(metadata={"help": "Folder with train.parquet: images and labels."})
    segmentation_data: str | None = field(
        default=None, metadata={"help": "Folder with train.parquet, val.parquet, id2label.json: for the mean IoU."}
    )
    recipe: str = field(
        default=str(EXAMPLES / "recipes/ablation_imagenette.json"), metadata={"help": "Of the classification runs."}
    )
    segmentation_recipe: str = field(
        default=str(EXAMPLES / "recipes/ablation_camvid.json"), metadata={"help": "Of the segmentation runs."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A run of every row for each."})
    report: bool = field(default=False, metadata={"help": "Train nothing; make tables and curves of what is complete."})
    time_per_image: bool = field(default=True, metadata={"help": "Measure it too, for the tables."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Of every run."})
    output_dir: str = field(default="out/ablations", metadata={"help": "Folder of all runs, tables and pictures."})

    def __post_init__(self):
        unknown = sorted(set(self.table) - set(TABLES))
        if unknown:
            raise ValueError(f"--table must be any of {list(TABLES)}, got {unknown}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds must be different numbers of at least 0, got {self.seeds}")
        for name in ("recipe", "segmentation_recipe"):
            if not Path(getattr(self, name)).is_file():
                raise ValueError(f"--{name} {getattr(self, name)} must be a JSON file, which is not there")
        side = self.read_recipe("classification").get("image_size")
        if side is None:
            raise ValueError(f"--recipe {self.recipe} must name the image_size")
        others = [name for name in self.table if TABLES[name].image_size not in (None, side)]
        if others:
            raise ValueError(f"--table {others} have rows for other images than those of {side} pixels of --recipe")
        files = {"data": ["train.parquet"], "segmentation_data": ["train.parquet", "val.parquet", "id2label.json"]}
        for name, needed in files.items():
            folder = getattr(self, name)
            missing = [file for file in needed if folder is not None and not (Path(folder) / file).is_file()]
            if missing and not self.report:
                raise ValueError(f"--{name} {folder} must be a folder with {needed}, without are {missing}")

    def read_recipe(self, task: str) -> dict[str, Any]:
        """The recipe of a task, `"classification"` or `"segmentation"`."""
        return json.loads(Path(self.recipe if task == "classification" else self.segmentation_recipe).read_text())


@dataclass(frozen=True)
class Run:
    """
    A row of a table with a seed, for one of two tasks.

    Args:
        row (`str`), seed (`int`), task (`str`): Which one.
        folder (`Path`): Where it is written.
        arguments (`tuple[str, ...]`): Of its script.
        recipe (`dict`): What the recipe that these name says.
        start_from (`Run`, *optional*): The run whose weights it starts from.
    """

    row: str
    seed: int
    task: str
    folder: Path
    arguments: tuple[str, ...]
    recipe: dict[str, Any]
    start_from: "Run | None" = None

    def is_complete(self) -> bool:
        """
        Whether it has results.

        Raises:
            ValueError: if the folder holds a run with other arguments, or of another recipe.
        """
        path, has_results = self.folder / SETTINGS, (self.folder / RESULTS).is_file()
        if (has_results or path.is_file()) and not (path.is_file() and json.loads(path.read_text()) == self.settings()):
            raise ValueError(f"{self.folder} holds a run with other settings, see {path}: choose an --output_dir")
        return has_results

    def settings(self) -> dict[str, Any]:
        """What a result depends on."""
        pairs = zip(self.arguments[::2], self.arguments[1::2])
        kept = {name: _absolute(name, value) for name, value in pairs if name not in HOUSEKEEPING}
        recipe = {name: value for name, value in self.recipe.items() if name != "description"}
        start = {} if self.start_from is None else {"start_from": self.start_from.settings()}
        return {"arguments": kept, "recipe": recipe, **start}

    def start(self):
        """
        Train, or go on with it, unless it is complete.

        Raises:
            ValueError: if the folder holds a run with other settings.
            RuntimeError: if the script failed.
        """
        if self.is_complete():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS, self.settings())
        script = [sys.executable, str(EXAMPLES / SCRIPTS[self.task])]
        process = subprocess.run([*script, *self.arguments, "--output_dir", str(self.folder)])
        if process.returncode != 0:
            raise RuntimeError(f"{self.folder.name} failed with code {process.returncode}; start again to go on")


def _absolute(name: str, value: str) -> str:
    """Files by one name, from wherever they are given."""
    return str(Path(value).resolve()) if name.endswith("_file") else value


def plan_runs(args: AblationArguments) -> list[Run]:
    """All runs of the tables, each once, seed by seed: a segmentation starts from the classification before it."""
    rows = dict.fromkeys(row for table in args.table for row in TABLES[table].rows)
    tasks = ["classification"] + ([] if args.segmentation_data is None else ["segmentation"])
    runs = [make_run(args, row, seed, task) for seed in args.seeds for task in tasks for row in rows]
    return [run for run in runs if any(belongs_to(run, table) for table in args.table)]


def belongs_to(run: Run, table: str) -> bool:
    return run.row in TABLES[table].rows and (run.task == "classification" or TABLES[table].has_segmentation)


def make_run(args: AblationArguments, row: str, seed: int, task: str) -> Run:
    if task == "classification":
        start_from, specific = None, _classification(args, row)
    else:
        start_from = make_run(args, row, seed, "classification")
        specific = _segmentation(args, start_from.folder)
    peer = ROWS[row].peer
    common = ["--seed", str(seed), "--resume_from_checkpoint", "latest", *(["--peer", peer] if peer else [])]
    common += ["--dataloader_num_workers", str(args.dataloader_num_workers)]
    folder = Path(args.output_dir) / task / f"{row}-seed{seed}"
    return Run(row, seed, task, folder, (*specific, *common), args.read_recipe(task), start_from)


def _classification(args: AblationArguments, name: str) -> list[str]:
    overrides = row_overrides(args.read_recipe("classification"), name)
    return ["--recipe", args.recipe, "--train_file", f"{args.data}/train.parquet"] + (
        ["--config_overrides", json.dumps(overrides)] if overrides else []
    )


def _segmentation(args: AblationArguments, checkpoint: Path) -> list[str]:
    data = args.segmentation_data
    return [
        *("--recipe", args.segmentation_recipe, "--train_file", f"{data}/train.parquet"),
        *("--validation_file", f"{data}/val.parquet", "--id2label_file", f"{data}/id2label.json"),
        *("--model_name_or_path", str(checkpoint), "--num_pictures", "0"),
    ]


def main():
    (args,) = HfArgumentParser(AblationArguments, allow_abbrev=False).parse_args_into_dataclasses()
    runs = plan_runs(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, which ends the run that is going on, too
    complete = [run.is_complete() for run in runs]  # all, so that none is trained before another one is refused
    if not args.report:
        for run in tqdm(runs, desc=f"runs, {sum(complete)} of them complete"):
            run.start()
    for name in args.table:
        report_table(name, [run for run in runs if belongs_to(run, name) and run.is_complete()], args)


if __name__ == "__main__":
    main()
