"""
transformers' own example scripts with our checkpoints: a training step that changes nothing, and an evaluation whose
metric is that of our own evaluation of the same checkpoint.

The scripts are in transformers' repository, in no package: clone the tag of the installed version to
.transformers-source/, or let TRANSFORMERS_EXAMPLES name a folder that holds `object-detection/run_object_detection.py`
and the others. They need albumentations, torchmetrics and pycocotools. What is not there is skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_process
from datasets import ClassLabel, Dataset, load_dataset
from PIL import Image
from transformers import AutoImageProcessor

import clustr_hf
from clustr_hf.bundled import bundled_checkpoint
from clustr_hf.metrics import Accuracy, MeanIoU, coco_average_precision


LAUNCHER = REPOSITORY / "tests" / "helpers" / "official_launcher.py"
CHECKPOINTS = REPOSITORY / "checkpoints"
SIDE = 320

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def scripts():
    """The folder of the scripts, or a skip that says how to get them."""
    places = sorted((REPOSITORY / ".transformers-source").glob("*/examples/pytorch"))
    places = [Path(os.environ["TRANSFORMERS_EXAMPLES"])] if "TRANSFORMERS_EXAMPLES" in os.environ else places
    found = [place for place in places if (place / "object-detection" / "run_object_detection.py").is_file()]
    if not found:
        pytest.skip(
            "transformers' scripts are not here: clone its repository to .transformers-source/, or set "
            "TRANSFORMERS_EXAMPLES to its folder examples/pytorch"
        )
    missing = [name for name in ("albumentations", "torchmetrics", "pycocotools") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"transformers' scripts need packages: pip install {' '.join(missing)}")
    return found[-1]


@pytest.fixture
def run_official(scripts, tmp_path):
    """Run a script on the CPU with arguments by name; returns the JSON that it wrote to a file of its output folder."""

    def run(script, arguments, results, id2label="-"):
        settings = {"--output_dir": tmp_path / "out", **arguments}
        command = [
            sys.executable,
            LAUNCHER,
            id2label,
            scripts / script,
            *(part for pair in settings.items() for part in pair),
        ]
        environment = {"NO_ALBUMENTATIONS_UPDATE": "1", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        run_process(command, tmp_path, HF_DATASETS_CACHE=str(tmp_path / "cache"), **environment)
        return json.loads((tmp_path / "out" / results).read_text())

    return run


# A step whose learning rate is 0 trains all that it passes and leaves the weights as they are.
NO_CHANGE = {"--learning_rate": 0.0, "--per_device_train_batch_size": 2, "--per_device_eval_batch_size": 3, "--seed": 1}
TRAINER = {
    **{f"--{name}": True for name in ("do_train", "do_eval", "use_cpu")},
    **{"--max_steps": 1, "--report_to": "none", "--remove_unused_columns": False, **NO_CHANGE},
}
NO_TRAINER = {"--max_train_steps": 1, "--lr_scheduler_type": "constant", **NO_CHANGE}


def write_splits(rows, folder, **numbers):
    """Parquet files of the first rows of each split; the scripts load the folder."""
    folder.mkdir()
    for split, (source, number) in numbers.items():
        rows[source].select(range(number)).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def load_rows(shared, name, tmp_path, **files):
    files = {split: str(shared / "data" / name / file) for split, file in files.items()}
    return load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "rows"))


def box_ap(rows, size) -> float:
    """Ours of the BCCD checkpoint, of images padded to squares with their mask, all in one batch."""
    folder = CHECKPOINTS / "clustr-nano-bccd"
    model = clustr_hf.ClusTRForObjectDetection.from_pretrained(folder).eval()
    padding = {"size": {"max_height": size, "max_width": size}, "pad_size": {"height": size, "width": size}}
    processor = AutoImageProcessor.from_pretrained(folder, **padding)
    batch = processor([row["image"] for row in rows], return_tensors="pt")
    assert not batch.pixel_mask.bool().all()
    sizes = [(row["image"].height, row["image"].width) for row in rows]
    with torch.no_grad():
        found = processor.post_process_object_detection(model(**batch), threshold=0.0, target_sizes=sizes)
    references = []
    for row in rows:
        x, y, width, height = np.array(row["objects"]["bbox"]).T
        boxes = np.stack([x, y, x + width, y + height], axis=1)
        references.append({"labels": row["objects"]["category"], "boxes": boxes})
    return coco_average_precision(found, references, 3)["ap"]


@pytest.mark.parametrize(
    "script, results, key",
    [
        ("run_object_detection.py", "test_results.json", "test_map"),
        ("run_object_detection_no_trainer.py", "all_results.json", "test_map"),
    ],
)
def test_object_detection(run_official, shared, tmp_path, script, results, key):
    """The scripts pad images to squares and pass no `pixel_mask`."""
    rows = load_rows(shared, "bccd", tmp_path, train="train.parquet", validation="val.parquet")
    data = write_splits(
        rows, tmp_path / "bccd", train=("train", 2), validation=("validation", 1), test=("validation", 6)
    )
    common = {"--model_name_or_path": CHECKPOINTS / "clustr-nano-bccd", "--dataset_name": data}
    common["--image_square_size"] = SIDE
    if "no_trainer" in script:
        arguments = {**NO_TRAINER, **common, "--dataloader_num_workers": 0}
    else:
        arguments = {**TRAINER, **common, "--eval_do_concat_batches": False}
    found = run_official(f"object-detection/{script}", arguments, results)[key]
    expected = box_ap(rows["validation"].select(range(6)), SIDE)
    assert expected > 0.3 and found == pytest.approx(expected, abs=0.01)


def mean_iou(rows, size, ignore_index) -> float:
    """Ours of the CamVid checkpoint, of images and maps resized to squares."""
    folder = CHECKPOINTS / "clustr-nano-camvid"
    model = clustr_hf.ClusTRForSemanticSegmentation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, size={"height": size, "width": size}, resample=2)
    references = [np.asarray(row["label"].resize((size, size), Image.Resampling.NEAREST)) for row in rows]
    batch = processor([row["image"] for row in rows], return_tensors="pt")
    with torch.no_grad():
        maps = processor.post_process_semantic_segmentation(model(**batch), [(size, size)] * len(references))
    settings = {"num_labels": 11, "ignore_index": ignore_index}
    return MeanIoU().compute(predictions=[np.asarray(m) for m in maps], references=references, **settings)["mean_iou"]


@pytest.mark.parametrize(
    "script, ignore_index", [("run_semantic_segmentation.py", 0), ("run_semantic_segmentation_no_trainer.py", 255)]
)
def test_semantic_segmentation(run_official, shared, tmp_path, script, ignore_index):
    """Each script has an index of its own that does not count."""
    rows = load_rows(shared, "camvid-jpeg", tmp_path, train="train.parquet", validation="val.parquet")

    def without_void(row):  # which would be a class beyond the last one where 0 does not count
        label_map = np.asarray(row["annotation"])
        return {"label": Image.fromarray(np.where(label_map == 255, 0, label_map).astype(np.uint8))}

    rows = type(rows)({split: part.select(range(4)).map(without_void) for split, part in rows.items()})
    rows = rows.remove_columns("annotation")
    data = write_splits(rows, tmp_path / "camvid", train=("train", 4), validation=("validation", 4))
    common = {"--model_name_or_path": CHECKPOINTS / "clustr-nano-camvid", "--dataset_name": data}
    arguments = {**(NO_TRAINER if "no_trainer" in script else TRAINER), **common}
    id2label = shared / "data" / "camvid-jpeg"
    found = run_official(f"semantic-segmentation/{script}", arguments, "all_results.json", id2label)["eval_mean_iou"]
    expected = mean_iou(rows["validation"], 360, ignore_index)
    assert expected > 0.3 and found == pytest.approx(expected, abs=0.02)  # resized by OpenCV there


def accuracy(rows) -> float:
    model = clustr_hf.ClusTRForImageClassification.from_pretrained(bundled_checkpoint()).eval()
    processor = AutoImageProcessor.from_pretrained(bundled_checkpoint())
    with torch.no_grad():
        logits = model(**processor(list(rows["image"]), return_tensors="pt")).logits
    return Accuracy().compute(predictions=logits.argmax(-1), references=rows["label"])["accuracy"]


@pytest.mark.parametrize("script", ["run_image_classification.py", "run_image_classification_no_trainer.py"])
def test_image_classification(run_official, shared, tmp_path, script):
    rows = load_rows(shared, "cifar10", tmp_path, train="train.parquet", validation="test.parquet")
    assert isinstance(rows["train"].features["label"], ClassLabel)
    data = write_splits(rows, tmp_path / "cifar10", train=("train", 4), validation=("validation", 100))
    common = {"--model_name_or_path": bundled_checkpoint(), "--dataset_name": data}
    arguments = {**(NO_TRAINER if "no_trainer" in script else TRAINER), **common}
    found = run_official(f"image-classification/{script}", arguments, "all_results.json")["eval_accuracy"]
    expected = accuracy(rows["validation"].select(range(100)))
    assert expected > 0.8 and found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("script", ["run_instance_segmentation.py", "run_instance_segmentation_no_trainer.py"])
def test_instance_segmentation_is_for_models_of_another_kind(scripts, shared, tmp_path, script):
    """
    They take models whose masks come from queries, AutoModelForUniversalSegmentation, and refuse ours by name:
    run_object_detection.py of transformers and our own script are for detectors with masks.
    """
    image = Image.new("RGB", (32, 32))
    data = tmp_path / "data"
    data.mkdir()
    rows = {"image": [image] * 2, "annotation": [image] * 2, "semantic_class_to_id": [{"nucleus": 0}] * 2}
    for split in ("train", "validation"):
        Dataset.from_dict(rows).to_parquet(str(data / f"{split}.parquet"))
    arguments = {"--model_name_or_path": CHECKPOINTS / "clustr-nano-nuclei", "--dataset_name": data}
    arguments["--output_dir"] = tmp_path / "out"
    path = scripts / "instance-segmentation" / script
    command = [sys.executable, LAUNCHER, data, path, *(part for pair in arguments.items() for part in pair)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "NO_ALBUMENTATIONS_UPDATE": "1"}
    result = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert "Unrecognized configuration class" in result.stderr and "UniversalSegmentation" in result.stderr
