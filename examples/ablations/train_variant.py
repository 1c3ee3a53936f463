# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Trains a classifier whose clustered attention is changed: `train_variant.py --variant_of_attention NAME`, followed by
the arguments of `run_image_classification_no_trainer.py`. `variants.py` lists the changes.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package `ablations`

from ablations.variants import VARIANTS, attention_of

from clustr_hf.training import run_interruptibly
from clustr_hf.training.tasks.base import run_task
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION


OPTION = "--variant_of_attention"


def main():
    """Run the script with the changed attention."""
    if len(sys.argv) < 3 or sys.argv[1] != OPTION or sys.argv[2] not in VARIANTS:
        raise ValueError(f"the arguments must start with {OPTION} and one of {list(VARIANTS)}, got {sys.argv[1:3]}")
    variant = sys.argv[2]
    del sys.argv[1:3]
    with attention_of(variant):
        run_task(IMAGE_CLASSIFICATION)


if __name__ == "__main__":
    run_interruptibly(main)
