"""`--eval_only` of every script: required arguments, output files and warnings."""

import json
import logging
import shutil

import numpy as np
import pytest
import run_image_classification as with_trainer
import run_image_classification_no_trainer as image_classification
import run_instance_segmentation_no_trainer as instance_segmentation
import run_object_detection_no_trainer as object_detection
import run_pose_estimation_no_trainer as pose_estimation
import run_semantic_segmentation_no_trainer as semantic_segmentation
import torch
from datasets import ClassLabel, Dataset
from datasets import Image as ImageFeature
from forked_scripts import run_on_two_processes
from PIL import Image
from safetensors.torch import load_file
from test_run_semantic_segmentation_no_trainer import arguments_for as segmentation_arguments
from tiny_models import tiny_config

from clustr_hf import (
    ClusTRDetectionImageProcessor,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
    ClusTRForPoseEstimation,
    ClusTRForSemanticSegmentation,
    ClusTRImageProcessor,
    ClusTRPoseImageProcessor,
)
from clustr_hf.keypoints import COCO


SCRIPTS = {
    "classification": image_classification,
    "segmentation": semantic_segmentation,
    "detection": object_detection,
    "instances": instance_segmentation,
    "poses": pose_estimation,
}
MODELS = {
    "classification": ClusTRForImageClassification,
    "segmentation": ClusTRForSemanticSegmentation,
    "detection": ClusTRForObjectDetection,
    "instances": ClusTRForInstanceSegmentation,
    "poses": ClusTRForPoseEstimation,
}
LABELS = {
    "classification": ["one", "two", "zero"],
    "segmentation": ["ground", "disc", "square"],
    "detection": ["disc", "square"],
    "instances": ["disc", "square"],
    "poses": list(COCO.names),
}
PROCESSORS = {
    "classification": ClusTRImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False),
    "segmentation": ClusTRImageProcessor(size={"shortest_edge": 32}, do_center_crop=False, do_pad=True),
    "detection": ClusTRDetectionImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}),
    "instances": ClusTRDetectionImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}),
    "poses": ClusTRPoseImageProcessor(size={"height": 64, "width": 48}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """For each task, a checkpoint folder with random weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for task, model_class in MODELS.items():
        torch.manual_seed(0)
        names = dict(enumerate(LABELS[task]))
        labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
        config = tiny_config(num_labels=len(names), **labels)
        model_class(config).save_pretrained(folder / task)
        PROCESSORS[task].save_pretrained(folder / task)
    return folder


@pytest.fixture
def evaluation_data(image_folders, segmentation_folders, coco_folders, person_folders):
    """The arguments that name the evaluation data of each task."""

    def coco(folder):
        return {
            "--validation_dir": folder / "validation",
            "--validation_annotation_file": folder / "validation.json",
        }

    names = {"--id2label_file": segmentation_folders / "id2label.json"}
    return {
        "classification": {"--validation_dir": image_folders / "validation"},
        "segmentation": {"--validation_dir": segmentation_folders / "validation", **names},
        "detection": coco(coco_folders),
        "instances": coco(coco_folders),
        "poses": {**coco(person_folders), "--keypoints": "coco"},
    }


@pytest.fixture
def evaluate(checkpoints, evaluation_data, run_script, tmp_path):
    """Run a task's script on its evaluation data; returns the output folder."""

    def run(task, *arguments, data=None, output_dir=tmp_path / "out"):
        settings = {"--output_dir": output_dir, "--model_name_or_path": checkpoints / task}
        run_script(SCRIPTS[task], settings | (data or evaluation_data[task]), "--eval_only", *arguments)
        return output_dir

    return run


def read_json(path):
    return json.loads(path.read_text())


def check_outputs(task, folder, num_samples):
    kind = "part" if task == "poses" else "class"
    pictures = set() if task == "classification" else {"predictions.png"}
    assert {path.name for path in folder.iterdir()} == {"eval_results.json", f"per_{kind}_results.json"} | pictures
    for name in pictures:
        assert np.asarray(Image.open(folder / name).convert("RGB")).std() > 20
    results, table = read_json(folder / "eval_results.json"), read_json(folder / f"per_{kind}_results.json")
    assert all(np.isfinite(value) for value in results.values())
    if task != "poses":  # samples are persons, and rows are parts of the body
        assert results["eval_samples"] == num_samples and list(table) == LABELS[task]
    return results, table


@pytest.mark.parametrize("task", SCRIPTS)
def test_three_images_and_a_model_are_enough(task, evaluate):
    """Uses the defaults: a batch of 64, and pictures."""
    results, table = check_outputs(task, evaluate(task, "--max_eval_samples", 3), num_samples=3)
    if task == "classification":
        assert sum(row["images"] for row in table.values()) == 3
        right = sum(row["images"] * (row["accuracy"] or 0) for row in table.values())
        assert results["eval_accuracy"] == pytest.approx(right / 3)
    elif task == "poses":
        assert 0 < results["eval_samples"] == table["body"]["persons"] <= 6


@pytest.mark.parametrize("task", SCRIPTS)
def test_two_processes_write_the_same(task, evaluate, evaluation_data, checkpoints, forked_scripts, tmp_path):
    """Evaluates three images on two processes, so that one process fills up its batch."""
    one = evaluate(task, "--max_eval_samples", 3)
    settings = {"--output_dir": tmp_path / "two", "--model_name_or_path": checkpoints / task, "--max_eval_samples": 3}
    settings |= evaluation_data[task]
    arguments = [*(part for pair in settings.items() for part in pair), "--eval_only"]
    run_on_two_processes(task, arguments, tmp_path / "log")
    results, table = check_outputs(task, tmp_path / "two", num_samples=3)
    expected, expected_table = check_outputs(task, one, num_samples=3)
    assert results == {name: pytest.approx(value, abs=1e-4) for name, value in expected.items()}
    assert list(table) == list(expected_table)


# Environment that `accelerate launch` sets for fsdp2_cpu.yaml.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
FSDP |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "ClusTRBlock", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
LAUNCHES = {
    "ddp, averaged, bf16": (["--ema_decay", 0.5, "--mixed_precision", "bf16"], {}),
    "fsdp": ([], FSDP),
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_two_processes_log_the_scores_of_the_model_that_is_saved(
    launch,
    forked_scripts,
    segmentation_folders,
    tmp_path,
    run_script,
):
    """Each process has its own batch norm statistics; a resumed run equals an uninterrupted one."""
    options, environment = LAUNCHES[launch]
    settings = {**segmentation_arguments(segmentation_folders, tmp_path / "out"), "--eval_steps": 1}
    settings |= {"--max_train_steps": 2, "--num_pictures": 0, "--per_device_eval_batch_size": 1}
    arguments = [part for pair in settings.items() for part in pair]
    arguments += [*options, "--checkpointing_steps", 1, "--checkpoints_total_limit", 3]
    run_on_two_processes("segmentation", arguments, tmp_path / "whole", **environment)
    evaluated = settings | {"--output_dir": tmp_path / "evaluated", "--model_name_or_path": tmp_path / "out"}
    run_script(semantic_segmentation, evaluated, *options, "--eval_only")
    logged, found = (
        read_json(tmp_path / "out" / "all_results.json"),
        read_json(tmp_path / "evaluated" / "eval_results.json"),
    )
    assert found == pytest.approx({name: logged[name] for name in found}, rel=1e-6)

    history = read_json(tmp_path / "out" / "log_history.json")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    run_on_two_processes(
        "segmentation",
        [*arguments, "--resume_from_checkpoint", tmp_path / "out" / "checkpoint-1"],
        tmp_path / "resumed",
        **environment,
    )
    assert read_json(tmp_path / "out" / "log_history.json") == history
    resumed = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_shards_are_evaluated_and_drawn(evaluation_data, checkpoints, evaluate, forked_scripts, tmp_path):
    """With FSDP, whole weights are gathered for the pictures."""
    one = evaluate("segmentation")
    settings = {"--output_dir": tmp_path / "two", "--model_name_or_path": checkpoints / "segmentation"}
    settings |= evaluation_data["segmentation"]
    arguments = [*(part for pair in settings.items() for part in pair), "--eval_only"]
    run_on_two_processes("segmentation", arguments, tmp_path / "log", **FSDP)
    results, _ = check_outputs("segmentation", tmp_path / "two", num_samples=5)
    expected = read_json(one / "eval_results.json")
    assert results == {name: pytest.approx(value, abs=1e-4) for name, value in expected.items()}


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection", "poses"])
def test_training_data_and_settings_change_nothing(task, evaluate, evaluation_data, tmp_path):
    """They are not read, so they may contradict each other or not exist."""
    expected = read_json(evaluate(task, "--max_eval_samples", 3) / "eval_results.json")
    ignored = {"--train_dir": "nowhere", "--max_train_samples": 1, "--exclude_train_names": "nothing"}
    if task in ("detection", "poses"):
        ignored["--train_annotation_file"] = "nowhere.json"
    arguments = ["--max_eval_samples", 3, "--train_batch_size", 7, "--per_device_train_batch_size", 2]
    folder = evaluate(task, *arguments, data=evaluation_data[task] | ignored, output_dir=tmp_path / "other")
    assert read_json(folder / "eval_results.json") == expected


@pytest.mark.parametrize("task", SCRIPTS)
def test_what_is_missing_is_named(task, evaluate, run_script, evaluation_data, tmp_path):
    names = {"poses": {"--keypoints": "coco"}}.get(task, {"--image_column_name": "image"})
    message = (
        "--validation_dir and --validation_annotation_file must be given"
        if task == "poses"
        else ("data to evaluate on are needed: --dataset_name, --validation_dir or --validation_file")
    )
    with pytest.raises(ValueError, match=message):
        evaluate(task, data=names)
    with pytest.raises(ValueError, match="--eval_only needs weights: --model_name_or_path or --resume_from_checkpoint"):
        run_script(SCRIPTS[task], {"--output_dir": tmp_path / "out"} | evaluation_data[task], "--eval_only")
    with pytest.raises(ValueError, match="--dry_run cannot be combined with --eval_only"):
        evaluate(task, "--dry_run")
    # Without --eval_only, training data is required.
    message = "--train_dir and --train_annotation_file must" if task == "poses" else "--train_dir, --train_file is need"
    with pytest.raises(ValueError, match=message):
        run_script(SCRIPTS[task], {"--output_dir": tmp_path / "out"} | evaluation_data[task])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("others", [{"--train_file": "a.parquet"}, {"--dataset_name": "a/b"}])
def test_sources_are_not_mixed(evaluate, evaluation_data, others):
    """Without this check, one of the sources would be ignored silently."""
    with pytest.raises(ValueError, match=r"one of a data set, folders and files, got .* and "):
        evaluate("classification", data=evaluation_data["classification"] | others)


def rows_of_colours(labels, names):
    rows = Dataset.from_dict(
        {"image": [np.full((32, 32, 3), 40 * label, dtype=np.uint8) for label in labels], "label": labels}
    )
    return rows.cast_column("image", ImageFeature()).cast_column("label", ClassLabel(names=names))


@pytest.mark.parametrize("source", ["file", "dataset", "split off", "stream"])
def test_rows_are_evaluated_without_training_rows(source, evaluate, tmp_path):
    split = "train" if source == "split off" else "validation"
    number = 20 if source == "split off" else 3
    rows_of_colours([index % 3 for index in range(number)], LABELS["classification"]).to_parquet(
        tmp_path / f"{split}.parquet"
    )
    data = {f"--{split}_file": tmp_path / f"{split}.parquet"}
    if source == "dataset":
        data = {"--dataset_name": tmp_path}
    arguments = ["--streaming"] if source == "stream" else []
    folder = evaluate("classification", *arguments, data=data)
    assert read_json(folder / "eval_results.json")["eval_samples"] == 3  # 15 % of 20 if split off


def test_a_data_set_without_validation_is_named(evaluate, tmp_path):
    rows_of_colours([0, 1, 2], LABELS["classification"]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"must have a split `validation` or `train`, got \['test'\]"):
        evaluate("classification", data={"--dataset_name": tmp_path})


def test_trainers_script_needs_no_training_data_either(checkpoints, evaluation_data, run_script, tmp_path):
    settings = {"--output_dir": tmp_path / "out", "--model_name_or_path": checkpoints / "classification"}
    run_script(with_trainer, settings | evaluation_data["classification"], "--do_eval", "--use_cpu")
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_accuracy"] >= 0
    with pytest.raises(ValueError, match="one of --dataset_name, --train_dir, --train_file is needed, got none"):
        run_script(with_trainer, settings | evaluation_data["classification"], "--do_train", "--do_eval", "--use_cpu")


@pytest.mark.parametrize("has_average", [False, True])
def test_a_runs_checkpoint_needs_no_settings_of_its_training(
    has_average, image_folders, evaluation_data, run_script, tmp_path
):
    """Optimizer, `--ema_decay` and batch sizes need not be given; the moving average is evaluated."""
    model = {"--image_size": 32, "--config_overrides": json.dumps({"depths": [1, 1, 1, 1]})}
    model |= {"--output_dir": tmp_path / "run"} | evaluation_data["classification"]
    training = {"--train_dir": image_folders / "train", "--optimizer": "muon", "--max_train_steps": 2}
    training |= {"--train_batch_size": 4, "--learning_rate": 0.02, "--ema_decay": 0.5 if has_average else None}
    run_script(image_classification, {key: value for key, value in (model | training).items() if value is not None})
    expected = read_json(tmp_path / "run" / "all_results.json")
    run_script(image_classification, model | {"--resume_from_checkpoint": "latest"}, "--eval_only")
    results = read_json(tmp_path / "run" / "eval_results.json")
    assert results == {name: pytest.approx(expected[name]) for name in results}
    other = model | {"--resume_from_checkpoint": "latest", "--config_overrides": json.dumps({"depths": [1, 1, 2, 1]})}
    with pytest.raises(ValueError, match="is of another model: the arguments must name the model as"):
        run_script(image_classification, other, "--eval_only")
    with pytest.raises(ValueError, match=r"--resume_from_checkpoint latest: .*none has none to evaluate"):
        run_script(image_classification, other | {"--output_dir": tmp_path / "none"}, "--eval_only")


def absent_classes(caplog):
    return [
        record.getMessage() for record in caplog.records if "of the validation data belongs to" in record.getMessage()
    ]


def test_label_maps_of_0_and_255_are_not_perfect_without_a_word(evaluate, tmp_path, caplog):
    """Two classes stored as 0 and 255: 255 is ignored, so a model that predicts 0 everywhere scores 100 %."""
    for kind in ("images", "annotations"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    image = np.full((64, 64), 200, dtype=np.uint8)
    label_map = np.where(np.arange(64) < 32, 0, 255).astype(np.uint8) + np.zeros((64, 1), dtype=np.uint8)
    Image.fromarray(image).convert("RGB").save(tmp_path / "data" / "images" / "a.png")
    Image.fromarray(label_map).save(tmp_path / "data" / "annotations" / "a.png")
    (tmp_path / "names.json").write_text('{"0": "ground", "1": "disc", "2": "square"}')
    data = {"--validation_dir": tmp_path / "data", "--id2label_file": tmp_path / "names.json"}
    with caplog.at_level(logging.WARNING):
        evaluate("segmentation", data=data)
    [message] = absent_classes(caplog)
    assert "no pixel" in message and "2 of 3 classes" in message and "disc, square" in message
    assert "255 marks pixels to ignore" in message
    Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)).save(tmp_path / "data" / "annotations" / "a.png")
    with pytest.raises(ValueError, match="the validation label maps must have labelled pixels, got none"):
        evaluate("segmentation", data=data)


def test_classes_without_images_and_objects_are_named_once(evaluate, coco_folders, evaluation_data, tmp_path, caplog):
    rows_of_colours([0, 0, 2], LABELS["classification"]).to_parquet(tmp_path / "validation.parquet")
    content = read_json(coco_folders / "validation.json")
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 3]
    (tmp_path / "discs.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        evaluate("classification", data={"--validation_file": tmp_path / "validation.parquet"})
        evaluate(
            "detection", data=evaluation_data["detection"] | {"--validation_annotation_file": tmp_path / "discs.json"}
        )
    messages = absent_classes(caplog)
    assert len(messages) == 2
    assert "no image of the validation data belongs to 1 of 3 classes" in messages[0] and ": two" in messages[0]
    assert "no object of the validation data belongs to 1 of 2 classes" in messages[1] and ": square" in messages[1]


def test_nothing_is_said_where_all_classes_occur(evaluate, caplog):
    with caplog.at_level(logging.WARNING):
        for task in ("classification", "segmentation", "poses"):
            evaluate(task)
    assert absent_classes(caplog) == []


def test_images_of_one_class_are_evaluated_by_its_name(evaluate, evaluation_data, image_folders, tmp_path):
    """Three images of a class other than the first are evaluated with the checkpoint's class names."""
    everything = read_json(evaluate("classification") / "per_class_results.json")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "two").symlink_to(image_folders / "validation" / "two")
    folder = evaluate("classification", data={"--validation_dir": tmp_path / "two"}, output_dir=tmp_path / "some")
    table = read_json(folder / "per_class_results.json")
    assert table["two"] == everything["two"] and table["one"]["images"] == table["zero"]["images"] == 0
