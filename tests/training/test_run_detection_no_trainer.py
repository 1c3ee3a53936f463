"""The detection scripts: training, output files, evaluation, errors of malformed data."""

import json
import shutil
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_instance_segmentation_no_trainer
import run_object_detection_no_trainer
import torch
from conftest import REPOSITORY, run_process
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from safetensors.torch import load_file
from torchvision.ops import box_convert, masks_to_boxes
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation, AutoModelForObjectDetection

from clustr_hf import (
    ClusTRConfig,
    ClusTRDetectionImageProcessor,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRImageProcessor,
)
from clustr_hf.metrics import coco_average_precision
from clustr_hf.remote_code.image_processing_clustr_detection import encode_mask
from clustr_hf.training.augmentation import uniform
from clustr_hf.training.data.class_names import KnownNames
from clustr_hf.training.data.coco_files import flatten_polygons, read_coco
from clustr_hf.training.data.samples import TrainingSamples
from clustr_hf.training.data.splits import load_data
from clustr_hf.training.tasks.detection.data import (
    OBJECT_KEYS,
    DetectionDataArguments,
    ParseObjects,
    class_names,
    detection_format,
)
from clustr_hf.training.tasks.detection.evaluation import DetectionEvaluationArguments, predict, score
from clustr_hf.training.tasks.detection.transforms import (
    DetectionAugmentationArguments,
    DetectionTransform,
    ReadSample,
    Sample,
    collate_objects,
    prepare_for_evaluation,
)


def load(args, folder, known=None):
    """The splits and the class names; `folder` is the cache of downloads."""
    data_format = detection_format(args)
    data = load_data(args, {"cache_dir": str(folder)}, 0, data_format, known)
    return data, data_format.labels.chosen


SCRIPTS = {
    "object_detection": run_object_detection_no_trainer,
    "instance_segmentation": run_instance_segmentation_no_trainer,
}
KINDS = {"object_detection": ("box",), "instance_segmentation": ("box", "mask")}
OVERRIDES = {
    "strides": [4, 2, 2, 2],
    "patch_sizes": [7, 3, 3, 3],
    "anchor_sizes": [16, 32, 64, 128, 256],
    "roi_batch_size": 32,
}


def files_of(data):
    return {
        "--train_dir": data / "train",
        "--train_annotation_file": data / "train.json",
        "--validation_dir": data / "validation",
        "--validation_annotation_file": data / "validation.json",
    }


def arguments_for(output_dir):
    """Arguments of both scripts for the shapes, by name."""
    settings = {"--output_dir": output_dir, "--image_size": 96, "--config_overrides": json.dumps(OVERRIDES)}
    settings |= {"--train_batch_size": 4, "--logging_steps": 1, "--learning_rate": 2e-3, "--eval_steps": "never"}
    return settings | {"--per_device_eval_batch_size": 4, "--num_pictures": 1, "--max_grad_norm": 1}


@pytest.fixture
def train(coco_folders, tmp_path, run_script):
    """Run a script on the shapes; returns the output folder."""

    def run(kind, *arguments, data=None, output_dir=tmp_path / "out", without=()):
        settings = {**arguments_for(output_dir), **(files_of(coco_folders) if data is None else data)}
        settings = {name: value for name, value in settings.items() if name not in without}
        run_script(SCRIPTS[kind], settings, *arguments)
        return output_dir

    return run


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, coco_folders, tmp_path_factory):
    """Task and output folder of a training on the shapes, run as a user would."""
    output_dir = tmp_path_factory.mktemp("trained") / request.param
    steps = {"object_detection": 200, "instance_segmentation": 120}[request.param]
    settings = {**arguments_for(output_dir), **files_of(coco_folders), "--max_train_steps": steps}
    settings |= {"--num_pictures": 2, "--warmup_steps": 20, "--eval_steps": 100}
    command = [sys.executable, SCRIPTS[request.param].__file__, *(part for pair in settings.items() for part in pair)]
    run_process(command, output_dir.parent)
    return request.param, output_dir


