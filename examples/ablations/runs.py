# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The runs of the ablations: each is one command of a training script."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.arguments import EXAMPLES, AblationArguments
from ablations.tables import ROWS, TABLES, row_overrides
from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import RESULTS


SCRIPTS = {
    "classification": "run_image_classification_no_trainer.py",
    "segmentation": "run_semantic_segmentation_no_trainer.py",
}
SETTINGS = "ablation.json"
# Arguments that are not stored, because the result does not depend on them, or because the settings store the contents
# of the recipe and the run of the checkpoint instead.
HOUSEKEEPING = ("--dataloader_num_workers", "--resume_from_checkpoint", "--recipe", "--model_name_or_path")


@dataclass(frozen=True)
class Run:
    """
    The training of a row of a table with one seed, for one of two tasks.

    Args:
        row (`str`): Name of the row.
        seed (`int`): Seed of the training.
        task (`str`): `"classification"` or `"segmentation"`.
        folder (`Path`): Output folder.
        arguments (`tuple[str, ...]`): Arguments of the training script.
        recipe (`dict`): Contents of the recipe in `arguments`.
        start_from (`Run`, *optional*): The run whose weights the training starts from.
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
        Whether the folder holds the results of this run.

        Raises:
            ValueError: if the folder holds a run with other arguments or another recipe.
        """
        path, has_results = self.folder / SETTINGS, (self.folder / RESULTS).is_file()
        if (has_results or path.is_file()) and not (path.is_file() and json.loads(path.read_text()) == self.settings()):
            raise ValueError(f"{self.folder} holds a run with other settings, see {path}: choose an --output_dir")
        return has_results

    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        pairs = zip(self.arguments[::2], self.arguments[1::2])
        kept = {name: _absolute(name, value) for name, value in pairs if name not in HOUSEKEEPING}
        recipe = {name: value for name, value in self.recipe.items() if name != "description"}
        start = {} if self.start_from is None else {"start_from": self.start_from.settings()}
        return {"arguments": kept, "recipe": recipe, **start}

    def start(self):
        """
        Start or resume the training, unless it is complete.

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
            raise RuntimeError(
                f"{self.folder.name} failed with code {process.returncode}; run the command again to resume"
            )


def _absolute(name: str, value: str) -> str:
    """Absolute path of a file, so that settings do not depend on the working folder."""
    return str(Path(value).resolve()) if name.endswith("_file") else value


def plan_runs(args: AblationArguments) -> list[Run]:
    """All runs of the tables, each once, seed by seed; a segmentation run starts from its classification run."""
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
    baseline = ROWS[row].baseline
    # `--peer` is the earlier name of `--baseline`; complete runs have stored their arguments with it.
    common = ["--seed", str(seed), "--resume_from_checkpoint", "latest", *(["--peer", baseline] if baseline else [])]
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
