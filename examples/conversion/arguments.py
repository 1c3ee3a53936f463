# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of the study, and the settings of its data sets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ablations.arguments import EXAMPLES


class Setting(NamedTuple):
    """A recipe in `recipes/`, and the ratios of single-scale clusters, as coarse as the source's grid."""

    recipe: str
    one_scale: list[int]


SETTINGS = {
    "imagenette": Setting("ablation_imagenette", [64, 16, 4, 1]),
    "cifar10": Setting("ablation_cifar10", [16, 16, 16, 16]),
}
# The choices: the learning rate of fine-tuning, relative to the recipe's, and its minimum crop; alpha and temperature.
CHOSEN_RATE, CHOSEN_CROP = 0.3, 0.7
DISTILLATION = (0.5, 1.0)


@dataclass
class ConversionStudyArguments:
    """The setting, its data and the seeds."""

    setting: str = field(metadata={"help": f"Setting of the study, one of {', '.join(SETTINGS)}."})
    data: str = field(
        metadata={"help": "Folder with train.parquet, for --choices also val.parquet: images and labels."}
    )
    segmentation_data: str | None = field(
        default=None,
        metadata={"help": "Folder with train.parquet, val.parquet and id2label.json. Default: no segmentation runs."},
    )
    choices: bool = field(
        default=False,
        metadata={"help": "Whether to compare learning rates and distillations on val.parquet instead."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds; every row of the table is run once with each."}
    )
    rows: str = field(default="", metadata={"help": "Regular expression; only rows whose name matches are trained."})
    report: bool = field(
        default=False, metadata={"help": "Whether to train nothing and write the table of the complete runs."}
    )
    jobs: int = field(
        default=1, metadata={"help": "Number of runs to train at the same time; they share the CPU's threads."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Number of data-loading worker processes of each run."}
    )
    output_dir: str = field(default="out/conversion", metadata={"help": "Folder for runs and tables."})

    def __post_init__(self):
        if self.setting not in SETTINGS:
            raise ValueError(f"--setting must be one of {list(SETTINGS)}, got {self.setting!r}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds must be different numbers of at least 0, got {self.seeds}")
        files = {"data": ["train.parquet", *(["val.parquet"] if self.choices else [])]}
        files |= {"segmentation_data": ["train.parquet", "val.parquet", "id2label.json"]}
        for name, required in files.items():
            folder = getattr(self, name)
            missing = [file for file in required if folder is not None and not (Path(folder) / file).is_file()]
            if missing and not self.report:
                raise ValueError(f"--{name} {folder} must be a folder with {required}, but lacks {missing}")

    @property
    def recipe(self) -> str:
        """Path of the recipe of the classification runs."""
        return str(EXAMPLES / "recipes" / f"{SETTINGS[self.setting].recipe}.json")

    segmentation_recipe = str(EXAMPLES / "recipes" / "ablation_camvid.json")

    @property
    def num_epochs(self) -> float:
        """Epochs of the source."""
        return self.read_recipe()["num_train_epochs"]

    @property
    def one_scale(self) -> list[int]:
        return SETTINGS[self.setting].one_scale

    def read_recipe(self, task: str = "classification") -> dict[str, Any]:
        """The recipe of a task, `"classification"` or `"segmentation"`."""
        return json.loads(Path(self.recipe if task == "classification" else self.segmentation_recipe).read_text())
