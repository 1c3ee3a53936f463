"""The script for Trainer: training, resuming, pushing and its errors; and the timing on a busy machine."""

import json
import sys

import pytest
import run_image_classification
import torch
from benchmark import busy_machine
from conftest import REPOSITORY, run_process
from local_hub import LocalHub, card_errors


def test_a_busy_machine_is_measured(monkeypatch, capsys):
    monkeypatch.setenv("CLUSTR_KERNEL", "on")  # restores what the script sets
    monkeypatch.setattr(sys, "argv", ["busy_machine.py", "--threads", "1", "--busy_loops", "1", "--rounds", "2"])
    if not busy_machine.is_available():
        pytest.skip("the compiled kernel was not built")
    threads = torch.get_num_threads()
    try:
        busy_machine.main()
    finally:
        torch.set_num_threads(threads)
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| nothing", "| 1 busy"))
    ]
    assert [(row[0], row[2]) for row in rows] == [
        (f"| {situation}", clustering)
        for situation in ("nothing", "1 busy loops")
        for clustering in ("tensor operations", "compiled kernel")
    ]
    assert all(float(row[3]) > 0 for row in rows) and rows[0][5] == rows[2][5] == "1.00 |"


def train_command(output_dir, *arguments):
    return [
        *(sys.executable, REPOSITORY / "examples" / "run_image_classification.py", "--output_dir", output_dir),
        *("--do_train", "--do_eval", "--variant", "nano", "--image_size", 32, "--per_device_train_batch_size", 16),
        *("--logging_steps", 1, "--save_strategy", "epoch", "--eval_strategy", "epoch", "--report_to", "none"),
        *arguments,
    ]


def logged_losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def assert_resumes_exactly(data, tmp_path, first_checkpoint):
    """A resumed run has the losses and the result of an uninterrupted one."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_process(train_command(whole, *data, "--num_train_epochs", 2), tmp_path)
    resumed.mkdir()
    (whole / first_checkpoint).rename(resumed / first_checkpoint)
    output = run_process(train_command(resumed, *data, "--num_train_epochs", 2), tmp_path)
    assert f"Resuming from {resumed / first_checkpoint}" in output
    assert logged_losses(resumed) == logged_losses(whole)
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (whole, resumed)]
    assert results[0]["eval_accuracy"] == results[1]["eval_accuracy"]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]


@pytest.mark.slow
def test_training_script_resumes_exactly_on_image_folders(image_folders, tmp_path):
    data = ["--train_dir", image_folders / "train", "--validation_dir", image_folders / "validation"]
    assert_resumes_exactly(data, tmp_path, "checkpoint-4")
    config = json.loads((tmp_path / "resumed" / "config.json").read_text())
    assert config["id2label"] == {"0": "one", "1": "two", "2": "zero"}
    assert {
        "README.md",
        "model.safetensors",
        "modeling_clustr.py",
        "preprocessor_config.json",
        "training_curve.png",
    } <= {path.name for path in (tmp_path / "resumed").iterdir()}


@pytest.mark.slow
def test_training_script_resumes_exactly_on_cifar10(shared, tmp_path):
    files = shared / "data" / "cifar10"
    data = ["--train_file", files / "train.parquet", "--validation_file", files / "test.parquet"]
    data += ["--max_train_samples", 128, "--max_eval_samples", 100]
    assert_resumes_exactly(data, tmp_path, "checkpoint-8")


def test_training_script_pushes_to_the_hub_with_a_card(image_folders, tmp_path):
    data = ["--dataset_name", image_folders, "--num_train_epochs", 2, "--max_train_samples", 16]
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
        push = ["--push_to_hub", "--hub_model_id", "me/digits"]
        output = run_process(train_command(tmp_path / "out", *data, *push), tmp_path, **environment)
        commits = hub.repositories["me/digits"]
    assert f"pin its revision={commits[-1][0]}" in output
    assert len(commits) == 4  # one for the empty repository, one per epoch, and one at the end
    weights = [files["model.safetensors"] for _, files in commits[1:]]
    assert weights[0] != weights[1] == weights[2]
    for _, files in commits[1:]:
        assert {"config.json", "model.safetensors", "modeling_clustr.py", "preprocessor_config.json"} <= files.keys()
        assert not any("/" in name or name.endswith(".bin") for name in files)
    card = files["README.md"].decode()
    assert card_errors(card) == [] and "pipeline_tag: image-classification" in card
    assert "| Top-1 accuracy | 0." in card and "python examples/run_image_classification.py" in card
    assert 'model="me/digits"' in card and "| per_device_train_batch_size | `16` |" in card


def test_pushes_that_fail_end_no_training(image_folders, tmp_path):
    data = ["--dataset_name", image_folders, "--num_train_epochs", 2, "--max_train_samples", 16]
    with LocalHub() as hub:
        hub.refused = {"commit"}
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
        with pytest.raises(AssertionError) as failure:
            run_process(train_command(tmp_path / "out", *data, "--push_to_hub"), tmp_path, **environment)
        assert hub.repositories == {}
    assert "could not push step 2, training goes on: 403" in str(failure.value)
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "eval_results.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of --dataset_name, --train_dir, --train_file is needed"),
        (["--train_dir", "{images}/train", "--label_column_name", "kind"], "'kind' is not in the data set"),
        (
            ["--train_dir", "{images}/train", "--push_to_hub", "--hub_strategy", "checkpoint"],
            "--hub_strategy must be end or every_save, got checkpoint",
        ),
        (["--train_dir", "{images}/train", "--push_to_hub", "--do_train", "false"], "--push_to_hub needs --do_train"),
    ],
)
def test_training_script_names_bad_arguments(image_folders, tmp_path, run_script, arguments, message):
    arguments = [argument.format(images=image_folders) for argument in arguments]
    with pytest.raises(ValueError, match=message):
        run_script(run_image_classification, {}, *train_command(tmp_path / "out", *arguments)[2:])
