#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Fine-tune ClusTR for image classification with Trainer, or train it from random weights.

    python examples/run_image_classification.py --model_name_or_path out/clustr-small --ignore_mismatched_sizes \
        --dataset_name AI-Lab-Makerere/beans --label_column_name labels --do_train --do_eval --output_dir out/beans

The arguments are those of transformers' `run_image_classification.py` without `--model_type`, since there is one type,
and with `--variant`, `--image_size`, `--train_file`, `--validation_file`, and `--teacher_model_name_or_path` for
distillation.
"""

import os
import sys
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from clustr_hf.metrics import compute_accuracy
from clustr_hf.training import run_interruptibly
from clustr_hf.training.distillation import DistillationArguments, load_teacher
from clustr_hf.training.models import ModelArguments, is_clustr, require_clustr
from clustr_hf.training.tasks.image_classification.data import (
    ClassificationDataArguments,
    label_names,
    load_labelled_images,
)
from clustr_hf.training.tasks.image_classification.model import load_classifier
from clustr_hf.training.tasks.image_classification.trainer import (
    DistillationTrainer,
    HubPush,
    add_transforms,
    make_card,
    names_to_match,
)
from clustr_hf.visualization import plot_training_curves


def parse_args() -> tuple[ClassificationDataArguments, ModelArguments, DistillationArguments, TrainingArguments]:
    arguments = (ClassificationDataArguments, ModelArguments, DistillationArguments, TrainingArguments)
    parser = HfArgumentParser(arguments, allow_abbrev=False)
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        return parser.parse_json_file(json_file=sys.argv[1])
    return parser.parse_args_into_dataclasses()


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: `--resume_from_checkpoint`, or the last one in the output folder."""
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None and os.path.isdir(args.output_dir):
        checkpoint = get_last_checkpoint(args.output_dir)
    if checkpoint is not None:
        print(f"Resuming from {checkpoint}")
    return checkpoint


def train(trainer: DistillationTrainer, checkpoint: str | None) -> dict[str, float]:
    """Train, and save the model, its metrics and the training curve."""
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_training_curves(trainer.state.log_history).savefig(f"{trainer.args.output_dir}/training_curve.png")
    # Trainer reports only the time since the last resume.
    return {"train_runtime": result.metrics["train_runtime"]} if checkpoint is None else {}


def evaluate(trainer: DistillationTrainer) -> dict[str, float]:
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return {**metrics, "eval_samples": len(trainer.eval_dataset)}


def load_model(args: ModelArguments, labels: list[str], is_pushed: bool) -> tuple[PreTrainedModel, Any]:
    """The model and its image processor; only a ClusTR can be pushed, since the package completes its repository."""
    model, processor = load_classifier(args, labels)
    if is_pushed:
        require_clustr(model, "push_to_hub")
    return model, processor


def main():
    data_args, model_args, distillation_args, training_args = parse_args()
    training_args.remove_unused_columns = False  # the transforms need the image column
    if training_args.do_eval and not training_args.do_train:
        data_args.leave_training_out()
    else:
        data_args.check_training()
    set_seed(training_args.seed)
    card = make_card(data_args, model_args, distillation_args, training_args)
    hub = HubPush(card, training_args) if training_args.push_to_hub else None
    training_args.push_to_hub = False  # HubPush replaces Trainer's own pushes

    checkpoint = find_checkpoint(training_args) if training_args.do_train else None
    known = names_to_match(training_args, model_args, checkpoint)
    data = load_labelled_images(data_args, model_args, training_args.seed, known)
    labels = label_names(data["validation"], data_args.label_column_name)
    model, processor = load_model(model_args, labels, is_pushed=hub is not None)
    add_transforms(data, processor, data_args)
    teacher = None
    if training_args.do_train:
        auto_class = AutoModelForImageClassification
        teacher = load_teacher(distillation_args, model_args, auto_class, labels, processor, resizes=True)
    trainer = DistillationTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        compute_metrics=compute_accuracy,
        processing_class=processor,
        callbacks=None if hub is None else [hub],
        teacher=teacher,
    )
    results = train(trainer, checkpoint) if training_args.do_train else {}
    results |= evaluate(trainer) if training_args.do_eval else {}
    if trainer.is_world_process_zero() and training_args.do_train and is_clustr(model):
        folder = Path(training_args.output_dir)
        card.write(folder, {"step": trainer.state.global_step, **results})
        if hub is not None:
            hub.push(folder, training_args, f"Step {trainer.state.global_step}")


if __name__ == "__main__":
    run_interruptibly(main)
