#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for instance segmentation (Mask R-CNN) with Accelerate: the recipe of Table A4 of the paper.

    accelerate launch --config_file examples/accelerate/ddp.yaml \
        examples/run_instance_segmentation_no_trainer.py --recipe examples/recipes/clustr_small_coco_mask_rcnn.json \
        --model_name_or_path out/clustr-small --output_dir out/clustr-small-mask-rcnn --dataloader_num_workers 4 \
        --train_dir coco/train2017 --train_annotation_file coco/annotations/instances_train2017.json \
        --validation_dir coco/val2017 --validation_annotation_file coco/annotations/instances_val2017.json

The arguments, by subject:

    data            --train_dir and --train_annotation_file (COCO), or --dataset_name and --objects_column_name ...
    model           --variant for random weights, or --model_name_or_path to fine-tune; --image_size ...
    augmentation    --crop_size, --min_scale, --max_scale, --flip_probability, --photometric_distortion ...
    recipe          --drop_path_rate
    evaluation      --max_detections, --num_pictures, --picture_threshold
    training loop   --train_batch_size, --num_train_epochs, --learning_rate, --resume_from_checkpoint ...

`--dry_run` prints what a command would do and measures its memory; `--help` lists all arguments. The recipes in
examples/recipes have the settings of the paper's tables and of the published checkpoints.
"""

from clustr_hf.training import run_interruptibly
from clustr_hf.training.tasks.base import run_task
from clustr_hf.training.tasks.detection.task import INSTANCE_SEGMENTATION


def main():
    run_task(INSTANCE_SEGMENTATION)


if __name__ == "__main__":
    run_interruptibly(main)
