# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of the ablations."""

from dataclasses import dataclass, field
from pathlib import Path

from ablations.study_arguments import EXAMPLES, BaseStudyArguments
from ablations.tables import ROWS, TABLES


@dataclass
class AblationArguments(BaseStudyArguments):
    """The tables, data and recipes of the runs."""

    table: list[str] = field(metadata={"help": f"Tables to make, any of {', '.join(TABLES)}."})
    recipe: str | None = field(
        default=None, metadata={"help": "Recipe of the classification runs. Default: that of the tables."}
    )
    segmentation_recipe: str = field(
        default=str(EXAMPLES / "recipes/ablation_camvid.json"), metadata={"help": "Recipe of the segmentation runs."}
    )
    time_per_image: bool = field(
        default=True, metadata={"help": "Whether to measure the time per image for the tables."}
    )
    selection_share: float = field(
        default=0.2,
        metadata={"help": "Share of the images that no table reports, for the choice of settings and learning rates."},
    )
    dataloader_num_workers: int = field(
        default=1, metadata={"help": "Number of data-loading worker processes of each run."}
    )
    output_dir: str = field(
        default="out/ablations", metadata={"help": "Folder for runs, tables and pictures."}, kw_only=True
    )

    def __post_init__(self):
        unknown = sorted(set(self.table) - set(TABLES))
        if unknown:
            raise ValueError(f"--table must be any of {list(TABLES)}, got {unknown}")
        if not 0 <= self.selection_share < 1:
            raise ValueError(f"--selection_share must be in [0, 1), got {self.selection_share}")
        choices = [name for name in self.table if any(ROWS[row].is_choice for row in TABLES[name].rows)]
        if choices and self.selection_share == 0:
            raise ValueError(f"--selection_share must be more than 0 for --table {choices}, got 0")
        self.recipe = self.recipe or self._recipe_of_tables()
        self.check(["train.parquet"])
        side = self.read_recipe().get("image_size")
        if side is None:
            raise ValueError(f"--recipe {self.recipe} must name the image_size")
        others = [name for name in self.table if TABLES[name].image_size not in (None, side)]
        if others:
            raise ValueError(f"--table {others} have rows for other image sizes than the {side} pixels of --recipe")

    def _recipe_of_tables(self) -> str:
        names = sorted({TABLES[name].recipe for name in self.table})
        if len(names) > 1:
            raise ValueError(f"--table {self.table} have the recipes {names}: make them by separate commands")
        return str(EXAMPLES / "recipes" / f"{names[0]}.json")

    @property
    def image_folder(self) -> Path:
        """Folder of the divided images of the classification runs, see [`divide_images`]."""
        return Path(self.output_dir) / "images"