def test_learns_shapes_and_writes_a_repository(trained):
    task, folder = trained
    results = read_json(folder / "all_results.json")
    assert results["eval_samples"] == 6
    table = read_json(folder / "per_class_results.json")
    assert list(table) == ["disc", "square"]  # sorted by category id, whatever the order in the file
    for kind in KINDS[task]:
        assert results[f"eval_{kind}_ap50"] > 0.4
        assert np.mean([row[f"{kind}_ap"] for row in table.values()]) == pytest.approx(results[f"eval_{kind}_ap"])
    assert results["best_metric"] == results[f"eval_{KINDS[task][-1]}_ap"] or results["best_step"] == 100
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_clustr_detection.py", "preprocessor_config.json"} <= names
    assert {"image_processing_clustr_detection.py", "README.md", "training_curve.png", "predictions.png"} <= names
    card = (folder / "README.md").read_text()
    tag = {"object_detection": "object-detection", "instance_segmentation": "image-segmentation"}[task]
    assert f"pipeline_tag: {tag}" in card and f'pipeline("{tag}"' in card
    assert f"| Box AP | {results['eval_box_ap']:.4f} |" in card and f" {100 * table['disc']['box_ap']:.1f} |" in card
    processor = read_json(folder / "preprocessor_config.json")
    assert processor["size"] == {"shortest_edge": 96, "longest_edge": 160}
    assert read_json(folder / "config.json")["id2label"] == {"0": "disc", "1": "square"}
    with Image.open(folder / "predictions.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 20


def detect_as_a_user(task, folder, path):
    """Detections of a checkpoint through the public API."""
    auto_class = {"object_detection": AutoModelForObjectDetection}.get(task, AutoModelForInstanceSegmentation)
    model, processor = (kind.from_pretrained(folder) for kind in (auto_class, AutoImageProcessor))
    with Image.open(path) as image, torch.no_grad():
        outputs = model.eval()(**processor(image, return_tensors="pt"))
        limits = {"threshold": 0.05, "target_sizes": [image.size[::-1]]}
    if task == "object_detection":
        return processor.post_process_object_detection(outputs, **limits)[0]
    [found] = processor.post_process_instance_segmentation(outputs, return_coco_annotation=True, **limits)
    columns = {"scores": "score", "labels": "label_id", "boxes": "box"}
    segments = found["segments_info"]
    return {name: [row[key] for row in segments] for name, key in columns.items()} | {"masks": found["segmentation"]}


def test_what_a_user_finds_is_what_the_script_has_evaluated(trained, coco_folders):
    task, folder = trained
    results, content = read_json(folder / "all_results.json"), read_json(coco_folders / "validation.json")
    predictions, references = [], []
    for image in content["images"]:
        predictions.append(detect_as_a_user(task, folder, coco_folders / "validation" / image["file_name"]))
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        boxes = box_convert(torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4), "xywh", "xyxy")
        masks = [
            row["segmentation"]
            if isinstance(row["segmentation"], dict)
            else encode_mask(_fill(row["bbox"], image["height"], image["width"]))
            for row in rows
        ]
        others = {"area": [row["area"] for row in rows], "iscrowd": [row["iscrowd"] for row in rows]}
        labels = [{3: 0, 7: 1}[row["category_id"]] for row in rows]
        references.append({"labels": labels, "boxes": boxes, "masks": masks, **others})
    for kind in KINDS[task]:
        expected = coco_average_precision(predictions, references, 2, {"box": "bbox", "mask": "segm"}[kind])
        for name in ("ap", "ap50", "ap_small", "ar"):
            assert results[f"eval_{kind}_{name}"] == pytest.approx(expected[name], abs=1e-6)


def _fill(box, height, width):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return mask


def renumber_categories(folder, target, numbers, kept=("train", "validation")):
    """Copies of a folder's COCO files with other category ids in some of the splits."""
    shutil.copytree(folder, target, symlinks=True)
    for split in kept:
        content = read_json(folder / f"{split}.json")
        for row in content["categories"]:
            row["id"] = numbers[row["id"]]
        for row in content["annotations"]:
            row["category_id"] = numbers[row["category_id"]]
        (target / f"{split}.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("kept", [("train", "validation"), ("validation",)])
def test_a_checkpoint_scores_the_same_whatever_ids_its_categories_have(trained, coco_folders, tmp_path, train, kept):
    """With the ids 3 and 7, discs are the first class; with 9 and 2, squares."""
    task, folder = trained
    data = files_of(renumber_categories(coco_folders, tmp_path / "data", {3: 9, 7: 2}, kept))
    start = ["--eval_only", "--model_name_or_path", folder]
    out = train(task, *start, data=data, output_dir=tmp_path / "out", without=["--config_overrides"])
    results, expected = read_json(out / "eval_results.json"), read_json(folder / "all_results.json")
    for kind in KINDS[task]:
        assert results[f"eval_{kind}_ap50"] == pytest.approx(expected[f"eval_{kind}_ap50"], abs=1e-6)


def test_fine_tuning_keeps_the_checkpoints_order(trained, coco_folders, tmp_path, train):
    """The validation file lacks a category."""
    task, folder = trained
    data = renumber_categories(coco_folders, tmp_path / "data", {3: 9, 7: 2})
    content = read_json(data / "validation.json")
    content["categories"] = [row for row in content["categories"] if row["name"] == "disc"]
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 9]
    (data / "validation.json").write_text(json.dumps(content))
    start = ["--model_name_or_path", folder, "--max_train_steps", 1, "--learning_rate", 1e-12]
    out = train(task, *start, data=files_of(data), output_dir=tmp_path / "out", without=["--config_overrides"])
    assert read_json(out / "config.json")["id2label"] == {"0": "disc", "1": "square"}
    table, expected = (read_json(place / "per_class_results.json") for place in (out, folder))
    assert list(table) == ["disc", "square"] and table["square"]["objects"] == 0
    assert table["disc"] == pytest.approx(expected["disc"], abs=1e-6)


