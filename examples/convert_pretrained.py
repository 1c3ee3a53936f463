#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Convert a pretrained PVTv2 or SegFormer to ClusTR, and fit its attention to the source's on images without labels.

    python examples/convert_pretrained.py --model_name_or_path OpenGVLab/pvt_v2_b2 --image_dir photos \
        --output_dir out/clustr-from-pvt-v2-b2

With a labelled data set, a classifier is evaluated before and after each step, on the validation images:

    python examples/convert_pretrained.py --model_name_or_path OpenGVLab/pvt_v2_b2 --dataset_name ILSVRC/imagenet-1k \
        --max_train_samples 1000 --max_eval_samples 5000 --output_dir out/clustr-from-pvt-v2-b2

The output is a complete repository, whose card names the origin and the license of the weights; publish_to_hub.py
pushes it. To fine-tune it, give it to a training script as `--model_name_or_path`, and for distillation the source as
`--teacher_model_name_or_path`.
"""

from transformers import HfArgumentParser

from clustr_hf.training import run_interruptibly
from clustr_hf.training.conversion import ConversionArguments, convert
from clustr_hf.training.tasks.image_classification.data import ClassificationDataArguments


def main():
    parser = HfArgumentParser((ConversionArguments, ClassificationDataArguments), allow_abbrev=False)
    convert(*parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    run_interruptibly(main)
