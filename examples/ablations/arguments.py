# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of the ablations."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.tables import ROWS, TABLES


EXAMPLES = Path(__file__).resolve().parents[1]


@dataclass
class AblationArguments:
    """The tables, data and recipes of the runs."""

    table: list[str] = field(metadata={"help": f"Tables to make, any of {', '.join(TABLES)}."})
    data: str = field(metadata={"help": "Folder with train.parquet: images and labels of the classification runs."})
    segmentation_data: str | None = field(
        default=None,
        metadata={"help": "Folder with train.parquet, val.parquet and id2label.json. Default: no segmentation runs."},
    )
    recipe: str | None = field(
        default=None, metadata={"help": "Recipe of the classification runs. Default: that of the tables."}
    )
    segmentation_recipe: str = field(
        default=str(EXAMPLES / "recipes/ablation_camvid.json"), metadata={"help": "Recipe of the segmentation runs."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds; every row of a table is run once with each."}
    )
    report: bool = field(
        default=False,
        metadata={"help": "Whether to train nothing and write the tables and curves of the complete runs."},
    )
    time_per_image: bool = field(
        default=True, metadata={"help": "Whether to measure the time per image for the tables."}
    )
    selection_share: float = field(
        default=0.2,
        metadata={"help": "Share of the images that no table reports, for the choice of settings and learning rates."},
    )
    jobs: int = field(
        default=1, metadata={"help": "Number of runs to train at the same time; they share the CPU's threads."}
    )
    dataloader_num_workers: int = field(
        default=1, metadata={"help": "Number of data-loading worker processes of each run."}
    )
    output_dir: str = field(default="out/ablations", metadata={"help": "Folder for runs, tables and pictures."})

    def __post_init__(self):
        unknown = sorted(set(self.table) - set(TABLES))
        if unknown:
            raise ValueError(f"--table must be any of {list(TABLES)}, got {unknown}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds must be different numbers of at least 0, got {self.seeds}")
        if not 0 <= self.selection_share < 1:
            raise ValueError(f"--selection_share must be in [0, 1), got {self.selection_share}")
        choices = [name for name in self.table if any(ROWS[row].is_choice for row in TABLES[name].rows)]
        if choices and self.selection_share == 0:
            raise ValueError(f"--selection_share must be more than 0 for --table {choices}, got 0")
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}")
        self.recipe = self.recipe or self._recipe_of_tables()
        for name in ("recipe", "segmentation_recipe"):
            if not Path(getattr(self, name)).is_file():
                raise ValueError(f"--{name} {getattr(self, name)} must be a JSON file, but does not exist")
        side = self.read_recipe("classification").get("image_size")
        if side is None:
            raise ValueError(f"--recipe {self.recipe} must name the image_size")
        others = [name for name in self.table if TABLES[name].image_size not in (None, side)]
        if others:
            raise ValueError(f"--table {others} have rows for other image sizes than the {side} pixels of --recipe")
        files = {"data": ["train.parquet"], "segmentation_data": ["train.parquet", "val.parquet", "id2label.json"]}
        for name, required in files.items():
            folder = getattr(self, name)
            missing = [file for file in required if folder is not None and not (Path(folder) / file).is_file()]
            if missing and not self.report:
                raise ValueError(f"--{name} {folder} must be a folder with {required}, but lacks {missing}")

    def _recipe_of_tables(self) -> str:
        names = sorted({TABLES[name].recipe for name in self.table})
        if len(names) > 1:
            raise ValueError(f"--table {self.table} have the recipes {names}: make them by separate commands")
        return str(EXAMPLES / "recipes" / f"{names[0]}.json")

    @property
    def image_folder(self) -> Path:
        """Folder of the divided images of the classification runs, see [`divide_images`]."""
        return Path(self.output_dir) / "images"

    def read_recipe(self, task: str) -> dict[str, Any]:
        """The recipe of a task, `"classification"` or `"segmentation"`."""
        return json.loads(Path(self.recipe if task == "classification" else self.segmentation_recipe).read_text())
