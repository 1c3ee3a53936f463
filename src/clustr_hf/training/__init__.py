# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Training and evaluation with Accelerate: one loop, and a task for each head of ClusTR.

A [`Task`] names a model, data, a loss and metrics; [`train`] trains and evaluates it, on one process or many, with
exact resume, checkpoints, a schedule, logs and the upload to the Hub:

    from clustr_hf.training import LoopArguments, Task, train

    task = Task(model=model, train_data=train_rows, eval_data=eval_rows)
    train(task, LoopArguments(output_dir="out"))

`clustr_hf.training.tasks` has the tasks of the paper. The package needs `pip install clustr_hf[training]`.
"""

import importlib.util


# The packages of the extra `training` in setup.cfg.
REQUIRED = ("accelerate", "peft", "tensorboard", "timm", "tqdm")
_missing = [package for package in REQUIRED if importlib.util.find_spec(package) is None]
if _missing:
    raise ImportError(f"clustr_hf.training needs {', '.join(_missing)}: pip install clustr_hf[training]")

from .arguments import LoopArguments, parse_arguments  # noqa: E402 (after the check above)
from .data.decoding import UnreadableSample  # noqa: E402
from .data.samples import EvaluationSamples, TrainingData, TrainingSamples  # noqa: E402
from .distributed import make_accelerator  # noqa: E402
from .loop import train  # noqa: E402
from .optimizers import freeze_stages  # noqa: E402
from .signals import run_interruptibly  # noqa: E402
from .task import Task  # noqa: E402


__all__ = [
    "EvaluationSamples",
    "LoopArguments",
    "Task",
    "TrainingData",
    "TrainingSamples",
    "UnreadableSample",
    "freeze_stages",
    "make_accelerator",
    "parse_arguments",
    "run_interruptibly",
    "train",
]
