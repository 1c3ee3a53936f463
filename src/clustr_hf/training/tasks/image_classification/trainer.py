# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Image classification with Trainer: transforms, class names, the card, and pushes to the Hub."""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from huggingface_hub import HfApi
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.logging import get_logger

from ....publish import full_repository_id, push
from ....publish.card import plain_value
from ...augmentation import check_normalization
from ...command_line import command_line, settings_of
from ...data.class_names import KnownNames, names_of
from ...data.decoding import decode_rgb
from ...distillation import DistillationArguments, Teacher
from ...known_names import known_names
from ...models import ModelArguments
from ...training_card import TrainingCard
from .data import HEADS, ClassificationDataArguments
from .model import training_crop
from .transforms import fingerprint


logger = get_logger("transformers.trainer")
# Fields of TrainingArguments that the card shows.
SETTINGS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "lr_scheduler_type", "warmup_steps", "label_smoothing_factor", "max_grad_norm", "optim", "seed"),
    *("bf16", "fp16"),
)


def add_transforms(data: DatasetDict, processor: Any, args: ClassificationDataArguments) -> None:
    """
    Decode and transform images when they are read: random crops and flips for training, the image processor for
    validation.
    """
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
        check_normalization(processor)
        data["train"].set_transform(train_transform)
    data["validation"].set_transform(evaluation_transform)


def names_to_match(args: TrainingArguments, model_args: ModelArguments, checkpoint: str | None) -> KnownNames | None:
    """The classes of the weights that are trained further or evaluated, or of the checkpoint to resume from."""
    resumed = None
    if checkpoint is not None:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=model_args.trust_remote_code)
        resumed = Path(checkpoint), names_of(config, checkpoint)
    return known_names(model_args, HEADS, only_evaluates=not args.do_train, resumed=resumed)


def make_card(
    data_args: ClassificationDataArguments,
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
    training_args: TrainingArguments,
) -> TrainingCard:
    """The card before there are results; sets `command` and `settings` of the training arguments."""
    training_args.command = command_line(sys.argv[0], sys.argv[1:])
    settings = {name: plain_value(getattr(training_args, name)) for name in SETTINGS}
    training_args.settings = settings_of(model_args, data_args, distillation_args) | settings
    return TrainingCard(training_args, data_args, model_args, "A ClusTR image classifier.")


class DistillationTrainer(Trainer):
    """
    A Trainer whose models also learn from a teacher. Evaluations report the loss of the labels alone.

    Args:
        teacher ([`Teacher`], *optional*): The teacher. Default: none, which makes this a plain Trainer.
    """

    def __init__(self, *args: Any, teacher: Teacher | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        # The loss of a batch is the mean over its images. For models that declare otherwise, Trainer would not divide
        # the losses of accumulated batches by their number.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """As upstream, with the distillation loss added in training."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.teacher is not None and model.training:
            loss = self.teacher.add_to(loss, outputs["logits"], inputs["pixel_values"])
        return (loss, outputs) if return_outputs else loss


class HubPush(TrainerCallback):
    """
    Pushes a complete repository at the end of the training, and after every save with `--hub_strategy every_save`.

    Trainer's own pushes lack the files that endpoints and widgets need, and include a pickle, `training_args.bin`.
    """

    def __init__(self, card: TrainingCard, args: TrainingArguments):
        if not args.do_train:
            raise ValueError("--push_to_hub needs --do_train: there is nothing new to push")
        if args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(f"--hub_strategy must be end or every_save, got {args.hub_strategy.value}")
        HfApi(token=args.hub_token).whoami()  # fails before the training if the user is not logged in
        name = args.hub_model_id or Path(args.output_dir).resolve().name
        self.card, self.repository = card, full_repository_id(name, args.hub_token)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.hub_strategy == HubStrategy.END or not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            self.card.write(checkpoint, {"step": state.global_step})
            self.push(checkpoint, args, f"Step {state.global_step}", validate=False)
        except Exception as error:  # a failed push must not end the training
            logger.warning(f"could not push step {state.global_step}, training goes on: {error}")

    def push(self, folder: Path, args: TrainingArguments, message: str, validate: bool = True) -> None:
        """Push a folder as a commit, and print its revision."""
        hub = {"private": args.hub_private_repo, "token": args.hub_token, "validate": validate}
        revision = push(folder, self.repository, commit_message=message, **hub)
        print(f"Pushed {self.repository}; pin its revision={revision}")
