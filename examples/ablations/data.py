# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The images of the tables, and the images on which settings and learning rates are chosen: no table reports those."""

import json
from pathlib import Path

from datasets import Dataset

from clustr_hf.training.checkpoints import write_json


SELECTION_SEED = 20221128
TABLES_FILE, SELECTION_FILE = "tables.parquet", "selection.parquet"


def divide_images(source: Path, folder: Path, share: float) -> None:
    """
    Divide a file of images into those of the tables and those for choices, `tables.parquet` and `selection.parquet`.

    The division depends on the number of images only. Files of the same division are kept.

    Args:
        source (`Path`): Parquet file with one row per image.
        folder (`Path`): Folder of the two files.
        share (`float`): Share of the images for choices, in (0, 1).

    Raises:
        ValueError: if the folder holds a division of another file, or with another share.
    """
    division, record = {"source": str(source.resolve()), "share": share}, folder / "division.json"
    if record.is_file():  # written last: the files are complete
        found = json.loads(record.read_text())
        if found != division:
            raise ValueError(f"{folder} holds images of {found}, expected {division}: choose another --output_dir")
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_parquet(str(source), cache_dir=str(folder / "cache"))
    parts = rows.train_test_split(share, seed=SELECTION_SEED)
    parts["train"].to_parquet(folder / TABLES_FILE)
    parts["test"].to_parquet(folder / SELECTION_FILE)
    write_json(record, division)