@pytest.mark.parametrize("as_list", [False, True])
def test_columns_of_objects_may_count_in_another_order(coco_folders, tmp_path, as_list):
    files = {}
    for split, names in (("train", ["disc", "square"]), ("validation", ["square", "disc"])):
        path = tmp_path / f"{split}.parquet"
        files[f"{split}_file"] = str(write_rows(path, coco_folders, "train", names, as_list=as_list))
    args = DetectionDataArguments(**files, image_column_name="picture", objects_column_name="things")
    for known in (None, KnownNames(["square", "disc"], "it")):
        data, labels = load(args, tmp_path / "cache", known)
        assert labels == (["disc", "square"] if known is None else known.names)
        parse = ParseObjects(args, labels)
        parsed = [[parse(row) for row in data[split]] for split in ("train", "validation")]
        assert parsed[0] == parsed[1]
        content = read_json(coco_folders / "train.json")
        expected = [{3: "disc", 7: "square"}[row["category_id"]] for row in content["annotations"]]
        found = [labels[row["category_id"]] for rows in parsed[1] for row in rows]
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("label", [-1, 2])
def test_objects_without_a_class_are_refused_before_they_are_matched(coco_folders, tmp_path, label):
    train_file = str(write_rows(tmp_path / "train.parquet", coco_folders, "train", ["disc", "square", "star"]))
    path = str(write_rows(tmp_path / "validation.parquet", coco_folders, "train", ["square", "disc"]))
    table = pq.read_table(path)
    rows = table["things"].to_pylist()
    rows[1]["category"][0] = label
    things = pa.chunked_array([pa.array(rows, type=table.schema.field("things").type)])
    pq.write_table(table.set_column(1, table.schema.field("things"), things), path)
    args = DetectionDataArguments(
        train_file=train_file, validation_file=path, image_column_name="picture", objects_column_name="things"
    )
    with pytest.raises(ValueError, match=rf"an object of validation sample 1 must be in \[0, 2\), got {label}"):
        load(args, tmp_path / "cache")


def test_polygons_as_pairs_are_read(coco_folders, tmp_path):
    """One polygon of pairs, a list of them, and COCO's own format are equivalent."""
    corners = [[10, 10], [40, 10], [40, 30.5], [10, 30.5]]
    flat = [number for pair in corners for number in pair]
    forms = [[flat], corners, [corners], [flat, [1, 2, 3, 4]], [corners, [[5, 6]]]]
    content = read_json(coco_folders / "train.json")
    masks = []
    for index, form in enumerate(forms):
        assert flatten_polygons(form, "it") == [flat]
        content["annotations"][0]["segmentation"] = form
        (tmp_path / f"{index}.json").write_text(json.dumps(content))
        rows, labels = read_coco(str(coco_folders / "train"), str(tmp_path / f"{index}.json"), OBJECT_KEYS)
        parse = ParseObjects(DetectionDataArguments(train_dir="x", train_annotation_file="y"), labels)
        rows = rows.cast_column("image", datasets.Image(decode=False))
        masks.append(ReadSample(rows, parse, ClusTRDetectionImageProcessor(), 2, True, "train")(0).masks[0])
    assert all(torch.equal(mask, masks[0]) for mask in masks) and 580 < masks[0].sum() < 640
    rle = encode_mask(masks[0])
    for other in (rle, None, [], "abc", [1, 2, 3]):  # checked by the decoder of masks
        assert flatten_polygons(other, "it") == other


def test_a_column_may_have_polygons_as_pairs():
    args = DetectionDataArguments(train_file="x")
    row = {"objects": {"bbox": [[0, 0, 9, 9]], "category": [1], "segmentation": [[[[0, 0], [9, 0], [9, 9]]]]}}
    parse = ParseObjects(args, ["a", "b"])
    assert parse(row)[0]["segmentation"] == [[0, 0, 9, 0, 9, 9]]
    row["objects"]["segmentation"] = [[[0, 0, 9, 0]]]
    with pytest.raises(ValueError, match="object 0: a polygon must have three corners or more, got 2"):
        parse(row)
    assert ParseObjects(args, ["a", "b"], with_masks=False)(row)[0]["bbox"] == [0, 0, 9, 9]


def test_resumes_to_the_same_weights(train, tmp_path):
    """Random proposals, scales, crops and colours are the same as in an uninterrupted run."""
    steps = ["--max_train_steps", 4, "--photometric_distortion", "--checkpointing_steps", 2, "--crop_size", 64]
    steps += ["--min_scale", 0.8, "--max_scale", 1.3]
    whole = train("instance_segmentation", *steps, output_dir=tmp_path / "whole")
    checkpoint = ["--resume_from_checkpoint", whole / "checkpoint-2"]
    resumed = train("instance_segmentation", *steps, *checkpoint, output_dir=tmp_path / "resumed")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("task", SCRIPTS)
def test_a_classifier_is_fine_tuned(train, tmp_path, task):
    ClusTRForImageClassification(ClusTRConfig.from_variant("nano", num_labels=10)).save_pretrained(tmp_path / "it")
    ClusTRImageProcessor().save_pretrained(tmp_path / "it")
    before = load_file(tmp_path / "it" / "model.safetensors")
    settings = ["--max_train_steps", 1, "--freeze_stages", 1, "--learning_rate", 1e-4]
    folder = train(task, "--model_name_or_path", tmp_path / "it", *settings, without=["--config_overrides"])
    after = load_file(folder / "model.safetensors")
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert moved and {name.split(".")[2] for name in moved} == {"1", "2", "3"}
    assert read_json(folder / "preprocessor_config.json")["image_processor_type"] == "ClusTRDetectionImageProcessor"


