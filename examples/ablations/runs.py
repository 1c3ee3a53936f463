# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The runs of the ablations: each is one command of a training script."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.attention_off import evaluate_without_attention
from ablations.study_arguments import EXAMPLES
from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import RESULTS


SCRIPTS = {
    "classification": "run_image_classification_no_trainer.py",
    "segmentation": "run_semantic_segmentation_no_trainer.py",
    "conversion": "convert_pretrained.py",
}
VARIANT_SCRIPT = "ablations/train_variant.py"
SETTINGS = "ablation.json"
# Processes of the scripts that are running.
RUNNING: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Run:
    """
    The training of a row of a table with one seed, for one of two tasks.

    Args:
        row (`str`): Name of the row.
        seed (`int`): Seed of the training.
        task (`str`): `"classification"` or `"segmentation"`.
        folder (`Path`): Output folder.
        arguments (`dict[str, Any]`): Arguments of the training script that the result depends on.
        recipe (`dict`): Contents of the recipe.
        data (`Path`): Data set that the command line names.
        housekeeping (`dict[str, Any]`): The other arguments of the script: places of files, number of workers.
        variant (`str`, *optional*): Change of the attention, one of `variants.VARIANTS`.
        selection_share (`float`, *optional*): Share of the images that is set aside for choices.
        start_from (`Run`, *optional*): The run whose weights the training starts from.
        teacher (`Run`, *optional*): The run whose model is the teacher, which `arguments` name, too.
    """

    row: str
    seed: int
    task: str
    folder: Path
    arguments: dict[str, Any]
    recipe: dict[str, Any]
    data: Path
    housekeeping: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    selection_share: float | None = None
    start_from: "Run | None" = None
    teacher: "Run | None" = None

    @property
    def needs(self) -> list["Run"]:
        """The runs that must be complete before this one starts."""
        return [run for run in (self.start_from, self.teacher) if run is not None]

    @property
    def has_attention(self) -> bool:
        start = self.start_from or self
        return start.arguments.get("config_overrides", {}).get("attention_type") != "none"

    @property
    def settings_file(self) -> Path:
        return self.folder / SETTINGS

    def is_complete(self) -> bool:
        """
        Whether the folder holds the results of this run.

        Raises:
            ValueError: if the folder holds a run with other arguments or another recipe.
        """
        path, has_results = self.settings_file, (self.folder / RESULTS).is_file()
        if (has_results or path.is_file()) and not (path.is_file() and json.loads(path.read_text()) == self.settings()):
            raise ValueError(f"{self.folder} holds a run with other settings, see {path}: choose an --output_dir")
        return has_results

    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        kept = self.recipe.keys() - {"description", *self.arguments}
        start = {} if self.start_from is None else {"start_from": self.start_from.settings()}
        start |= {} if self.variant is None else {"variant": self.variant}
        start |= {} if self.selection_share is None else {"selection_share": self.selection_share}
        recipe = {name: self.recipe[name] for name in kept}
        return {"arguments": self.arguments, "recipe": recipe, "data": str(self.data.resolve()), **start}

    def start(self, threads: int | None = None):
        """
        Start or resume the training, and evaluate it with its attention switched off, unless that is done.

        Args:
            threads (`int`, *optional*): Number of CPU threads of the training. Default: chosen by torch.

        Raises:
            ValueError: if the folder holds a run with other settings.
            RuntimeError: if the script failed.
        """
        if not self.is_complete():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.settings_file, self.settings())
            start = {} if self.start_from is None else {"model_name_or_path": self.start_from.folder}
            self.execute(self.folder, {"resume_from_checkpoint": "latest", **start}, threads)
        evaluate_without_attention(self, threads)

    def execute(self, output_dir: Path, arguments: dict[str, Any], threads: int | None = None):
        """
        Run the training script with the arguments of this run and others.

        Raises:
            RuntimeError: if the script failed.
        """
        given = {**self.arguments, **self.housekeeping, **arguments, "output_dir": output_dir}
        environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
        script = [str(EXAMPLES / SCRIPTS[self.task])]
        if self.variant is not None:
            script = [str(EXAMPLES / VARIANT_SCRIPT), self.variant, self.task]
        with subprocess.Popen([sys.executable, *script, *as_options(given)], env=environment) as process:
            RUNNING.add(process)
        RUNNING.discard(process)
        if process.returncode != 0:
            raise RuntimeError(
                f"{self.folder.name} failed with code {process.returncode}; run the command again to resume"
            )


def stop_scripts() -> None:
    """Stop all scripts that are running; they save nothing more."""
    for process in list(RUNNING):
        process.terminate()


def as_options(arguments: dict[str, Any]) -> list[str]:
    """Arguments of a script as a command line."""
    pairs = [
        (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)) for name, value in arguments.items()
    ]
    return [part for pair in pairs for part in pair]
