# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A conversion as a run of the ablations: one command of `convert_pretrained.py`."""

from dataclasses import dataclass
from pathlib import Path

from ablations.runs import Run

from clustr_hf.training.checkpoints import write_json


@dataclass(frozen=True)
class Conversion(Run):
    """The conversion of the source with one seed, which `start_from` is; see [`Run`]."""

    @property
    def settings_file(self) -> Path:
        """Beside the folder, which holds nothing but a repository."""
        return self.folder.with_suffix(".json")

    def start(self, threads: int | None = None):
        """Convert the source, unless that is done."""
        if not self.is_complete():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.settings_file, self.settings())
            self.execute(self.folder, {"model_name_or_path": self.start_from.folder}, threads)