def write_rows(path, data, split="train", names=None, box_format="xywh", as_list=False):
    """The COCO file of a split as a parquet file with a column of objects; `names` makes its classes a ClassLabel."""
    content, rows = read_json(data / f"{split}.json"), []
    for image in content["images"]:
        objects = {"id": [], "bbox": [], "category": [], "iscrowd": [], "area": []}
        for row in content["annotations"]:
            if row["image_id"] == image["id"]:
                x, y, width, height = map(float, row["bbox"])
                box = [x, y, x + width, y + height] if box_format == "xyxy" else [x, y, width, height]
                values = (row["id"], box, {3: "disc", 7: "square"}[row["category_id"]], row["iscrowd"], row["area"])
                for column, value in zip(objects.values(), values):
                    column.append(value)
        if names is not None:
            objects["category"] = [names.index(name) for name in objects["category"]]
        if as_list:
            objects = [dict(zip(objects, values)) for values in zip(*objects.values())]
        rows.append(
            {"picture": {"path": None, "bytes": (data / split / image["file_name"]).read_bytes()}, "things": objects}
        )
    category = Value("string") if names is None else ClassLabel(names=names)
    fields = {"id": Value("int64"), "bbox": datasets.List(Value("float32"), length=4), "category": category}
    fields |= {"iscrowd": Value("int64"), "area": Value("int64")}
    objects = [fields] if as_list else {name: datasets.List(value) for name, value in fields.items()}
    features = Features({"picture": datasets.Image(), "things": objects})
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


