"""
Runs that are killed at random moments and resumed end with the same bits as uninterrupted runs.

By default, two tasks are killed a few times. `KILLS=10 python -m pytest tests/training/test_kills.py` kills every task
ten times.
"""

import json
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from test_run_detection_no_trainer import arguments_for as detection_arguments
from test_run_detection_no_trainer import files_of as detection_files
from test_run_pose_estimation_no_trainer import arguments_for as pose_arguments
from test_run_semantic_segmentation_no_trainer import arguments_for as segmentation_arguments
from test_training_loop import EVERYTHING, assert_same_run, train_command

from clustr_hf.training.checkpoints import damage_of_checkpoint, has_checksums


TASKS = ("classification", "segmentation", "detection", "instances", "poses")
KILLS = {"classification": 4, "segmentation": 2}


@pytest.fixture
def arguments(request, tmp_path):
    """Make the arguments of a task, with a moving average and frequent checkpoints."""

    def make(task, output_dir, steps):
        if task == "classification":
            settings = train_command(request.getfixturevalue("image_folders"), output_dir, *EVERYTHING)[2:]
        elif task == "segmentation":
            folder = request.getfixturevalue("segmentation_folders")
            settings = [part for pair in segmentation_arguments(folder, output_dir).items() for part in pair]
            settings += ["--photometric_distortion", "--num_pictures", 1]
        elif task == "poses":
            folder = request.getfixturevalue("person_folders")
            settings = [part for pair in pose_arguments(folder, output_dir).items() for part in pair]
        else:
            files = detection_files(request.getfixturevalue("coco_folders"))
            settings = [part for pair in (detection_arguments(output_dir) | files).items() for part in pair]
        schedule = ["--max_train_steps", steps, "--checkpointing_steps", 2, "--eval_steps", 5, "--ema_decay", 0.9]
        return [*settings, *schedule, "--cache_dir", tmp_path / "cache"]

    return make


def assert_checkpoints_are_whole(output_dir):
    """Check all checkpoints by their checksums and by loading them with other libraries."""
    for checkpoint in output_dir.glob("checkpoint-*"):
        if checkpoint.suffix == ".incomplete":
            continue
        assert has_checksums(checkpoint) and damage_of_checkpoint(checkpoint) == []
        assert all(weight.isfinite().all() for weight in load_file(checkpoint / "model.safetensors").values())
        torch.load(checkpoint / "optimizer.bin", weights_only=True)
        state = json.loads((checkpoint / "training_state.json").read_text())
        assert state["step"] == int(checkpoint.name.split("-")[1])
    for best in output_dir.glob("best-*"):
        if best.suffix != ".incomplete":
            assert load_file(best / "model.safetensors") and json.loads((best / "config.json").read_text())


def last_step(output_dir):
    return max((int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*") if not path.suffix), default=0)


@pytest.mark.parametrize("task", TASKS)
def test_kills_change_nothing(task, arguments, forked_scripts, tmp_path):
    kills = int(os.environ.get("KILLS", KILLS.get(task, 0)))
    if kills == 0:
        pytest.skip("KILLS=10 kills this task's training, too")
    steps = 8 + 4 * kills
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forked_scripts(task, arguments(task, whole, steps), tmp_path / "whole.log").succeed()
    moments = random.Random(0)
    resume = [*arguments(task, killed, steps), "--resume_from_checkpoint", "latest"]
    for number in range(kills):
        saved = last_step(killed)
        farthest = steps - 4 - 3 * (kills - 1 - number)  # leaves steps for later kills
        step = saved + min(moments.randint(1, 4), max(farthest - saved, 1))
        run = forked_scripts(task, resume, tmp_path / f"kill-{number}.log")
        run.wait_for(rf"step {step}, .*loss")
        time.sleep(moments.uniform(0, 0.3))
        run.send(signal.SIGKILL)
        assert run.end() == -signal.SIGKILL
        assert_checkpoints_are_whole(killed)
    forked_scripts(task, resume, tmp_path / "last.log").succeed()
    assert_same_run(whole, killed)
    assert not list(killed.glob("*.incomplete"))
    assert len(list(killed.glob("checkpoint-*"))) == 2 and len(list(killed.glob("best-*"))) == 1
