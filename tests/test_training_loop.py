"""The training loop, run by the classification script as a user would: resuming, several processes, what goes wrong."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_process
from PIL import Image
from safetensors.torch import load_file

from clustr_hf import ClusTRForImageClassification, ClusTRImageProcessor


SCRIPT = REPOSITORY / "examples" / "run_image_classification_no_trainer.py"
# All that is random, and all that a checkpoint must hold.
EVERYTHING = [
    *("--rand_augment", "rand-m9-mstd0.5-inc1", "--random_erasing", 0.25, "--mixup", 0.8, "--cutmix", 1.0),
    *("--label_smoothing", 0.1, "--drop_path_rate", 0.1, "--ema_decay", 0.9, "--max_grad_norm", 1.0),
    *("--repeated_augmentation", 2, "--per_device_train_batch_size", 4, "--warmup_steps", 5),
]
EIGHT_STEPS = [*("--rand_augment", "rand-m9-mstd0.5-inc1", "--random_erasing", 0.25), "--max_train_steps", 8]
# Weights of one process and of several after eight steps: the order of sums differs, and AdamW magnifies it.
TOLERANCE = 1e-4


def train_command(data, output_dir, *arguments):
    return [
        *(sys.executable, SCRIPT, "--train_dir", data / "train", "--validation_dir", data / "validation"),
        *("--output_dir", output_dir, "--variant", "nano", "--image_size", 32, "--train_batch_size", 8),
        *("--learning_rate", 1e-3, "--logging_steps", 1, *arguments),
    ]


def environment(folder):
    """One thread, so that sums have one order; and data sets kept where the test is."""
    return {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}


def run(data, output_dir, *arguments):
    run_process(train_command(data, output_dir, *arguments), output_dir.parent, **environment(output_dir.parent))
    return load_file(output_dir / "model.safetensors")


def read_json(path):
    return json.loads(path.read_text())


def assert_same_run(folder, other):
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert read_json(folder / "log_history.json") == read_json(other / "log_history.json")
    results, other_results = (read_json(path / "all_results.json") for path in (folder, other))
    assert {**results, "train_runtime": 0} == {**other_results, "train_runtime": 0}


def test_a_run_by_muon_resumes_exactly(image_folders, tmp_path):
    arguments = [*EIGHT_STEPS, "--optimizer", "muon", "--checkpointing_steps", 4]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(image_folders, whole, *arguments)
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    run(image_folders, resumed, *arguments, "--resume_from_checkpoint", "latest")
    assert_same_run(whole, resumed)


@pytest.fixture(scope="module")
def one_process(image_folders, tmp_path_factory):
    """Eight steps on one process, and their weights; neither drop path nor mixup, which processes draw themselves."""
    output_dir = tmp_path_factory.mktemp("processes") / "one"
    return output_dir, run(image_folders, output_dir, *EIGHT_STEPS)


def assert_close(weights, expected):
    assert weights.keys() == expected.keys()
    assert max((weights[name] - expected[name]).abs().max().item() for name in weights) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp_cpu", "fsdp2_cpu"])
def test_two_processes_give_the_weights_of_one(image_folders, one_process, tmp_path, kind):
    reference, expected = one_process
    command = train_command(image_folders, tmp_path / "two", *EIGHT_STEPS, "--max_grad_norm", 100.0)
    config = REPOSITORY / "examples" / "accelerate" / f"{kind}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 0]
    halfway = [*command[1:], "--checkpointing_steps", 4]
    run_process([*launch, *halfway], tmp_path, **environment(tmp_path))
    assert_close(load_file(tmp_path / "two" / "model.safetensors"), expected)
    results, expected_results = (read_json(path / "all_results.json") for path in (tmp_path / "two", reference))
    assert results["eval_samples"] == 31 and results["eval_accuracy"] == expected_results["eval_accuracy"]
    assert results["eval_loss"] == pytest.approx(expected_results["eval_loss"], abs=1e-5)

    # Resumed halfway, both processes go on from their part of the state.
    shutil.rmtree(tmp_path / "two" / "checkpoint-8")
    again = [*launch, *halfway, "--resume_from_checkpoint", "latest"]
    run_process(again, tmp_path, **environment(tmp_path))
    assert_close(load_file(tmp_path / "two" / "model.safetensors"), expected)


def test_accumulation_and_workers_do_not_change_the_result(image_folders, one_process, tmp_path):
    reference, expected = one_process
    arguments = ["--per_device_train_batch_size", 2, "--dataloader_num_workers", 2, "--per_device_eval_batch_size", 7]
    assert_close(run(image_folders, tmp_path / "accumulated", *EIGHT_STEPS, *arguments), expected)
    assert read_json(tmp_path / "accumulated" / "all_results.json")["eval_samples"] == 31
    best, final = (read_json(reference / name) for name in ("all_results.json", "log_history.json"))
    assert best["eval_accuracy"] == [entry for entry in final if "eval_accuracy" in entry][-1]["eval_accuracy"]


def test_evaluation_agrees_with_the_saved_model_in_other_hands(image_folders, one_process):
    """Accuracy recomputed from the output folder with the processor and the model alone."""
    reference, _ = one_process
    model = ClusTRForImageClassification.from_pretrained(reference).eval()
    processor = ClusTRImageProcessor.from_pretrained(reference)
    right = []
    for path in (image_folders / "validation").rglob("*.png"):
        with torch.no_grad():
            logits = model(**processor(Image.open(path), return_tensors="pt")).logits
        right.append(model.config.id2label[logits.argmax().item()] == path.parent.name)
    assert len(right) == 31
    assert np.mean(right) == pytest.approx(read_json(reference / "all_results.json")["eval_accuracy"])