@pytest.mark.parametrize(
    "names, box_format, as_list", [(["square", "disc"], "xywh", False), (None, "xyxy", False), (None, "xywh", True)]
)
def test_a_column_of_objects_says_the_same_as_the_coco_file(coco_folders, tmp_path, names, box_format, as_list):
    path = str(write_rows(tmp_path / "rows.parquet", coco_folders, "train", names, box_format, as_list))
    files = {"train": str(coco_folders / "train"), "train_annotation_file": str(coco_folders / "train.json")}
    by_column = DetectionDataArguments(
        train_file=path,
        validation_file=path,
        image_column_name="picture",
        objects_column_name="things",
        box_format=box_format,
    )
    by_file = DetectionDataArguments(
        train_dir=files["train"],
        train_annotation_file=files["train_annotation_file"],
        validation_dir=files["train"],
        validation_annotation_file=files["train_annotation_file"],
    )
    samples = []
    for args in (by_file, by_column):
        data, labels = load(args, tmp_path / "cache")
        read = ReadSample(
            data["validation"], ParseObjects(args, labels), ClusTRDetectionImageProcessor(), 2, False, "x"
        )
        samples.append([read(index) for index in range(len(data["validation"]))])
        assert sorted(labels) == ["disc", "square"]
    order = torch.tensor([labels.index(name) for name in ("disc", "square")])
    for first, second in zip(*samples, strict=True):
        assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
        for name in ("boxes", "area", "iscrowd"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(order[first.labels], second.labels)
    assert sum(len(sample.labels) for sample in samples[0]) > 20 and len(samples[0][-1].boxes) == 0


def test_the_script_trains_on_a_column_of_objects(coco_folders, tmp_path, train):
    files = {f"--{s}_file": write_rows(tmp_path / f"{s}.parquet", coco_folders, s) for s in ("train", "validation")}
    columns = {"--image_column_name": "picture", "--objects_column_name": "things"}
    folder = train(
        "object_detection", "--max_train_steps", 1, "--cache_dir", tmp_path / "cache", data={**files, **columns}
    )
    assert read_json(folder / "all_results.json")["eval_samples"] == 6


def read_rows(folder, file):
    """Rows with image files, and the class names."""
    rows, labels = read_coco(str(folder), str(file), OBJECT_KEYS)
    return rows.cast_column("image", datasets.Image(decode=False)), labels


def make_sample(coco_folders, index=0):
    rows, _ = read_rows(coco_folders / "train", coco_folders / "train.json")
    args = DetectionDataArguments(train_dir="x", train_annotation_file="y")
    return ReadSample(rows, ParseObjects(args, ["disc", "square"]), ClusTRDetectionImageProcessor(), 2, True, "train")(
        index
    )


@pytest.mark.parametrize("crop_size", [None, 60])
def test_training_images_and_their_labels_stay_together(coco_folders, crop_size):
    """After scale, crop and flips, boxes still enclose the masks, and the masks cover the bright shapes."""
    sample = make_sample(coco_folders)
    assert sample.iscrowd.tolist() == [0, 0, 1]
    processor = ClusTRDetectionImageProcessor(
        size={"shortest_edge": 120, "longest_edge": 200}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    augmentation = {"min_scale": 0.7, "max_scale": 1.5, "crop_size": crop_size, "vertical_flip_probability": 0.5}
    transform = DetectionTransform(processor, DetectionAugmentationArguments(**augmentation))
    sizes, numbers = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        result = transform(sample)
        image, labels = result["pixel_values"], result["labels"]
        height, width = image.shape[1:]
        sizes.add((height, width))
        numbers.add(len(labels["boxes"]))
        assert labels["masks"].shape == (len(labels["boxes"]), height, width)
        assert len(labels["class_labels"]) == len(labels["boxes"]) <= 2
        boxes = box_convert(labels["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        for box, mask in zip(boxes, labels["masks"]):
            tight = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
            if crop_size is None:
                torch.testing.assert_close(box, tight, atol=1.0, rtol=0)
            assert (tight[:2] >= box[:2] - 1).all() and (tight[2:] <= box[2:] + 1).all()
            assert image[0][mask].mean() > 0.4
    if crop_size is None:
        assert len(sizes) > 10 and numbers == {2}
    else:
        assert sizes == {(60, 60)} and numbers == {0, 1, 2}


def test_objects_that_a_crop_hardly_has_are_left_out():
    """Of four squares in the corners of an image, a crop keeps those that show more than a fifth of their area."""
    boxes = torch.tensor([[x, y, x + 30.0, y + 30.0] for x in (0, 70) for y in (0, 70)])
    zeros = torch.zeros(4, dtype=torch.int64)
    sample = Sample(Image.new("RGB", (100, 100)), boxes, torch.arange(4), torch.full((4,), 900.0), zeros)
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 100, "longest_edge": 100})
    transform = DetectionTransform(processor, DetectionAugmentationArguments(crop_size=50, flip_probability=0))
    numbers = set()
    for seed in range(40):
        torch.manual_seed(seed)
        labels = transform(sample)["labels"]
        areas = (labels["boxes"][:, 2:] * 50).prod(dim=1)
        assert (areas > 0.2 * 900).all()
        numbers.add(len(areas))
        torch.manual_seed(seed)
        uniform(1, 1)
        top, left = (int(torch.randint(51, ())) for _ in range(2))
        inside = torch.minimum(boxes[:, 2:], torch.tensor([left, top]) + 50) - torch.maximum(
            boxes[:, :2], torch.tensor([left, top])
        )
        assert labels["class_labels"].tolist() == torch.where(inside.clamp(min=0).prod(dim=1) > 180)[0].tolist()
    assert len(numbers) > 1


def test_processors_that_training_cannot_follow_are_named():
    for settings in ({"size": {"height": 96, "width": 96}}, {"do_normalize": False}):
        with pytest.raises(ValueError, match="the image processor must resize the shorter edge, rescale and normalise"):
            DetectionTransform(ClusTRDetectionImageProcessor(**settings), DetectionAugmentationArguments())


@pytest.mark.parametrize("size", [(96, 96), (300, 322), (90, 215)])
def test_whole_images_without_augmentation_are_those_of_the_processor(size):
    """Without augmentation, training images equal those of the processor."""
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, 20:70, 30:85] = True
    pixels = torch.rand(12, 16, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    image, boxes = Image.fromarray(pixels).resize(size[::-1]), torch.tensor([[30.0, 20.0, 85.0, 70.0]])
    sample = Sample(image, boxes, torch.tensor([1]), torch.tensor([2750.0]), torch.tensor([0]), mask)
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 128, "longest_edge": 213})
    result = DetectionTransform(processor, DetectionAugmentationArguments(flip_probability=0))(sample)
    annotation = {"bbox": [30, 20, 55, 50], "category_id": 1, "segmentation": encode_mask(mask[0])}
    expected = processor(
        image,
        annotations={"image_id": 0, "annotations": [annotation]},
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    torch.testing.assert_close(result["pixel_values"], expected.pixel_values[0], atol=2e-2, rtol=0)
    for name in ("class_labels", "boxes", "masks"):
        torch.testing.assert_close(result["labels"][name], expected["labels"][0][name])


def test_batches_are_padded(coco_folders):
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    evaluation = [prepare_for_evaluation(make_sample(coco_folders, index), processor) for index in (0, 1)]
    evaluation[1]["pixel_values"] = evaluation[1]["pixel_values"][:, :80, :60]
    batch = collate_objects(evaluation)
    assert batch["pixel_values"].shape == (2, 3, 96, 96) and batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [
        9216,
        4800,
    ]
    assert (batch["pixel_values"][1, :, :80, :60] == evaluation[1]["pixel_values"]).all()
    assert (batch["pixel_values"][1, :, 80:] == 0).all()
    transform = DetectionTransform(processor, DetectionAugmentationArguments(crop_size=70))
    samples = [transform(make_sample(coco_folders, index)) for index in (0, 1)]
    samples[0]["pixel_values"] = samples[0]["pixel_values"][:, :50]
    samples[0]["labels"]["masks"] = samples[0]["labels"]["masks"][:, :50]
    batch = collate_objects(samples)
    assert all(label["masks"].shape[1:] == (70, 70) for label in batch["labels"])
    assert torch.equal(batch["labels"][0]["masks"][:, :50], samples[0]["labels"]["masks"])
    assert not batch["labels"][0]["masks"][:, 50:].any()


def test_the_truth_as_prediction_is_perfect_in_the_scripts_metric(coco_folders):
    """Records as `predict` returns them; crowds are ignored."""
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 70, "longest_edge": 140})
    references = [prepare_for_evaluation(make_sample(coco_folders, i), processor)["reference"] for i in range(13)]
    records = [({**reference, "scores": np.ones(len(reference["labels"]))}, reference) for reference in references]
    metrics, table = score(records, ["disc", "square"], ("box", "mask"), DetectionEvaluationArguments())
    assert metrics["eval_box_ap"] == metrics["eval_mask_ap"] == 1
    assert "eval_box_ap_large" not in metrics  # no shape is large
    assert table["disc"]["objects"] > 10
    crowd = {"boxes": np.zeros((1, 4)), "labels": np.zeros(1, dtype=int), "area": np.ones(1), "iscrowd": np.ones(1)}
    for reference in (records[-2][1] if len(records[-2][1]["labels"]) == 0 else records[-1][1], crowd):
        with pytest.raises(ValueError, match="the validation images must have objects, got none"):
            score([(records[0][0], reference)], ["disc", "square"], ("box",), DetectionEvaluationArguments())


