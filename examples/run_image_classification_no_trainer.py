#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for image classification with Accelerate: the recipe of Table A2 of the paper.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 \
        examples/run_image_classification_no_trainer.py \
        --recipe examples/recipes/clustr_small_imagenet1k.json --dataset_name ILSVRC/imagenet-1k \
        --output_dir out/clustr-small --dataloader_num_workers 12 --resume_from_checkpoint latest

On a CPU, with a folder that has one sub-folder of images for each class:

    python examples/run_image_classification_no_trainer.py --variant nano --image_size 32 --train_dir photos/train \
        --validation_dir photos/validation --train_batch_size 16 --output_dir out/photos

The arguments, by subject:

    data            --dataset_name, or --train_dir and --validation_dir, or --train_file and --validation_file ...
    model           --variant for random weights, or --model_name_or_path to fine-tune; --config_overrides ...
    recipe          --rand_augment, --mixup, --cutmix, --label_smoothing, --drop_path_rate, --lora_rank ...
    training loop   --train_batch_size, --num_train_epochs, --learning_rate, --resume_from_checkpoint ...

`--dry_run` prints what a command would do and measures its memory; `--help` lists all arguments. The recipes in
examples/recipes have the settings of the paper's tables and of the published checkpoints.
"""

from clustr_hf.training import run_interruptibly
from clustr_hf.training.tasks.base import run_task
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION


def main():
    run_task(IMAGE_CLASSIFICATION)


if __name__ == "__main__":
    run_interruptibly(main)
