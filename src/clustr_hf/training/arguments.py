# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The arguments that every training shares, [`LoopArguments`], and [`parse_arguments`], which reads a command line."""

import math
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser

from .command_line import command_line, given_names, settings_of
from .recipes import insert_recipe


TRACKERS = ("tensorboard", "trackio", "wandb")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "polynomial", "multistep", "constant")
PRECISIONS = ("no", "fp16", "bf16")
HUB_STRATEGIES = ("end", "checkpoint")
# Argument -> the schedules that use it; all schedules use the arguments that are not listed.
USERS_OF_SCHEDULE = {
    "polynomial_power": ("polynomial",),
    "min_learning_rate": ("cosine", "polynomial"),
    "lr_milestones": ("multistep",),
}
POSITIVE = (
    *("num_train_epochs", "max_train_steps", "train_batch_size", "per_device_train_batch_size"),
    *("per_device_eval_batch_size", "learning_rate", "learning_rate_batch_size", "max_grad_norm"),
    *("checkpoints_total_limit", "logging_steps", "dataloader_prefetch_factor", "polynomial_power"),
)
NOT_NEGATIVE = (
    *("min_learning_rate", "warmup_epochs", "warmup_steps", "warmup_learning_rate", "weight_decay"),
    *("freeze_stages", "dataloader_num_workers", "max_skipped_samples", "seed"),
)
BELOW_ONE = ("adam_beta1", "adam_beta2", "ema_decay")


@dataclass
class LoopArguments:
    """How to train, evaluate, save and report; the same arguments for all tasks."""

    # Set by `parse_arguments` and shown on the card. Without annotations they are not fields, hence not arguments.
    command = ""
    settings = types.MappingProxyType({})

    output_dir: str = field(
        metadata={"help": "Output folder for the model, checkpoints, results and plots; created if it does not exist."}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "JSON file with arguments, such as examples/recipes/*.json; the command line overrides it."},
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": (
                "Print arguments, schedule and estimated memory, plot the learning rate, and exit without training."
            )
        },
    )
    eval_only: bool = field(
        default=False,
        metadata={
            "help": (
                "Evaluate the model, or the checkpoint of `--resume_from_checkpoint`, without training; write scores, "
                "tables and pictures."
            )
        },
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of all random numbers: new weights, data order, augmentation and drop path."}
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": (
                f"Mixed precision of training and evaluation, one of {PRECISIONS}. Default: the setting of `accelerate "
                f"launch`, which is full precision unless configured."
            )
        },
    )

    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Number of passes over the training data; may be fractional."}
    )
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Total number of training steps; overrides `--num_train_epochs`."}
    )
    train_batch_size: int = field(default=64, metadata={"help": "Images per training step, summed over all devices."})
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": (
                "Maximum number of images that a device processes at a time; larger batches are processed by gradient "
                "accumulation. Default: no limit."
            )
        },
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Images per evaluation batch on each device."}
    )

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    learning_rate_batch_size: int | None = field(
        default=None,
        metadata={
            "help": (
                "Batch size for which `--learning_rate` is given; the rate is scaled linearly to `--train_batch_size`. "
                "Default: no scaling."
            )
        },
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={"help": f"Learning-rate schedule, one of {SCHEDULES}; the rate is updated every step."},
    )
    min_learning_rate: float = field(
        default=0.0, metadata={"help": "Final learning rate of the cosine and the polynomial schedule."}
    )
    polynomial_power: float = field(
        default=1.0, metadata={"help": "Exponent of the polynomial schedule; 1 decays linearly."}
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": (
                "Epochs after which the multistep schedule multiplies the learning rate by 0.1; required by that "
                "schedule."
            )
        },
    )
    warmup_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Number of epochs over which the learning rate grows linearly to its peak; 0 disables warm-up."
        },
    )
    warmup_steps: int | None = field(
        default=None, metadata={"help": "Number of warm-up steps; overrides `--warmup_epochs`."}
    )
    warmup_learning_rate: float = field(default=0.0, metadata={"help": "Initial learning rate of the warm-up."})

    optimizer: str = field(
        default="adamw",
        metadata={
            "help": (
                f"Optimizer, one of {OPTIMIZERS}; muon trains the matrices of the backbone with Muon and the other "
                f"parameters with NAdamW."
            )
        },
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay of all parameters except biases and norms."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Momentum (beta1) of AdamW and NAdamW, in [0, 1)."})
    adam_beta2: float = field(
        default=0.999, metadata={"help": "Decay of the squared gradients (beta2) of AdamW and NAdamW, in [0, 1)."}
    )
    max_grad_norm: float | None = field(
        default=None, metadata={"help": "Maximum norm for gradient clipping. Default: no clipping."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": (
                "Decay of an exponential moving average of the weights, in [0, 1); the averaged weights are evaluated "
                "and saved. Default: no averaging."
            )
        },
    )
    freeze_stages: int = field(
        default=0, metadata={"help": "Number of backbone stages to freeze, counted from the input; 0 trains all."}
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Recompute activations in the backward pass, which saves memory and makes training slower."},
    )
    channels_last: bool = field(
        default=False,
        metadata={
            "help": (
                "Train with weights in channels-last memory format, also those of a teacher, which makes "
                "convolutional networks faster on CPUs and, in mixed precision, on GPUs."
            )
        },
    )

    eval_steps: str = field(
        default="epoch",
        metadata={
            "help": "Evaluation interval: `epoch`, `never`, or a number of steps; the final model is always evaluated."
        },
    )
    checkpointing_steps: str = field(
        default="epoch",
        metadata={"help": "Checkpoint interval: `epoch`, a number of steps (the last step is also saved), or `never`."},
    )
    checkpoints_total_limit: int = field(
        default=2, metadata={"help": "Number of checkpoints to keep; older ones are deleted."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": (
                "Checkpoint folder to resume from, or `latest`, which resumes from the latest complete checkpoint in "
                "`--output_dir` or starts fresh if there is none. Default: start fresh."
            )
        },
    )

    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Data-loading worker processes per device; 0 loads images in the main process."}
    )
    dataloader_prefetch_factor: int = field(
        default=4, metadata={"help": "Batches that each data-loading worker prefetches."}
    )
    max_skipped_samples: int = field(
        default=100,
        metadata={"help": "Maximum number of unreadable samples to skip; one more ends the run with an error."},
    )

    logging_steps: int = field(
        default=50, metadata={"help": "Interval, in steps, at which the mean training loss is logged."}
    )
    report_to: list[str] | None = field(
        default=None,
        metadata={"help": f"Experiment trackers to report to, any of {TRACKERS}, or `none`. Default: none."},
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Upload the model, its card and the results to the Hub."}
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={
            "help": "Hub repository to upload to, as `name` or `owner/name`. Default: the name of `--output_dir`."
        },
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": (
                f"When `--push_to_hub` uploads, one of {HUB_STRATEGIES}: at the end of training, or also after every "
                f"checkpoint."
            )
        },
    )

    def __post_init__(self):
        if self.report_to == ["none"]:
            self.report_to = None
        self._check_choices()
        self._check_numbers()
        for name in ("eval_steps", "checkpointing_steps"):
            check_interval(name, getattr(self, name))

    def _check_choices(self):
        choices = {
            "optimizer": OPTIMIZERS,
            "lr_scheduler_type": SCHEDULES,
            "mixed_precision": (None, *PRECISIONS),
            "hub_strategy": HUB_STRATEGIES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for tracker in self.report_to or []:
            if tracker not in TRACKERS:
                raise ValueError(f"--report_to must be any of {TRACKERS}, got {tracker!r}")
        if self.lr_scheduler_type == "multistep" and not self.lr_milestones:
            raise ValueError("--lr_milestones must name epochs for --lr_scheduler_type multistep, got none")
        if not all(math.isfinite(epoch) and epoch > 0 for epoch in self.lr_milestones or []):
            raise ValueError(f"--lr_milestones must be positive, got {self.lr_milestones}")

    def _check_numbers(self):
        for name in POSITIVE + NOT_NEGATIVE:
            value = getattr(self, name)
            if value is None or (math.isfinite(value) and (value > 0 or (value == 0 and name in NOT_NEGATIVE))):
                continue
            raise ValueError(f"--{name} must be {'positive' if name in POSITIVE else '0 or more'}, got {value}")
        for name in BELOW_ONE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"--{name} must be in [0, 1), got {value}")

    def unused_settings(self) -> set[str]:
        """Names of the arguments that the chosen schedule does not use."""
        unused = {name for name, users in USERS_OF_SCHEDULE.items() if self.lr_scheduler_type not in users}
        has_warmup = self.warmup_epochs if self.warmup_steps is None else self.warmup_steps
        return unused if has_warmup else unused | {"warmup_learning_rate"}