def test_the_predictor_sees_images_without_their_padding(coco_folders):
    model = ClusTRForInstanceSegmentation(ClusTRConfig.from_variant("nano", num_labels=2)).eval()
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 140})
    samples = [prepare_for_evaluation(make_sample(coco_folders, index), processor) for index in (0, 1)]
    samples[1]["pixel_values"] = samples[1]["pixel_values"][:, :, :50]
    settings = {"processor": processor, "args": DetectionEvaluationArguments(max_detections=7)}
    together = predict(model, collate_objects(samples), **settings)
    for sample, (found, reference) in zip(samples, together):
        [(alone, _)] = predict(model, collate_objects([sample]), **settings)
        assert (
            found["scores"] == alone["scores"] and found["boxes"] == alone["boxes"] and found["masks"] == alone["masks"]
        )
        assert 0 < len(found["masks"]) == len(found["boxes"]) <= 7
        assert reference["size"] == (96, 96)


def test_all_detections_of_the_model_count(coco_folders):
    """More than COCO's limit of 100 count; `--max_detections` keeps the best ones. The model's threshold applies."""
    overrides = {"num_labels": 2, "detections_per_image": 130, "detection_nms_threshold": 1.0}
    model = ClusTRForInstanceSegmentation(ClusTRConfig.from_variant("nano", **overrides)).eval()
    model.config.detection_score_threshold = 0.01
    with torch.no_grad():
        model.detector.roi_heads.box_predictor.cls_score.weight.zero_()
        model.detector.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([4.0, 0.1, 0.0]))  # scores of 0.02
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 140})
    batch = collate_objects([prepare_for_evaluation(make_sample(coco_folders), processor)])
    for limit, number in ((None, 130), (120, 120), (7, 7)):
        [(found, _)] = predict(model, batch, processor, DetectionEvaluationArguments(max_detections=limit))
        assert len(found["scores"]) == len(found["masks"]) == number
        assert 0.01 < min(found["scores"]) <= max(found["scores"]) < 0.05
    boxes = np.array([[20.0 * place, 0, 20 * place + 10, 10] for place in range(130)])
    objects = {"boxes": boxes, "labels": np.zeros(130, dtype=int), "iscrowd": np.zeros(130, dtype=int)}
    record = ({**objects, "scores": np.linspace(0.9, 0.1, 130)}, {**objects, "area": np.full(130, 100.0)})
    for limit, recall in ((None, 1), (65, 0.5)):
        metrics, _ = score([record], ["disc"], ("box",), DetectionEvaluationArguments(max_detections=limit))
        assert metrics["eval_box_ar"] == recall


def test_more_detections_than_the_model_returns_are_refused():
    config = ClusTRConfig.from_variant("nano", detections_per_image=50)
    with pytest.raises(
        ValueError, match="--max_detections must be at most the model's detections_per_image, 50, got 60"
    ):
        DetectionEvaluationArguments(max_detections=60).check_model(config, with_masks=True)
    DetectionEvaluationArguments(max_detections=60).check_model(config, with_masks=False)  # RetinaNet has no such limit
    for limit in (None, 50):
        DetectionEvaluationArguments(max_detections=limit).check_model(config, with_masks=True)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[float("nan"), 0, 5, 0, 5, 5]], "polygons of finite numbers"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "polygons in or near their image"),
        ([["0", "0", "5", "0", "5", "5"]], "polygons of finite numbers"),
        ({"size": [96, 96], "counts": "broken"}, "run lengths of 9216 pixels in total"),
        ({"counts": "broken"}, r"run-length encodings with 'size'"),
        ({"size": [96, 96]}, "run lengths of 9216 pixels in total"),
        ({"size": [96, 90], "counts": [8640]}, "masks of the size of their upright image"),
    ],
)
def test_malformed_segmentations_are_named_and_skipped(coco_folders, tmp_path, segmentation, message):
    """They are skipped as unreadable samples, like samples with a broken image."""
    content = read_json(coco_folders / "train.json")
    content["annotations"][0]["segmentation"] = segmentation
    first = content["annotations"][0]["image_id"]
    content["images"] = sorted(content["images"], key=lambda image: image["id"] != first)
    (tmp_path / "train.json").write_text(json.dumps(content))
    rows, labels = read_rows(coco_folders / "train", tmp_path / "train.json")
    parse = ParseObjects(DetectionDataArguments(train_dir="x", train_annotation_file="y"), labels)
    read = ReadSample(rows, parse, ClusTRDetectionImageProcessor(), 2, True, "train")
    with pytest.raises(ValueError, match=rf"train sample 0: .*{message}"):
        read(0)
    loaded = TrainingSamples(read, lambda sample: sample, len(rows))[0, 1]
    assert loaded["index"] != 0 and len(loaded["skipped"]) == 1 and "train sample 0: " in loaded["skipped"][0]
    # Boxes alone do not need masks.
    assert len(ReadSample(rows, parse, ClusTRDetectionImageProcessor(), 2, False, "train")(0).boxes) > 0


