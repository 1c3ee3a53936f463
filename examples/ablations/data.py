# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The images of the tables, and the images on which settings and learning rates are chosen: no table reports those."""

from pathlib import Path

from datasets import Dataset

from clustr_hf.training.checkpoints import write_json


SELECTION_SEED = 20221128
TABLES_FILE, SELECTION_FILE = "tables.parquet", "selection.parquet"


def divide_images(source: Path, folder: Path, share: float) -> None:
    """
    Divide a file of images into those of the tables and those for choices, `tables.parquet` and `selection.parquet`.

    The division depends on the number of images only. Files that exist are kept.

    Args:
        source (`Path`): Parquet file with one row per image.
        folder (`Path`): Folder of the two files.
        share (`float`): Share of the images for choices, in (0, 1).
    """
    counts = folder / "counts.json"  # written last: the files are complete
    if counts.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_parquet(str(source), cache_dir=str(folder / "cache"))
    parts = rows.train_test_split(share, seed=SELECTION_SEED)
    for part, name in (("train", TABLES_FILE), ("test", SELECTION_FILE)):
        parts[part].to_parquet(folder / name)
    write_json(counts, {name: len(parts[part]) for part, name in (("train", TABLES_FILE), ("test", SELECTION_FILE))})