def check_interval(name: str, interval: str) -> None:
    """Raise a `ValueError` unless the interval is "epoch", "never" or a positive number of steps."""
    if interval not in ("epoch", "never") and not (interval.isdecimal() and interval.isascii() and int(interval) > 0):
        raise ValueError(f"--{name} must be `epoch`, `never` or a number of steps, got {interval!r}")


def parse_arguments(*argument_classes: type, arguments: list[str] | None = None) -> tuple:
    """
    Parse the command line, and the recipe that its `--recipe` names, into dataclasses.

    Args:
        argument_classes (`type`): Dataclasses, one of them [`LoopArguments`].
        arguments (`list[str]`, *optional*): The command line. Default: `sys.argv[1:]`.

    Returns:
        `tuple`: an instance of each dataclass, in the order given. The `command` and the `settings` of the
        `LoopArguments` are those that a card shows.

    Raises:
        ValueError: for a recipe that cannot be read, or has an unknown key or a value of the wrong type; and for
            arguments that contradict each other.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = HfArgumentParser(argument_classes, allow_abbrev=False)  # an abbreviated --recipe would not be read
    parsed = parser.parse_args_into_dataclasses(insert_recipe(given, argument_classes))
    for args in parsed:
        if isinstance(args, LoopArguments):
            _check_mode(args, parsed)
            args.command = command_line(sys.argv[0], given)
            args.settings = settings_of(*parsed)
    return parsed


def _check_mode(args: LoopArguments, parsed: Sequence[Any]):
    """
    Raise a `ValueError` if there is no training data; or, with `--eval_only`, if there is no evaluation data or no
    trained weights, or if an argument requires training.
    """
    sources = [part for part in parsed if hasattr(part, "leave_training_out")]
    if not args.eval_only:
        for source in sources:
            source.check_training()
        return
    if given_names(parsed).isdisjoint({"model_name_or_path", "resume_from_checkpoint"}):
        raise ValueError("--eval_only needs weights: --model_name_or_path or --resume_from_checkpoint, got neither")
    if args.push_to_hub:
        raise ValueError(
            "--push_to_hub cannot be combined with --eval_only: use examples/publish_to_hub.py to upload a checkpoint"
        )
    if args.dry_run:
        raise ValueError("--dry_run cannot be combined with --eval_only: it describes a training")
    for source in sources:
        source.leave_training_out()