def test_what_a_broken_row_is_missing_is_named(coco_folders):
    rows, labels = read_rows(coco_folders / "train", coco_folders / "train.json")

    class Parse(ParseObjects):
        def __call__(self, row):
            return {}["category"]

    parse = Parse(DetectionDataArguments(train_dir="x", train_annotation_file="y"), labels)
    with pytest.raises(ValueError, match=r"train sample 1: KeyError\('category'\)"):
        ReadSample(rows, parse, ClusTRDetectionImageProcessor(), 2, True, "train")(1)


def change_json(folder, split, change):
    path = folder / f"{split}.json"
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "split, change, message",
    [
        ("train", lambda c: c.pop("categories"), r"train.json must hold COCO annotations: KeyError\('categories'\)"),
        (
            "train",
            lambda c: c["annotations"][0].update(image_id=5),
            "an annotation of an image or a category that it does not list: annotation 1 has the image_id 5",
        ),
        (
            "train",
            lambda c: c["annotations"][0].update(category_id=5),
            "an annotation of an image or a category that it does not list: annotation 1 has the category_id 5",
        ),
        (
            "train",
            lambda c: c["images"][1].update(id=c["images"][0]["id"]),
            r"train.json must hold COCO annotations: two images have the id 10",
        ),
        (
            "validation",
            lambda c: c["categories"][1].update(id=7),
            r"validation.json must hold COCO annotations: two categories have the id 7",
        ),
        (
            "train",
            lambda c: c["annotations"][1].update(id=c["annotations"][0]["id"]),
            r"train.json must hold COCO annotations: two annotations have the id 1",
        ),
        (
            "train",
            lambda c: c["annotations"][0].update(segmentation=[[1, 2, 30, 40], [5, 6]]),
            r"train.json: annotation 1 of image 10: a polygon must have three corners or more, got 2",
        ),
        (
            "validation",
            lambda c: c["annotations"][0].update(segmentation=[[1, 2], [30, 40]]),
            r"validation.json: annotation 1 of image 10: a polygon must have three corners or more, got 2",
        ),
        (
            "train",
            lambda c: c["annotations"][0].update(segmentation=[[1, 2, 30, 40, 5, 6, 7]]),
            r"annotation 1 of image 10: a polygon must have an x and a y for each corner, got 7 numbers",
        ),
        ("train", lambda c: c["annotations"][0].pop("image_id"), r"must hold COCO annotations: KeyError\('image_id'\)"),
        ("train", lambda c: c["images"][0].pop("file_name"), r"must hold COCO annotations: KeyError\('file_name'\)"),
        (
            "train",
            lambda c: c["images"][0].update(file_name="no.png"),
            "must name images that exist .* missing .*no.png",
        ),
        (
            "train",
            lambda c: c["categories"][0].update(name="disc"),
            r"classes of different names, .* \['disc', 'disc'\]",
        ),
        (
            "validation",
            lambda c: c["categories"][0].update(name="cube"),
            r"must have the classes of the training data, \['disc', 'square'\], got \['disc', 'cube'\]",
        ),
        (
            "train",
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"train sample \d+: `annotations\[0\]\['bbox'\]` must be \(x, y, width, height\)",
        ),
        ("train", lambda c: c["annotations"][0].pop("bbox"), r"train sample \d+: `annotations\[0\]\['bbox'\]` must be"),
        ("train", lambda c: c["annotations"][0].pop("segmentation"), r"train sample \d+: .* must have 'segmentation'"),
    ],
)
def test_bad_annotations_are_named(coco_folders, tmp_path, train, split, change, message):
    data = tmp_path / "data"
    shutil.copytree(coco_folders, data, symlinks=True)
    change_json(data, split, change)
    with pytest.raises(ValueError, match=message):
        train("instance_segmentation", "--max_train_steps", 4, data=files_of(data))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train_dir": "x"}, "--train_dir and --train_annotation_file go together, got x and None"),
        (
            {"train_file": "x", "validation_annotation_file": "y"},
            "--validation_dir and --validation_annotation_file go",
        ),
        ({"train_file": "x", "box_format": "cxcywh"}, r"--box_format must be one of \('xywh', 'xyxy'\), got 'cxcywh'"),
    ],
)
def test_data_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionDataArguments(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"crop_size": 0}, "--crop_size must be positive, got 0"),
        ({"min_scale": 2.0}, "--min_scale and --max_scale must be 0 < min <= max"),
        ({"flip_probability": 1.5}, r"--flip_probability must be in \[0, 1\], got 1.5"),
        ({"vertical_flip_probability": -1}, r"--vertical_flip_probability must be in \[0, 1\], got -1"),
    ],
)
def test_augmentation_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionAugmentationArguments(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_detections": 0}, "--max_detections must be positive, got 0"),
        ({"num_pictures": -1}, "--num_pictures must be 0 or more, got -1"),
        ({"picture_threshold": 2.0}, r"--picture_threshold must be in \[0, 1\], got 2.0"),
    ],
)
def test_evaluation_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionEvaluationArguments(**arguments)


