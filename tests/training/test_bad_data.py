"""Errors of malformed data name the file, sample and field, what was expected and what was found."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from clustr_hf import ClusTRDetectionImageProcessor, ClusTRImageProcessor
from clustr_hf.keypoints import COCO
from clustr_hf.training.data.coco_files import CocoFile
from clustr_hf.training.data.data_files import load_parts
from clustr_hf.training.data.decoding import UnreadableSample, decode_image
from clustr_hf.training.data.labelled_rows import cast_images
from clustr_hf.training.data.samples import EvaluationSamples, TrainingSamples
from clustr_hf.training.data.splits import load_data
from clustr_hf.training.data.streams import StreamedBatches
from clustr_hf.training.models import ModelArguments
from clustr_hf.training.tasks.detection.data import DetectionDataArguments, ParseObjects
from clustr_hf.training.tasks.detection.transforms import ReadSample, prepare_for_evaluation
from clustr_hf.training.tasks.image_classification.data import (
    ClassificationDataArguments,
    load_labelled_images,
    load_stream,
)
from clustr_hf.training.tasks.image_classification.transforms import ReadRow
from clustr_hf.training.tasks.pose_estimation.annotations import read_persons
from clustr_hf.training.tasks.pose_estimation.person_boxes import detected_boxes
from clustr_hf.training.tasks.semantic_segmentation.data import SegmentationDataArguments, segmentation_format
from clustr_hf.training.tasks.semantic_segmentation.transforms import ReadLabelMap
from clustr_hf.visualization import plot_keypoints, plot_segmentation


PIXELS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
LABELS = ClassLabel(names=["cat", "dog"])


def encode(image, folder):
    path = folder / "encoded.png"
    image.save(path)
    return {"bytes": path.read_bytes(), "path": None}


@pytest.fixture
def models(tmp_path):
    return ModelArguments(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path):
    """Write columns of a data set to a parquet file with the given name."""

    def write_file(name, number=4, features=None, **changes):
        columns = {"image": [encode(PIXELS, tmp_path)] * number, "label": [0, 1] * (number // 2)}
        columns = {key: value for key, value in {**columns, **changes}.items() if value is not None}
        known = {"image": ImageFeature(), "label": LABELS, "annotation": ImageFeature(), "weight": Value("int64")}
        schema = Features({**known, **(features or {})})
        schema = Features({key: schema[key] for key in columns}).arrow_schema
        pq.write_table(pa.table(columns, schema=schema), tmp_path / name)
        return str(tmp_path / name)

    return write_file


def test_splits_may_differ_in_their_columns_but_for_those_that_are_needed(write, models):
    train, other = write("train.parquet"), write("other.parquet", weight=[1, 2, 3, 4])
    for files in ((train, other), (other, train)):
        data = load_labelled_images(
            ClassificationDataArguments(train_file=files[0], validation_file=files[1]), models, 0
        )
        assert [len(rows) for rows in data.values()] == [4, 4]
    bare = write("bare.parquet", label=None)
    with pytest.raises(ValueError, match=r"--label_column_name 'label' is not in .* \['image'\] in its validation"):
        load_labelled_images(ClassificationDataArguments(train_file=train, validation_file=bare), models, 0)


def test_a_test_split_may_lack_the_labels(write, models, tmp_path):
    for name, settings in (("train", {}), ("validation", {}), ("test", {"label": None})):
        write(f"{name}.parquet", **settings)
    data = load_labelled_images(ClassificationDataArguments(dataset_name=str(tmp_path)), models, 0)
    assert data.num_rows == {"train": 4, "validation": 4}


def test_a_validation_file_without_label_maps_is_named(write, tmp_path, models):
    """Without this check, its rows would have None instead of a map and would be skipped as broken."""
    maps = [encode(Image.new("L", (30, 20)), tmp_path)] * 4
    train, bare = write("train.parquet", label=None, annotation=maps), write("bare.parquet", label=None)
    args = SegmentationDataArguments(train_file=train, validation_file=bare, id2label_file="x")
    with pytest.raises(ValueError, match=r"--label_column_name 'annotation' is not in the data set, .* validation"):
        load_data(args, models.download_arguments, 0, segmentation_format(args))
    numbers = write("numbers.parquet", label=None, annotation=[1, 2, 3, 4], features={"annotation": Value("int64")})
    args = SegmentationDataArguments(train_file=train, validation_file=numbers, id2label_file="x")
    with pytest.raises(ValueError, match=r"--label_column_name 'annotation' must be a column of images, got .*"):
        load_data(args, models.download_arguments, 0, segmentation_format(args))


def test_files_of_a_split_with_different_columns_are_named(write, tmp_path, models):
    files = [write("one.parquet"), write("two.parquet", weight=[1, 2, 3, 4])]
    with pytest.raises(ValueError, match=r"train split .* same columns, but .*one.parquet has .*, 'weight'\]"):
        load_parts("parquet", data_files={"train": files}, cache_dir=models.cache_dir)


def spoil_pages(path):
    content = bytearray(Path(path).read_bytes())
    for place in range(20, len(content) // 3):
        content[place] ^= 0x5A
    return bytes(content)


BROKEN = {
    "empty": lambda path: b"",
    "text": lambda path: b"a,b\n1,2\n" * 9,
    "cut": lambda path: Path(path).read_bytes()[:-200],
    "pages": spoil_pages,
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_broken_parquet_file_is_named(write, models, spoil, split):
    files = {"train": write("train.parquet"), "validation": write("validation.parquet")}
    content = spoil(files[split])
    Path(files[split]).write_bytes(content)
    args = ClassificationDataArguments(train_file=files["train"], validation_file=files["validation"])
    with pytest.raises(ValueError, match=f"{split}.parquet cannot be read as a file of kind parquet: "):
        load_labelled_images(args, models, 0)
    with pytest.raises(ValueError, match=f"{split}.parquet cannot be read as a file of kind parquet: "):
        stream, _, _ = load_stream(args, models)
        next(iter(StreamedBatches(stream, lambda row: row, lambda row: row, list, 2, seed=0)))


def test_a_split_without_rows_is_named(write, models):
    args = ClassificationDataArguments(
        train_file=write("train.parquet"), validation_file=write("none.parquet", number=0)
    )
    with pytest.raises(ValueError, match=r"the validation split must have rows, got none in .*none.parquet"):
        load_labelled_images(args, models, 0)


@pytest.mark.parametrize("label", [None, 2, -1])
def test_labels_of_streams_are_checked(write, models, label):
    """Validation labels are checked when the rows are stored, training labels when a row is drawn."""
    whole, bad = write("whole.parquet"), write("bad.parquet", label=[0, 1, label, 0])
    with pytest.raises(ValueError, match=rf"the label of validation sample 2 must be in \[0, 2\), got {label}"):
        load_stream(ClassificationDataArguments(train_file=whole, validation_file=bad), models)
    stream, _, _ = load_stream(ClassificationDataArguments(train_file=bad, validation_file=whole), models)
    read, rows = ReadRow(ClusTRImageProcessor(), ("image", "label"), 2, "training"), list(stream)
    assert read(rows[1])[1] == 1
    with pytest.raises(ValueError, match=r"of training sample of \d+ bytes with CRC-32 \w+ must be in \[0, 2\), got"):
        read(rows[2])


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}, {}, 5, "x"])
def test_rows_without_an_image_are_unreadable(image):
    with pytest.raises(UnreadableSample, match="validation sample 3: must be an image, with its bytes or"):
        decode_image(image, "validation sample 3")
    if not isinstance(image, (int, str)):
        with pytest.raises(UnreadableSample, match="training sample of 0 bytes"):
            ReadRow(ClusTRImageProcessor(), ("image", "label"), 2, "training")({"image": image, "label": 1})


def test_columns_that_are_no_images_are_named():
    data = DatasetDict(train=Dataset.from_dict({"picture": [1.5, 2.5]}))
    with pytest.raises(ValueError, match=r"--image_column_name 'picture' must be a column of images, got .* train"):
        cast_images(data, image_column_name="picture")


@pytest.mark.parametrize("error", [ValueError("too small"), RuntimeError("too small"), ZeroDivisionError("too small")])
def test_errors_of_transforms_say_of_which_sample(error):
    class Read:
        def __call__(self, key):
            return key

        def name(self, key):
            return f"validation sample {key}"

    def transform(sample):
        raise error

    for samples, key in ((TrainingSamples(Read(), transform, 5), (3, 1)), (EvaluationSamples(Read(), transform, 5), 3)):
        with pytest.raises(type(error), match="validation sample 3: too small"):
            samples[key]


WHOLE = {"bbox": [[1, 2, 5, 6], [3, 4, 9, 9]], "category": [0, 1], "area": [30.0, 81.0], "iscrowd": [0, 0]}
OBJECTS = {
    "fewer classes": ({"category": [0]}, "as many values of 'category' as boxes, 2, got 1"),
    "more classes": ({"category": [0, 1, 1]}, "as many values of 'category' as boxes, 2, got 3"),
    "no classes": ({"category": []}, "as many values of 'category' as boxes, 2, got 0"),
    "no list of classes": ({"category": None}, "as many values of 'category' as boxes, 2, got 0"),
    "fewer areas": ({"area": [30.0]}, "as many values of 'area' as boxes, 2, got 1"),
    "more crowds": ({"iscrowd": [0, 0, 1]}, "as many values of 'iscrowd' as boxes, 2, got 3"),
    "fewer boxes": ({"bbox": [[1, 2, 5, 6]]}, "as many values of 'category' as boxes, 1, got 2"),
    "no boxes": ({"bbox": []}, "as many values of 'category' as boxes, 0, got 2"),
    "null in classes": ({"category": [0, None]}, r"`annotations\[1\]\['category_id'\]` must be"),
    "a class beyond": ({"category": [0, 2]}, r"classes must be in \[0, 2\), got \[0, 2\]"),
    "a name beyond": ({"category": ["a", "c"]}, r"object 1 must have one of the classes \['a', 'b'\], got 'c'"),
    "null as box": ({"bbox": [[1, 2, 5, 6], None]}, r"`annotations\[1\]\['bbox'\]` must be"),
    "a short box": ({"bbox": [[1, 2, 5, 6], [1, 2, 3]]}, r"`annotations\[1\]\['bbox'\]` must be"),
    "an infinite box": ({"bbox": [[1, 2, 1e300, 6], [1, 2, 3, 4]]}, r"`annotations\[0\]\['bbox'\]` must be"),
    "strings in a box": ({"bbox": [["1", "2", "3", "4"], [1, 2, 3, 4]]}, r"`annotations\[0\]\['bbox'\]` must be"),
    "nan as area": ({"area": [float("nan"), 1.0]}, r"`annotations\[0\]\['area'\]` must be"),
    "objects that are none": ([None, {"bbox": [1, 2, 3, 4], "category": 0}], "object 0 must be a dictionary, got None"),
}


@pytest.mark.parametrize("change, message", OBJECTS.values(), ids=OBJECTS)
def test_objects_that_do_not_fit_together_are_named(change, message, tmp_path):
    """The errors are the same for the validation and the training split."""
    objects = change if isinstance(change, list) else {**WHOLE, **change}
    rows = [{"image": encode(PIXELS, tmp_path), "objects": objects}] * 2
    parse = ParseObjects(DetectionDataArguments(train_file="x"), ["a", "b"])
    for split in ("train", "validation"):
        read = ReadSample(rows, parse, ClusTRDetectionImageProcessor(), 2, False, split)
        with pytest.raises(ValueError, match=f"{split} sample 1: .*{message}"):
            EvaluationSamples(read, partial(prepare_for_evaluation, processor=ClusTRDetectionImageProcessor()), 2)[1]


CORNERS = [[1, 2, 5], [5, 2, 1, 6], ["1", "2", "5", "6"], [1, 2, None, 6], None, 5, [1, 6, 5, 2]]


@pytest.mark.parametrize("box", CORNERS)
def test_corners_that_are_no_box_are_named(box, tmp_path):
    parse = ParseObjects(DetectionDataArguments(train_file="x", box_format="xyxy"), ["a", "b"])
    row = {"image": encode(PIXELS, tmp_path), "objects": {"bbox": [[1, 2, 5, 6], box], "category": [0, 1]}}
    read = ReadSample([row], parse, ClusTRDetectionImageProcessor(), 2, False, "validation")
    with pytest.raises(ValueError, match=r"validation sample 0: object 1 must have a box \(x0, y0, x1, y1\).*, got"):
        read(0)


def test_optional_lists_of_objects_may_be_empty(tmp_path):
    parse = ParseObjects(DetectionDataArguments(train_file="x"), ["a", "b"])
    row = {"image": encode(PIXELS, tmp_path), "objects": {**WHOLE, "area": [], "iscrowd": None}}
    sample = ReadSample([row], parse, ClusTRDetectionImageProcessor(), 2, False, "train")(0)
    assert sample.area.tolist() == [30, 81] and sample.labels.tolist() == [0, 1]


def test_a_slim_image_is_evaluated(tmp_path):
    """The resized shorter side would be shorter than a pixel."""
    row = {"image": encode(PIXELS.resize((3, 2000)), tmp_path), "objects": {"bbox": [[0, 0, 3, 900]], "category": [1]}}
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    parse = ParseObjects(DetectionDataArguments(train_file="x"), ["a", "b"])
    read = ReadSample([row], parse, processor, 2, False, "validation")
    loaded = EvaluationSamples(read, partial(prepare_for_evaluation, processor=processor), 1)[0]
    assert loaded["sample"]["pixel_values"].shape == (3, 160, 1) and loaded["index"] == 0


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (1, 5000), (5000, 1)])
def test_pictures_of_slim_images_are_drawn(size, tmp_path):
    """Without a limit, matplotlib would draw figures of gigabytes, or without any pixels."""
    image, persons = PIXELS.resize(size), torch.zeros(1, 2, 3)
    figures = {
        "keypoints": plot_keypoints([image] * 2, [persons] * 2, [persons] * 2, ["a", "b"], [(0, 1)]),
        "maps": plot_segmentation([image] * 2, *[[torch.zeros(size[::-1], dtype=torch.int64)] * 2] * 2, ["a", "b"]),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert max(Image.open(tmp_path / f"{name}.png").size) < 8000


@pytest.mark.parametrize(
    "values, message",
    [
        (np.full((20, 30), 0.5, np.float32), "must hold whole numbers"),
        (np.full((20, 30), np.nan, np.float32), "must hold whole numbers"),
        (np.full((20, 30), -1, np.int32), "must have labels in"),
    ],
)
def test_maps_of_other_numbers_than_labels_are_named(values, message, tmp_path):
    """Uses a TIFF of floats, whose fractions would be truncated."""
    Image.fromarray(values).save(tmp_path / "map.tif")
    rows = Dataset.from_dict({"annotation": [{"bytes": None, "path": str(tmp_path / "map.tif")}]})
    with pytest.raises(ValueError, match=f"the label map of validation sample 0: .*{message}"):
        ReadLabelMap(rows, "annotation", 2, False, "validation")[0]


PERSON = {"id": 9, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "keypoints": [1, 2, 2] * 17, "area": 50}
PERSONS = {
    "no keypoints": ({"keypoints": None}, r"an annotation must have \['keypoints'\]"),
    "fewer keypoints": (
        {"keypoints": [1, 2, 2] * 16},
        "an annotation must have 17 keypoints .* got 48 values",
    ),
    "a string of keypoints": ({"keypoints": "1" * 51}, r"`annotations\[1\]\['keypoints'\]` must be a list"),
    "strings": ({"keypoints": ["1", 2, 2] * 17}, r"`annotations\[1\]\['keypoints'\]` must be numbers, got '1'"),
    "null": ({"keypoints": [None, 2, 2] * 17}, r"`annotations\[1\]\['keypoints'\]` must be numbers, got None"),
    "nan": ({"keypoints": [float("nan"), 2, 2] * 17}, r"`annotations\[1\]\['keypoints'\]` must be finite"),
    "far away": ({"keypoints": [1e300, 2, 2] * 17}, r"`annotations\[1\]\['keypoints'\]` must be finite"),
    "no box": ({"bbox": None}, r"an annotation must have \['bbox'\]"),
    "an infinite box": ({"bbox": [0, 0, 1e300, 5]}, r"`annotations\[1\]\['bbox'\]` must be"),
    "a short box": ({"bbox": [0, 0, 5]}, r"`annotations\[1\]\['bbox'\]` must be"),
    "a negative box": ({"bbox": [0, 0, -5, 5]}, r"`annotations\[1\]\['bbox'\]` must be"),
    "an area of words": ({"area": "large"}, r"`annotations\[1\]\['area'\]` must be"),
    "half a crowd": ({"iscrowd": 0.5}, r"`annotations\[1\]\['iscrowd'\]` must be"),
}


def persons_file(tmp_path, **changes):
    PIXELS.save(tmp_path / "1.png")
    content = {"images": [{"id": 1, "file_name": "1.png"}], "categories": [{"id": 1, "name": "person"}]}
    content |= {"annotations": [{**PERSON, "id": 5}, {**PERSON, **changes}]}
    (tmp_path / "persons.json").write_text(json.dumps(content))
    return str(tmp_path / "persons.json")


@pytest.mark.parametrize("change, message", PERSONS.values(), ids=PERSONS)
def test_malformed_persons_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"persons.json: annotation 9 of image 1: {message}"):
        read_persons(str(tmp_path), persons_file(tmp_path, **change), COCO)


def test_persons_without_area_or_crowd_are_read(tmp_path):
    rows = read_persons(str(tmp_path), persons_file(tmp_path, area=None, iscrowd=None), COCO)
    assert len(json.loads(rows[0]["annotations"])) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [0, 0, 1e300, 5]},
        {"bbox": [0, 0, 5]},
        {"bbox": [float("nan"), 0, 5, 5]},
        {"score": None},
        {"score": "1"},
    ],
)
def test_malformed_boxes_of_a_detector_are_named(tmp_path, change):
    rows = read_persons(str(tmp_path), persons_file(tmp_path), COCO)
    found = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    (tmp_path / "boxes.json").write_text(json.dumps([found, {**found, **change}]))
    with pytest.raises(ValueError, match=r"boxes.json must hold COCO's detections .*(annotations\[1\]|detection 1)"):
        detected_boxes(rows, str(tmp_path / "boxes.json"))


COCO_FILES = {
    "a list": (lambda content: [content], "must hold COCO annotations"),
    "null": (lambda content: None, "must hold COCO annotations"),
    "null as annotation": (lambda c: {**c, "annotations": [None]}, "annotation 0 must be a dictionary, got None"),
    "null as annotations": (lambda c: {**c, "annotations": None}, "must hold COCO annotations"),
    "a number as file": (lambda c: {**c, "images": [{"id": 1, "file_name": 5}]}, "the file_name of the images must be"),
    "ids of two types": (
        lambda c: {**c, "images": [{"id": 1, "file_name": "1.png"}, {"id": "2", "file_name": "2.png"}]},
        "the id of the images must be all of type int or all of type str, got '2'",
    ),
    "a category without name": (lambda c: {**c, "categories": [{"id": 1}]}, r"KeyError\('name'\)"),
    "null as name": (lambda c: {**c, "categories": [{"id": 1, "name": None}]}, "the name of the categories must be"),
}


@pytest.mark.parametrize("change, message", COCO_FILES.values(), ids=COCO_FILES)
def test_malformed_coco_files_are_named(tmp_path, change, message):
    path = persons_file(tmp_path)
    content = change(json.loads(Path(path).read_text()))
    Path(path).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"persons.json must hold COCO annotations: .*{message}|{message}"):
        CocoFile.read(path)


def test_a_file_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep.json must hold COCO annotations"):
        CocoFile.read(str(tmp_path / "deep.json"))
