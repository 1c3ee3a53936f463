#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Fine-tune ClusTR for image classification with Trainer, or train it from random weights.

The arguments are those of transformers' own `run_image_classification.py`, but for `--model_type`: there is one. New
are `--variant`, `--image_size`, `--train_file` and `--validation_file`. examples/README.md has commands and results.
"""

import os
import sys
from pathlib import Path

import torch
from datasets import DatasetDict
from huggingface_hub import HfApi
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoConfig, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import HubStrategy, get_last_checkpoint
from transformers.utils.logging import get_logger

from clustr_hf.metrics import compute_accuracy
from clustr_hf.publish import full_repository_id, push
from clustr_hf.publish.card import plain_value
from clustr_hf.training.card import TrainingCard
from clustr_hf.training.command_line import command_line, settings_of
from clustr_hf.training.data.class_names import KnownNames, names_of
from clustr_hf.training.data.samples import decode_rgb
from clustr_hf.training.signals import run_interruptibly
from clustr_hf.training.sources import known_names
from clustr_hf.training.tasks.image_classification.data import (
    HEADS,
    DataArguments,
    ModelArguments,
    label_names,
    load_classifier,
    load_data,
    training_crop,
)
from clustr_hf.training.tasks.image_classification.transforms import fingerprint
from clustr_hf.visualization import plot_training_curves


logger = get_logger("transformers.trainer")
# What the card says of TrainingArguments.
SETTINGS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "lr_scheduler_type", "warmup_steps", "label_smoothing_factor", "max_grad_norm", "optim", "seed"),
    *("bf16", "fp16"),
)


def add_transforms(data: DatasetDict, processor, args: DataArguments):
    """Decode and transform images when they are read: random crops and flips to train, the processor to evaluate."""
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(training_crop(processor), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )

    def read(batch: dict, split: str) -> list[Image.Image]:
        images = batch[args.image_column_name]
        return [decode_rgb(image, f"{split} sample {fingerprint(image)}", processor) for image in images]

    def train_transform(batch: dict) -> dict:
        pixel_values = [augment(pil_to_tensor(image)) for image in read(batch, "training")]
        return {"pixel_values": pixel_values, "labels": batch[args.label_column_name]}

    def evaluation_transform(batch: dict) -> dict:
        pixel_values = list(processor(read(batch, "validation"), return_tensors="pt").pixel_values)
        return {"pixel_values": pixel_values, "labels": batch[args.label_column_name]}

    if "train" in data:
        data["train"].set_transform(train_transform)
    data["validation"].set_transform(evaluation_transform)


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: the one asked for, or the last one that lies in the output folder."""
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None and os.path.isdir(args.output_dir):
        checkpoint = get_last_checkpoint(args.output_dir)
    if checkpoint is not None:
        print(f"Resuming from {checkpoint}")
    return checkpoint


def names_to_match(args: TrainingArguments, model_args: ModelArguments, checkpoint: str | None) -> KnownNames | None:
    """The classes of the weights that are trained further or evaluated; of the run's own checkpoint, if it has one."""
    resumed = None
    if checkpoint is not None:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=model_args.trust_remote_code)
        resumed = Path(checkpoint), names_of(config, checkpoint)
    return known_names(model_args, HEADS, only_evaluates=not args.do_train, resumed=resumed)


class HubPush(TrainerCallback):
    """
    Pushes a whole repository after every save, unless `--hub_strategy end`, and at the end.

    Trainer's own pushes lack what endpoints and widgets need, and carry a pickle, `training_args.bin`.
    """

    def __init__(self, card: TrainingCard, args: TrainingArguments):
        if args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(f"--hub_strategy must be end or every_save, got {args.hub_strategy.value}")
        HfApi(token=args.hub_token).whoami()  # whoever is not logged in learns it before the training
        name = args.hub_model_id or Path(args.output_dir).resolve().name
        self.card, self.repository = card, full_repository_id(name, args.hub_token)

    def on_save(self, args: TrainingArguments, state, control, **kwargs):
        if args.hub_strategy == HubStrategy.END or not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            self.card.write(checkpoint, {"step": state.global_step})
            self.push(checkpoint, args, f"Step {state.global_step}", validate=False)
        except Exception as error:  # the training is worth more than one of many pushes
            logger.warning(f"could not push step {state.global_step}, training goes on: {error}")

    def push(self, folder: Path, args: TrainingArguments, message: str, validate: bool = True):
        hub = {"private": args.hub_private_repo, "token": args.hub_token, "validate": validate}
        revision = push(folder, self.repository, commit_message=message, **hub)
        print(f"Pushed {self.repository}; pin its revision={revision}")


def parse_args() -> tuple[DataArguments, ModelArguments, TrainingArguments]:
    parser = HfArgumentParser((DataArguments, ModelArguments, TrainingArguments), allow_abbrev=False)
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        return parser.parse_json_file(json_file=sys.argv[1])
    return parser.parse_args_into_dataclasses()


def make_card(data_args: DataArguments, model_args: ModelArguments, training_args: TrainingArguments) -> TrainingCard:
    """What the card says before there are results."""
    training_args.command = command_line(sys.argv[0], sys.argv[1:])
    settings = {name: plain_value(getattr(training_args, name)) for name in SETTINGS}
    training_args.settings = settings_of(model_args, data_args) | settings
    return TrainingCard(training_args, data_args, model_args, "A ClusTR image classifier.")


def main():
    data_args, model_args, training_args = parse_args()
    training_args.remove_unused_columns = False  # the image column is needed until the transforms have run
    if training_args.do_eval and not training_args.do_train:
        data_args.leave_training_out()
    else:
        data_args.check_training()
    set_seed(training_args.seed)
    card = make_card(data_args, model_args, training_args)
    hub = None
    if training_args.push_to_hub:
        if not training_args.do_train:
            raise ValueError("--push_to_hub needs --do_train: there is nothing new to push")
        training_args.push_to_hub = False  # it is not left to Trainer
        hub = HubPush(card, training_args)

    checkpoint = find_checkpoint(training_args) if training_args.do_train else None
    known = names_to_match(training_args, model_args, checkpoint)
    data = load_data(data_args, model_args, training_args.seed, known=known)
    model, processor = load_classifier(model_args, label_names(data["validation"], data_args.label_column_name))
    add_transforms(data, processor, data_args)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        compute_metrics=compute_accuracy,
        processing_class=processor,
        callbacks=None if hub is None else [hub],
    )
    results = {}
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        if checkpoint is None:  # else it is the time of a part
            results["train_runtime"] = result.metrics["train_runtime"]
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        if trainer.is_world_process_zero():
            plot_training_curves(trainer.state.log_history).savefig(f"{training_args.output_dir}/training_curve.png")
    if training_args.do_eval:
        metrics = trainer.evaluate()
        results.update(metrics, eval_samples=len(data["validation"]))
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero() and training_args.do_train:
        card.write(Path(training_args.output_dir), {"step": trainer.state.global_step, **results})
        if hub is not None:
            hub.push(Path(training_args.output_dir), training_args, f"Step {trainer.state.global_step}")


if __name__ == "__main__":
    run_interruptibly(main)
