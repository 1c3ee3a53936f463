#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for object detection (RetinaNet) with Accelerate: the recipe of Table A4 of the paper.

    accelerate launch --config_file examples/accelerate/ddp.yaml \
        examples/run_object_detection_no_trainer.py --recipe examples/recipes/clustr_small_coco_retinanet.json \
        --model_name_or_path out/clustr-small --output_dir out/clustr-small-retinanet --dataloader_num_workers 4 \
        --train_dir coco/train2017 --train_annotation_file coco/annotations/instances_train2017.json \
        --validation_dir coco/val2017 --validation_annotation_file coco/annotations/instances_val2017.json

`--dry_run` says what a command would do. What the script does: detection_training.py; what the loop does, and its
arguments: training_loop.py, training_arguments.py; commands with their results: examples/README.md.
"""

from transformers import AutoModelForObjectDetection

from clustr_hf import ClusTRForObjectDetection
from clustr_hf.training.signals import run_interruptibly
from clustr_hf.training.tasks.detection.task import DetectionTask, run


TASK = DetectionTask(
    model_class=ClusTRForObjectDetection,
    auto_class=AutoModelForObjectDetection,
    kinds=("box",),
    summary="A ClusTR model for object detection, RetinaNet.",
)


def main():
    run(TASK)


if __name__ == "__main__":
    run_interruptibly(main)
