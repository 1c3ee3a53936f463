"""The training loop in runs of the classification script: resuming, several processes, gradient accumulation."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from conftest import REPOSITORY, run_process
from PIL import Image
from safetensors.torch import load_file

from clustr_hf import ClusTRForImageClassification, ClusTRImageProcessor
from clustr_hf.training.checkpoints import damage_of_checkpoint
from clustr_hf.training.checksums import checked_files


SCRIPT = REPOSITORY / "examples" / "run_image_classification_no_trainer.py"
# Settings with all random numbers and all state that a checkpoint must hold.
EVERYTHING = [
    *("--rand_augment", "rand-m9-mstd0.5-inc1", "--random_erasing", 0.25, "--mixup", 0.8, "--cutmix", 1.0),
    *("--label_smoothing", 0.1, "--drop_path_rate", 0.1, "--ema_decay", 0.9, "--max_grad_norm", 1.0),
    *("--repeated_augmentation", 2, "--per_device_train_batch_size", 4, "--warmup_steps", 5),
]
EIGHT_STEPS = [*("--rand_augment", "rand-m9-mstd0.5-inc1", "--random_erasing", 0.25), "--max_train_steps", 8]
# Tolerance between one process and several after eight steps: AdamW amplifies the different order of sums.
TOLERANCE = 1e-4


def train_command(data, output_dir, *arguments):
    return [
        *(sys.executable, SCRIPT, "--train_dir", data / "train", "--validation_dir", data / "validation"),
        *("--output_dir", output_dir, "--variant", "nano", "--image_size", 32, "--train_batch_size", 8),
        *("--learning_rate", 1e-3, "--logging_steps", 1, *arguments),
    ]


def environment(folder):
    """An environment with one thread, which fixes the order of sums, and a data set cache in the folder of the test."""
    return {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}


@pytest.fixture(scope="module")
def run(forked_scripts, image_folders, tmp_path_factory):
    """Train on the digits; returns the weights."""

    def run(output_dir, *arguments):
        log = tmp_path_factory.mktemp("logs") / "log"
        forked_scripts("classification", train_command(image_folders, output_dir, *arguments)[2:], log).succeed()
        return load_file(output_dir / "model.safetensors")

    return run


def read_json(path):
    return json.loads(path.read_text())


def assert_same_run(folder, other):
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert read_json(folder / "log_history.json") == read_json(other / "log_history.json")
    results, other_results = (read_json(path / "all_results.json") for path in (folder, other))
    assert {**results, "train_runtime": 0} == {**other_results, "train_runtime": 0}


def test_a_run_by_muon_in_channels_last_format_resumes_exactly(run, tmp_path):
    arguments = [*EIGHT_STEPS, "--optimizer", "muon", "--channels_last", "true", "--checkpointing_steps", 4]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(whole, *arguments)
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    run(resumed, *arguments, "--resume_from_checkpoint", "latest")
    assert_same_run(whole, resumed)


@pytest.fixture(scope="module")
def one_process(run, tmp_path_factory):
    """Folder and weights after eight steps on one process, without drop path and mixup, which differ on several."""
    output_dir = tmp_path_factory.mktemp("processes") / "one"
    return output_dir, run(output_dir, *EIGHT_STEPS)


def assert_close(weights, expected):
    assert weights.keys() == expected.keys()
    assert max((weights[name] - expected[name]).abs().max().item() for name in weights) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp_cpu", "fsdp2_cpu"])
def test_two_processes_give_the_weights_of_one(image_folders, one_process, tmp_path, kind):
    """One process receives a signal; the run resumes from the states of both processes."""
    reference, expected = one_process
    out = tmp_path / "two"
    command = train_command(image_folders, out, *EIGHT_STEPS, "--max_grad_norm", 100.0)
    config = REPOSITORY / "examples" / "accelerate" / f"{kind}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 0]
    command = [*map(str, [*launch, *command[1:], "--checkpointing_steps", 4])]
    stop_second_process(command, tmp_path)
    [checkpoint] = out.glob("checkpoint-*")
    assert checkpoint.name in [f"checkpoint-{step}" for step in range(1, 8)] and not (out / "config.json").exists()
    listed = checked_files(checkpoint)
    assert {"random_states_0.pkl", "random_states_1.pkl", "training_state.json"} <= listed
    assert ("model.safetensors" in listed) == (kind == "ddp_cpu") and damage_of_checkpoint(checkpoint) == []
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    shutil.copytree(checkpoint, out / "checkpoint-100")
    damaged = out / "checkpoint-100" / largest.relative_to(checkpoint)
    damaged.write_bytes(damaged.read_bytes()[:-100])

    run_process([*command, "--resume_from_checkpoint", "latest"], tmp_path, **environment(tmp_path))
    assert_close(load_file(out / "model.safetensors"), expected)
    results, expected_results = (read_json(path / "all_results.json") for path in (out, reference))
    assert results["eval_samples"] == 31 and results["eval_accuracy"] == expected_results["eval_accuracy"]
    assert results["eval_loss"] == pytest.approx(expected_results["eval_loss"], abs=1e-5)
    assert damage_of_checkpoint(out / "checkpoint-8") == []


def stop_second_process(command, folder):
    """Start a run on two processes and send SIGTERM to the second one after a step."""
    launcher = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment(folder)}
    )
    log = []
    for line in launcher.stderr:
        log.append(line)
        if "steps: 8" in line:
            [second] = [
                process
                for process in psutil.Process(launcher.pid).children(recursive=True)
                if process.environ().get("RANK") == "1"
            ]
        if re.search(r"step 1, .*loss", line):
            second.send_signal(signal.SIGTERM)
    assert launcher.wait() != 0 and "resume with `--resume_from_checkpoint latest`" in "".join(log), "".join(log)


def test_accumulation_and_workers_do_not_change_the_result(run, one_process, tmp_path):
    reference, expected = one_process
    arguments = ["--per_device_train_batch_size", 2, "--dataloader_num_workers", 2, "--per_device_eval_batch_size", 7]
    assert_close(run(tmp_path / "accumulated", *EIGHT_STEPS, *arguments), expected)
    assert read_json(tmp_path / "accumulated" / "all_results.json")["eval_samples"] == 31
    best, final = (read_json(reference / name) for name in ("all_results.json", "log_history.json"))
    assert best["eval_accuracy"] == [entry for entry in final if "eval_accuracy" in entry][-1]["eval_accuracy"]


def test_evaluation_agrees_with_the_saved_model(image_folders, one_process):
    """Recompute the accuracy with the model and the processor of the output folder alone."""
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
