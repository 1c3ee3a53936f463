# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Trains a model whose attention is changed: `train_variant.py VARIANT TASK`, followed by the arguments of the task's
training script. `variants.py` lists the changes; the tasks are `classification` and `segmentation`.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package `ablations`

from ablations.variants import VARIANTS, attention_of
from clustr_hf.training import run_interruptibly
from clustr_hf.training.tasks.base import run_task
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION
from clustr_hf.training.tasks.semantic_segmentation.task import SEMANTIC_SEGMENTATION


TASKS = {"classification": IMAGE_CLASSIFICATION, "segmentation": SEMANTIC_SEGMENTATION}


def main():
    """Run a task with the changed attention."""
    variant, task = [*sys.argv[1:3], None, None][:2]
    if variant not in VARIANTS or task not in TASKS:
        raise ValueError(
            f"the first two arguments must be one of {list(VARIANTS)} and one of {list(TASKS)}, got {variant!r} and "
            f"{task!r}"
        )
    del sys.argv[1:3]
    with attention_of(variant):
        run_task(TASKS[task])


if __name__ == "__main__":
    run_interruptibly(main)
