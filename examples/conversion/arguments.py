# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of the study, and the settings of its data sets."""

from dataclasses import dataclass, field
from typing import NamedTuple

from ablations.study_arguments import EXAMPLES, BaseStudyArguments


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
class ConversionStudyArguments(BaseStudyArguments):
    """The setting, its data and the seeds."""

    setting: str = field(metadata={"help": f"Setting of the study, one of {', '.join(SETTINGS)}."})
    data: str = field(
        metadata={"help": "Folder with train.parquet, for --choices also val.parquet: images and labels."}, kw_only=True
    )
    choices: bool = field(
        default=False,
        metadata={"help": "Whether to compare learning rates and distillations on val.parquet instead."},
    )
    rows: str = field(default="", metadata={"help": "Regular expression; only rows whose name matches are trained."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Number of data-loading worker processes of each run."}
    )
    output_dir: str = field(default="out/conversion", metadata={"help": "Folder for runs and tables."}, kw_only=True)

    def __post_init__(self):
        if self.setting not in SETTINGS:
            raise ValueError(f"--setting must be one of {list(SETTINGS)}, got {self.setting!r}")
        self.check(["train.parquet", *(["val.parquet"] if self.choices else [])])

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
