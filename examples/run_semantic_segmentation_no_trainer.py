#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for semantic segmentation with Accelerate: the recipes of Table A3 of the paper.

    accelerate launch --config_file examples/accelerate/ddp.yaml \
        examples/run_semantic_segmentation_no_trainer.py --recipe examples/recipes/clustr_small_ade20k_upernet.json \
        --model_name_or_path out/clustr-small --train_dir ade20k/training --validation_dir ade20k/validation \
        --id2label_file ade20k/id2label.json --output_dir out/clustr-small-upernet --dataloader_num_workers 4

The arguments, by subject:

    data            --dataset_name, or --train_dir and --validation_dir, each with images/ and annotations/ ...
    model           --variant for random weights, or --model_name_or_path to fine-tune; --segmentation_head ...
    augmentation    --crop_size, --min_scale, --max_scale, --flip_probability, --photometric_distortion ...
    recipe          --class_weight_exponent, --drop_path_rate
    evaluation      --eval_window, --eval_stride, --num_pictures
    training loop   --train_batch_size, --num_train_epochs, --learning_rate, --resume_from_checkpoint ...

`--dry_run` prints what a command would do and measures its memory; `--help` lists all arguments. The recipes in
examples/recipes have the settings of the paper's tables and of the published checkpoints.
"""

from clustr_hf.training import run_interruptibly
from clustr_hf.training.tasks.base import run_task
from clustr_hf.training.tasks.semantic_segmentation.task import SEMANTIC_SEGMENTATION


def main():
    run_task(SEMANTIC_SEGMENTATION)


if __name__ == "__main__":
    run_interruptibly(main)
