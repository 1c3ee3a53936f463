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
# Relative to the recipe's learning rate.
RATES = {"source": 0.3, "tuned": 0.3}
DISTILLATION = {"distillation_alpha": 0.5, "distillation_temperature": 1.0}


@dataclass
class ConversionStudyArguments:
    """The setting, its data and the seeds."""

    setting: str = field(metadata={"help": f"Setting of the study, one of {', '.join(SETTINGS)}."})
    data: str = field(metadata={"help": "Folder with train.parquet: images and labels."})
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
        if not Path(self.train_file).is_file() and not self.report:
            raise ValueError(f"--data {self.data} must be a folder with train.parquet, but has none")

    @property
    def train_file(self) -> str:
        return f"{self.data}/train.parquet"

    @property
    def recipe(self) -> str:
        return str(EXAMPLES / "recipes" / f"{SETTINGS[self.setting].recipe}.json")

    @property
    def num_epochs(self) -> float:
        """Epochs of the source."""
        return self.read_recipe()["num_train_epochs"]

    @property
    def one_scale(self) -> list[int]:
        return SETTINGS[self.setting].one_scale

    @property
    def learning_rates(self) -> dict[str, float]:
        rate = self.read_recipe()["learning_rate"]
        return {kind: round(rate * share, 6) for kind, share in RATES.items()}

    distillation = DISTILLATION

    def read_recipe(self) -> dict[str, Any]:
        return json.loads(Path(self.recipe).read_text())
