#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for whole-body pose estimation with Accelerate: the recipe of section 4.4 of the paper.

    accelerate launch --config_file examples/accelerate/ddp.yaml \
        examples/run_pose_estimation_no_trainer.py --recipe examples/recipes/clustr_small_coco_wholebody.json \
        --model_name_or_path out/clustr-small --output_dir out/clustr-small-pose --dataloader_num_workers 8 \
        --train_dir coco/train2017 --train_annotation_file coco/annotations/coco_wholebody_train_v1.0.json \
        --validation_dir coco/val2017 --validation_annotation_file coco/annotations/coco_wholebody_val_v1.0.json \
        --validation_boxes_file coco/COCO_val2017_detections_AP_H_56_person.json

The arguments, by subject:

    data            --train_dir and --train_annotation_file, --validation_boxes_file, --keypoints ...
    model           --variant for random weights, or --model_name_or_path to fine-tune; --image_size ...
    augmentation    --rotation_factor, --scale_factor, --shift_factor, --half_body_probability ...
    recipe          --drop_path_rate
    evaluation      --flip_test, --num_pictures, --picture_threshold
    training loop   --train_batch_size, --num_train_epochs, --learning_rate, --resume_from_checkpoint ...

`--dry_run` prints what a command would do and measures its memory; `--help` lists all arguments. The recipes in
examples/recipes have the settings of the paper's tables and of the published checkpoints.
"""

from clustr_hf.training import run_interruptibly
from clustr_hf.training.tasks.base import run_task
from clustr_hf.training.tasks.pose_estimation.task import POSE_ESTIMATION


def main():
    run_task(POSE_ESTIMATION)


if __name__ == "__main__":
    run_interruptibly(main)
