# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What the command lines of all studies have in common: ablations, conversion and cluster_count."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


EXAMPLES = Path(__file__).resolve().parents[1]
SEGMENTATION_FILES = ["train.parquet", "val.parquet", "id2label.json"]


@dataclass(kw_only=True)
class BaseStudyArguments:
    """
    The data, the seeds and the output of a study.

    Subclasses have the paths `recipe` and `segmentation_recipe`, and call [`check`] when they are created.
    """

    data: str = field(metadata={"help": "Folder with train.parquet: images and labels of the classification runs."})
    segmentation_data: str | None = field(
        default=None,
        metadata={"help": f"Folder with {', '.join(SEGMENTATION_FILES)}. Default: no segmentation runs."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds; every row of a table is run once with each."}
    )
    report: bool = field(
        default=False, metadata={"help": "Whether to train nothing and report the runs that are complete."}
    )
    jobs: int = field(
        default=1, metadata={"help": "Number of runs to train at the same time; they share the CPU's threads."}
    )
    output_dir: str = field(default="out/study", metadata={"help": "Folder for runs, tables and pictures."})

    def check(self, data_files: list[str]) -> None:
        """Raise a `ValueError` that names the first invalid argument; `data_files` must be in the folder `data`."""
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds must be different numbers of at least 0, got {self.seeds}")
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}")
        for name in ("recipe", "segmentation_recipe"):
            if not Path(getattr(self, name)).is_file():
                raise ValueError(f"--{name} {getattr(self, name)} must be a JSON file, but does not exist")
        for name, required in {"data": data_files, "segmentation_data": SEGMENTATION_FILES}.items():
            folder = getattr(self, name)
            missing = [file for file in required if folder is not None and not (Path(folder) / file).is_file()]
            if missing and not self.report:
                raise ValueError(f"--{name} {folder} must be a folder with {required}, but lacks {missing}")

    def read_recipe(self, task: str = "classification") -> dict[str, Any]:
        """The recipe of a task, `"classification"` or `"segmentation"`."""
        return json.loads(Path(self.recipe if task == "classification" else self.segmentation_recipe).read_text())
