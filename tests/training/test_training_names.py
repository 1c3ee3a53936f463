"""`--exclude_train_names` leaves training images out by their file names, whatever the source of the data."""

import io
import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from clustr_hf.training.data.splits import exclude_names, file_names, load_data
from clustr_hf.training.models import ModelArguments
from clustr_hf.training.tasks.detection.data import DetectionDataArguments, detection_format
from clustr_hf.training.tasks.image_classification.data import (
    ClassificationDataArguments,
    load_labelled_images,
    load_stream,
)
from clustr_hf.training.tasks.pose_estimation.data import PoseDataArguments, pose_format
from clustr_hf.training.tasks.semantic_segmentation.data import SegmentationDataArguments, segmentation_format


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, format="png")
    return buffer.getvalue()


def rows_of(names, with_path=True):
    """Rows of images and labels, as in parquet files; the label is the index of the row."""
    images = [{"bytes": png(index), "path": name if with_path else None} for index, name in enumerate(names)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(map(str, range(len(names)))))})
    return Dataset.from_dict({"image": images, "label": list(range(len(names)))}, features=features)


NAMES = ["0016E5_1.png", "0001TP_2.png", "0016E5_3.png", "0006R0_0016E5_4.png"]


def load_classes(pattern, **settings):
    args = ClassificationDataArguments(exclude_train_names=pattern, **settings)
    return load_labelled_images(args, ModelArguments(), seed=0)


@pytest.mark.parametrize("source", ["parquet", "dataset"])
def test_rows_with_paths_are_left_out_by_the_whole_name(source, tmp_path):
    rows_of(NAMES).to_parquet(tmp_path / "train.parquet")
    rows_of(NAMES).to_parquet(tmp_path / "validation.parquet")
    settings = {"dataset_name": str(tmp_path)}
    if source == "parquet":
        settings = {f"{split}_file": str(tmp_path / f"{split}.parquet") for split in ("train", "validation")}
    data = load_classes("^0016E5_", **settings)
    assert data["train"]["label"][:] == [1, 3]
    assert data["validation"]["label"][:] == [0, 1, 2, 3]  # only the training split is restricted
    assert load_classes("0016E5_", **settings)["train"]["label"][:] == [1]  # matches anywhere in a name
    assert load_classes("^0016E5_", max_train_samples=2, **settings)["train"].num_rows == 2  # applied last


def test_the_validation_that_is_split_off_does_not_depend_on_it(tmp_path):
    names = [f"{'ab'[index % 2]}{index}.png" for index in range(20)]
    rows_of(names).to_parquet(tmp_path / "train.parquet")
    settings = {"train_file": str(tmp_path / "train.parquet"), "train_val_split": 0.3}
    everything, data = load_classes(None, **settings), load_classes("^a", **settings)
    assert data["validation"]["label"][:] == everything["validation"]["label"][:]
    assert data["train"]["label"][:] == [label for label in everything["train"]["label"][:] if label % 2]


def test_folders_of_classes(tmp_path):
    for split in ("train", "validation"):
        for index, name in enumerate(NAMES):
            path = tmp_path / split / f"0016E5_{index % 2}" / name  # only file names are matched, not folders
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(index))
    folders = {f"{split}_dir": str(tmp_path / split) for split in ("train", "validation")}
    data = load_classes("^0016E5_", **folders)
    assert sorted(file_names(data["train"], "image")) == sorted([NAMES[1], NAMES[3]])
    assert data["validation"].num_rows == 4


def test_folders_of_label_maps(segmentation_folders):
    args = SegmentationDataArguments(
        train_dir=str(segmentation_folders / "train"), exclude_train_names=r"^0\d\.png$", train_val_split=0.1
    )
    data = load_data(args, {}, 0, segmentation_format(args))
    names = file_names(data["train"], "image")
    assert set(names) <= {"10.png", "11.png"} and names == file_names(data["train"], "annotation")


def test_coco_files(coco_folders, person_folders):
    for is_pose, folder in ((False, coco_folders), (True, person_folders)):
        listed = [image["file_name"] for image in json.loads((folder / "train.json").read_text())["images"]]
        settings = {f"{split}_dir": str(folder / split) for split in ("train", "validation")}
        settings |= {f"{split}_annotation_file": str(folder / f"{split}.json") for split in ("train", "validation")}
        settings["exclude_train_names"] = "^1.[.]"
        args = PoseDataArguments(keypoints="coco", **settings) if is_pose else DetectionDataArguments(**settings)
        data = load_data(args, {}, 0, pose_format(args) if is_pose else detection_format(args))
        kept = [name for name in listed if not name.startswith("1")]
        assert 0 < len(kept) < len(listed)
        assert file_names(data["train"], "image") == kept


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("^0017", r"--exclude_train_names must match some.*'\^0017', which matches none of 4, such as \['0016E5_1"),
        ("png$", "which matches all of 4"),
        ("(", "--exclude_train_names must be a regular expression, got '\\('"),
    ],
)
def test_a_pattern_that_does_nothing_or_too_much_is_refused(pattern, message, tmp_path):
    rows_of(NAMES).to_parquet(tmp_path / "train.parquet")
    file = str(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_classes(pattern, train_file=file, validation_file=file)


@pytest.mark.parametrize("names", [NAMES, [*NAMES[:2], None]])
def test_images_without_names_are_refused(names):
    rows = rows_of(names, with_path=None in names)
    first = names.index(None) if None in names else 0
    with pytest.raises(ValueError, match=f"file names of the training images.*'image' has none for.*sample {first}"):
        exclude_names(rows, "image", "^0016E5_")


def test_streams_are_refused(tmp_path):
    rows_of(NAMES).to_parquet(tmp_path / "train.parquet")
    file = str(tmp_path / "train.parquet")
    args = ClassificationDataArguments(train_file=file, validation_file=file, exclude_train_names="^0016E5_")
    with pytest.raises(ValueError, match="--exclude_train_names cannot be combined with --streaming"):
        load_stream(args, ModelArguments())


def test_names_in_archives_and_of_windows():
    rows = rows_of(["zip://day/a.png::/data/b.zip", "C:\\frames\\c.png", "https://host/d.png"])
    assert file_names(rows, "image") == ["a.png", "c.png", "d.png"]
    assert DatasetDict(train=exclude_names(rows, "image", "^a")).num_rows == {"train": 2}
