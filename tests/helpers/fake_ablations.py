"""Runs of the ablations on empty files, and a stand-in for the training scripts."""

import json
from pathlib import Path

from ablations import attention_off, plan, runs
from ablations.arguments import AblationArguments
from ablations.scores import METRICS


NARROW = {"hidden_sizes": [12, 12, 12, 12], "num_attention_heads": [3, 3, 3, 3], "depths": [1, 1, 1, 1]}
NARROW |= {"patch_sizes": [3, 1, 1, 1], "strides": [2, 1, 1, 1]}
RECIPE = {"variant": "nano", "config_overrides": NARROW, "image_size": 32, "train_val_split": 0.25}


def make_folders(tmp_path):
    """Folders with recipes, and with empty data files for the two tasks."""
    for name in ("images/train.parquet", "maps/train.parquet", "maps/val.parquet", "maps/id2label.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "classification.json").write_text(json.dumps({**RECIPE, "num_train_epochs": 1, "train_batch_size": 4}))
    settings = {"image_size": 64, "crop_size": 64, "train_batch_size": 2, "max_train_steps": 1}
    (tmp_path / "segmentation.json").write_text(json.dumps(settings))
    return tmp_path


def make_args(folder, **settings):
    defaults = {"table": ["photographs"], "segmentation_data": str(folder / "maps"), "seeds": [0, 3]}
    settings = {**defaults, "recipe": str(folder / "classification.json"), **settings}
    return AblationArguments(
        data=str(folder / "images"),
        segmentation_recipe=str(folder / "segmentation.json"),
        output_dir=str(folder / "out"),
        time_per_image=False,
        **settings,
    )


class FakeTraining:
    """Stands in for the scripts: writes given results of a run, or fails; evaluations score 0.1."""

    def __init__(self, monkeypatch, scores=None):
        self.scores, self.started, self.evaluated, self.returncode = scores or {}, [], [], 0
        monkeypatch.setattr(runs.subprocess, "Popen", self.run)
        monkeypatch.setattr(attention_off, "switch_attention_off", lambda source, target: None)

    def run(self, command, env):
        options = dict(zip(command[2::2], command[3::2]))
        folder = Path(options["--output_dir"])
        if "--eval_only" in options:
            self.evaluated.append(folder.parent.parent.name)
            folder.mkdir()
            (folder / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.1, "eval_mean_iou": 0.1}))
        else:
            self.train(folder)
        return FinishedProcess(self.returncode)

    def train(self, folder):
        self.started.append((folder.parent.name, folder.name))
        if self.returncode != 0:
            return
        score = self.scores.get(self.started[-1], 0.5)
        metric = METRICS[folder.parent.name][0]
        results = {metric: score, "eval_samples": 9, "step": 2, "train_runtime": 1.0}
        (folder / "all_results.json").write_text(json.dumps(results))
        history = [{"epoch": 1, "loss": 2.0, metric: 0.2}, {"epoch": 2, "loss": 1.0, metric: score}]
        (folder / "log_history.json").write_text(json.dumps(history))


class FinishedProcess:
    """A process that has ended; its context does nothing."""

    def __init__(self, returncode):
        self.returncode = returncode

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def run_all(args):
    for run in plan.plan_runs(args):
        run.start()


def as_options(args):
    names = ("data", "segmentation_data", "recipe", "segmentation_recipe", "output_dir")
    names += ("time_per_image",)
    return [part for name in names for part in (f"--{name}", str(getattr(args, name)))] + ["--seeds", "0", "3"]