def test_columns_that_do_not_fit_are_named(coco_folders, tmp_path):
    path = str(write_rows(tmp_path / "rows.parquet", coco_folders))
    rows = Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="--objects_column_name 'things' must have the key 'label', got"):
        class_names(rows, DetectionDataArguments(train_file=path, objects_column_name="things", category_key="label"))
    with pytest.raises(ValueError, match="the classes in 'things' must be a ClassLabel or strings"):
        class_names(rows, DetectionDataArguments(train_file=path, objects_column_name="things", category_key="area"))
    with pytest.raises(ValueError, match="--objects_column_name 'picture' must have the key 'bbox'"):
        class_names(rows, DetectionDataArguments(train_file=path, objects_column_name="picture"))
    other = str(write_rows(tmp_path / "other.parquet", coco_folders, "validation", ["disc", "square", "star"]))
    columns = {"image_column_name": "picture", "objects_column_name": "things"}
    with pytest.raises(ValueError, match=r"must have the classes of the training data, \['disc', 'square'\], got"):
        load(DetectionDataArguments(train_file=path, validation_file=other, **columns), tmp_path)
    with pytest.raises(ValueError, match="--objects_column_name 'objects' is not in the data set"):
        load(DetectionDataArguments(train_file=path, image_column_name="picture"), tmp_path)


@pytest.mark.parametrize("task", SCRIPTS)
def test_trains_and_evaluates_on_coco_with_its_80_classes(shared, train, task):
    folder = shared / "data" / "coco-mini"
    data = {
        "--train_dir": folder / "train",
        "--train_annotation_file": folder / "annotations" / "instances_train.json",
        "--validation_dir": folder / "val",
        "--validation_annotation_file": folder / "annotations" / "instances_val.json",
    }
    limits = ["--max_train_steps", 2, "--max_eval_samples", 3, "--image_size", 128]
    out = train(task, *limits, data=data)
    config = read_json(out / "config.json")
    names = read_json(folder / "id2label_80.json")
    assert config["id2label"] == names and len(names) == 80
    results = read_json(out / "all_results.json")
    assert results["eval_samples"] == 3 and 0 <= results[f"eval_{KINDS[task][-1]}_ap"] <= 1


def test_shared_truth_as_prediction_is_perfect(shared):
    """Uses COCO's polygons, encodings and crowds: true boxes as outputs for padded images, true masks in the metric."""
    folder = shared / "data" / "coco-mini"
    rows, labels = read_coco(str(folder / "val"), str(folder / "annotations" / "instances_val.json"), OBJECT_KEYS)
    rows = rows.cast_column("image", datasets.Image(decode=False))
    processor = ClusTRDetectionImageProcessor(size={"shortest_edge": 200, "longest_edge": 333})
    parse = ParseObjects(DetectionDataArguments(train_dir="x", train_annotation_file="y"), labels)
    read = ReadSample(rows, parse, processor, 80, True, "validation")
    samples = [read(index) for index in range(20)]
    references = [prepare_for_evaluation(sample, processor)["reference"] for sample in samples]
    annotations = [{"image_id": index, "annotations": parse(rows[index])} for index in range(20)]
    batch = processor([sample.image for sample in samples], annotations=annotations, return_tensors="pt")
    number = max(len(label["boxes"]) for label in batch["labels"])
    logits, boxes = torch.full((20, number, 80), -20.0), torch.zeros(20, number, 4)
    for index, label in enumerate(batch["labels"]):
        logits[index, torch.arange(len(label["boxes"])), label["class_labels"]] = 4.0
        boxes[index, : len(label["boxes"])] = label["boxes"]
    output = type("Output", (), {"logits": logits, "pred_boxes": boxes})
    sizes = [reference["size"] for reference in references]
    # No suppression: true boxes of one class may overlap.
    found = processor.post_process_object_detection(output, target_sizes=sizes, nms_threshold=1.0)
    assert coco_average_precision(found, references, 80)["ap"] == pytest.approx(1.0)
    perfect = [{**reference, "scores": np.ones(len(reference["labels"]))} for reference in references]
    assert coco_average_precision(perfect, references, 80, "segm")["ap"] == pytest.approx(1.0)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_every_image_once(trained, coco_folders, tmp_path):
    """With a learning rate of almost 0, the scores equal those of one process, or nearly so in bf16."""
    task, folder = trained
    kind, precision = {"object_detection": ("ddp_cpu", "no"), "instance_segmentation": ("fsdp2_cpu", "bf16")}[task]
    config = REPOSITORY / "examples" / "accelerate" / f"{kind}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 0]
    settings = {**arguments_for(tmp_path / "two"), **files_of(coco_folders), "--max_train_steps": 1}
    settings |= {"--learning_rate": 1e-12, "--per_device_eval_batch_size": 2, "--model_name_or_path": folder}
    settings["--mixed_precision"] = precision
    command = [*launch, SCRIPTS[task].__file__, *(part for pair in settings.items() for part in pair)]
    run_process(command, tmp_path, OMP_NUM_THREADS="1")
    one, two = (read_json(place / "all_results.json") for place in (folder, tmp_path / "two"))
    assert one["eval_samples"] == two["eval_samples"] == 6
    for kind in KINDS[task]:
        name, tolerance = f"eval_{kind}_ap50", {"no": 1e-3, "bf16": 0.1}[precision]
        assert two[name] == pytest.approx(one[name], abs=tolerance) and two[name] > 0.2
