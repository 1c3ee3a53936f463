# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Image folders with one sub-folder for each class."""

import os
from pathlib import Path, PurePath, PurePosixPath

from datasets import ClassLabel, Dataset, DatasetBuilder, DatasetDict, Features, Image, Value
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ....name_lists import shorten


# Folders with these names are splits and not classes.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


def read_class_folders(folders: dict[str, str]) -> DatasetDict:
    """
    Rows of folders with one sub-folder for each class, sorted by path. Images at any depth below a sub-folder belong to
    its class: those in `cat/indoor` are cats.

    Args:
        folders (`dict[str, str]`): Folder of each split.

    Raises:
        ValueError: if a folder does not have such sub-folders.
    """
    data = {}
    for split, folder in folders.items():
        files = _class_files(split, Path(folder))
        names = sorted(files)
        rows = [(str(path), index) for index, name in enumerate(names) for path in files[name]]
        columns = dict(zip(("image", "label"), map(list, zip(*rows))))
        features = Features({"image": Value("string"), "label": ClassLabel(names=names)})
        data[split] = Dataset.from_dict(columns, features=features).cast_column("image", Image())
        if split == "train" and len(names) < 2:
            raise ValueError(f"--train_dir {folder} must have two class folders or more, got only {names[0]!r}")
    return DatasetDict(data)


def _class_files(split: str, folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder."""
    if not folder.is_dir():
        raise ValueError(f"--{split}_dir {folder} is not a folder")
    loose = [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)]
    files = {path.name: _images_below(path) for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path)}
    if loose or not files:
        raise ValueError(
            f"--{split}_dir {folder} must have one sub-folder for each class and no images beside them, got the "
            f"sub-folders {shorten(files)} and the images {shorten(loose)}"
        )
    for name, paths in files.items():
        if not paths:
            raise ValueError(f"--{split}_dir: the class folder {folder / name} has no images")
    if {name.lower() for name in files} <= SPLIT_NAMES and all(
        path.parent != folder / path.relative_to(folder).parts[0] for paths in files.values() for path in paths
    ):
        raise ValueError(
            f"--{split}_dir {folder} has the sub-folders {list(files)}, which look like splits, not like classes: give "
            "--train_dir and --validation_dir"
        )
    return files


def is_image(path: PurePath) -> bool:
    """Whether the file name has the extension of a readable image format."""
    return path.suffix.lower() in ImageFolder.EXTENSIONS and not path.name.startswith(".")


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))


def _images_below(folder: Path) -> list[Path]:
    """All images below a folder, sorted by path; symbolic links are followed."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(Path(name))]
        found += [path for path in (Path(place) / name for name in files) if is_image(path)]
    return sorted(found)


def check_nesting(builder: DatasetBuilder, dataset_name: str | None) -> None:
    """
    Raise a `ValueError` for a data set of image files with one class only, or with folders inside the class folders:
    `datasets` would use the innermost folders as classes, or no classes.

    Args:
        builder (`DatasetBuilder`): Knows the files of the data set.
        dataset_name (`str`, *optional*): Name of the data set in error messages.
    """
    if builder.name != "imagefolder" or _has_metadata(builder):
        return
    folders = {
        split: sorted({PurePosixPath(path).parent for path in files if is_image(PurePosixPath(path))})
        for split, files in builder.config.data_files.items()
    }
    all_folders = [folder for of_split in folders.values() for folder in of_split]
    if not all_folders:
        return  # the images are in archives
    base = PurePosixPath(os.path.commonpath(all_folders))
    found = f"got the folders {shorten(str(folder.relative_to(base)) for folder in all_folders)} in {base}"
    if len({folder.name for folder in all_folders}) < 2:
        raise ValueError(f"--dataset_name {dataset_name}: the images must be of two classes or more, {found}")
    are_nested = any(
        {len(folder.parts) for folder in of_split} != {len(PurePosixPath(os.path.commonpath(of_split)).parts) + 1}
        for of_split in folders.values()
        if len(of_split) > 1
    )
    if are_nested or len({len(folder.parts) for folder in all_folders}) > 1:
        raise ValueError(
            f"--dataset_name {dataset_name}: the images of a split must lie in one folder for each class, without "
            f"folders in it, {found}; --train_dir and --validation_dir allow them"
        )


def _has_metadata(builder: DatasetBuilder) -> bool:
    names = {Path(path).name for files in builder.config.data_files.values() for path in files}
    return any(name in builder.METADATA_FILENAMES for name in names)
