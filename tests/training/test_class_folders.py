"""Folders of images with one sub-folder for each class, with any structure inside."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clustr_hf.training.models import ModelArguments
from clustr_hf.training.tasks.image_classification.data import (
    ClassificationDataArguments,
    label_names,
    load_labelled_images,
)


def write_images(folder, *paths):
    for index, path in enumerate(paths):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, dtype=np.uint8)).save(place)
    return folder


def load(tmp_path, **folders):
    args = ClassificationDataArguments(**{name: str(folder) for name, folder in folders.items()})
    return load_labelled_images(args, ModelArguments(cache_dir=str(tmp_path / "cache")), seed=0)


def classes(rows, folder):
    """Path of each image below the folder -> the name of its class."""
    names = label_names(rows, "label")
    return {str(Path(row["image"]["path"]).relative_to(folder)): names[row["label"]] for row in rows}


NESTED = ("cat/indoor/1.png", "cat/outdoor/2.png", "dog/indoor/3.png", "dog/outdoor/very/4.JPG")
PARTLY_NESTED = ("cat/1.png", "cat/indoor/2.png", "dog/3.png", "dog/4.png")


@pytest.mark.parametrize("paths", [NESTED, PARTLY_NESTED])
def test_classes_are_the_folders_of_the_first_level(tmp_path, paths):
    folder = write_images(tmp_path / "train", *paths)
    (folder / "cat" / "notes.txt").write_text("no image")
    write_images(folder, ".git/5.png", "__MACOSX/cat/6.png", "dog/.ipynb_checkpoints/7.png")
    data = load(tmp_path, train_dir=folder, validation_dir=folder)
    for rows in data.values():
        assert classes(rows, folder) == {path: path[:3] for path in paths}
        assert label_names(rows, "label") == ["cat", "dog"]
    split = load(tmp_path, train_dir=folder)
    counts = Counter(path for rows in split.values() for path in classes(rows, folder))
    assert counts == dict.fromkeys(paths, 1)


def test_class_folders_may_be_links(tmp_path):
    write_images(tmp_path / "elsewhere", "a/1.png", "2.png")
    folder = write_images(tmp_path / "train", "dog/3.png")
    os.symlink(tmp_path / "elsewhere", folder / "cat")
    rows = load(tmp_path, train_dir=folder, validation_dir=folder)["train"]
    assert classes(rows, folder) == {"cat/2.png": "cat", "cat/a/1.png": "cat", "dog/3.png": "dog"}


def test_validation_folders_may_lack_classes(tmp_path):
    folder = write_images(tmp_path / "train", "ant/0.png", "cat/1.png", "dog/2.png")
    other = write_images(tmp_path / "validation", "dog/x/3.png", "cat/4.png")
    rows = load(tmp_path, train_dir=folder, validation_dir=other)["validation"]
    assert classes(rows, other) == {"cat/4.png": "cat", "dog/x/3.png": "dog"}
    assert label_names(rows, "label") == ["ant", "cat", "dog"]
    only = write_images(tmp_path / "only", "dog/3.png", "dog/4.png")
    rows = load(tmp_path, train_dir=folder, validation_dir=only)["validation"]
    assert set(classes(rows, only).values()) == {"dog"}


@pytest.mark.parametrize(
    "paths, message",
    [
        (["cat/1.png", "cat/indoor/2.png"], r"--train_dir .* must have two class folders or more, got only 'cat'"),
        (["1.png", "2.png"], r"must have one sub-folder for each class .* sub-folders \[\] and the images \['1.png'"),
        (["cat/1.png", "dog/2.png", "3.png"], r"no images beside them, got the sub-folders \['cat', 'dog'\] .*'3.png'"),
        (["train/cat/1.png", "val/dog/2.png"], r"sub-folders \['train', 'val'\], which look like splits, not like"),
    ],
)
def test_folders_that_hold_no_classes_are_refused(tmp_path, paths, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, train_dir=write_images(tmp_path / "train", *paths))


def test_classes_may_be_called_like_splits(tmp_path):
    folder = write_images(tmp_path / "railway", "train/1.png", "test/2.png")
    assert classes(load(tmp_path, train_dir=folder)["train"], folder).popitem()[1] in ("train", "test")


@pytest.mark.parametrize(
    "paths, message",
    [
        ([f"train/{path}" for path in NESTED], r"one folder for each class, without folders in it, got .*cat/indoor"),
        ([f"train/{path}" for path in PARTLY_NESTED], r"one folder for each class, without folders in it, got .*'cat'"),
        (["train/cat/1.png", "train/cat/2.png"], r"the images must be of two classes or more, got the folders"),
    ],
)
def test_data_sets_of_nested_folders_are_refused(tmp_path, paths, message):
    folder = write_images(tmp_path / "data", *paths)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, dataset_name=folder)


def test_data_sets_of_folders_are_read(tmp_path):
    paths = ["train/cat/1.png", "train/dog/2.png", "validation/dog/3.png"]
    data = load(tmp_path, dataset_name=write_images(tmp_path / "data", *paths))
    assert [label_names(rows, "label")[rows[0]["label"]] for rows in data.values()] == ["cat", "dog"]
