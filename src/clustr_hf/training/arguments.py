# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The arguments of `training_loop.py`, which every task's script shares, and recipes: arguments in a JSON file.

A recipe is one of the paper's tables as data: names of arguments with their values, and a `description`. Arguments on
the command line win over the recipe, the recipe wins over the defaults.
"""

import json
import math
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from ..publish.card import plain_value


TRACKERS = ("tensorboard", "trackio", "wandb")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "polynomial", "multistep", "constant")
PRECISIONS = ("no", "fp16", "bf16")
HUB_STRATEGIES = ("end", "checkpoint")
# What the settings on a card leave out, besides paths and names: the same model comes of any of it.
HOUSEKEEPING = {
    *("recipe", "dry_run", "eval_only", "push_to_hub", "hub_model_id", "hub_strategy", "report_to", "logging_steps"),
    *("resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "max_skipped_samples"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "num_pictures", "picture_threshold"),
    *("eval_steps", "per_device_eval_batch_size", "gradient_checkpointing", "model_revision"),
    *("ignore_mismatched_sizes", "token", "trust_remote_code"),
}
# Schedules that use a setting; all of them use the others.
USERS_OF_SCHEDULE = {
    "polynomial_power": ("polynomial",),
    "min_learning_rate": ("cosine", "polynomial"),
    "lr_milestones": ("multistep",),
}
# The checkout that the package is installed from in editable mode, as `make test` does.
REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass
class LoopArguments:
    """How to train, evaluate, save and report, whatever the task."""

    # For the card, by `parse_arguments`; no annotations, hence no arguments.
    command = ""
    settings = types.MappingProxyType({})

    output_dir: str = field(metadata={"help": "Folder for the model, checkpoints, results and pictures."})
    recipe: str | None = field(default=None, metadata={"help": "JSON file with arguments, for example recipes/*.json."})
    dry_run: bool = field(default=False, metadata={"help": "Print what would be trained, draw the schedule, stop."})
    eval_only: bool = field(
        default=False, metadata={"help": "Evaluate the model, write scores, table and pictures, train nothing."}
    )
    seed: int = field(default=0, metadata={"help": "All that is random is a function of it and of the step."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": f"One of {PRECISIONS}; default is what `accelerate launch` says."}
    )

    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training data."})
    max_train_steps: int | None = field(default=None, metadata={"help": "So many steps instead."})
    train_batch_size: int = field(default=64, metadata={"help": "Images of a step, over all processes."})
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images that fit on a device; the rest of the batch is accumulated. Default: all at once."},
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images of an evaluation step."})

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak of the schedule."})
    learning_rate_batch_size: int | None = field(
        default=None,
        metadata={"help": "Batch size that `learning_rate` is meant for: it is scaled to `train_batch_size`."},
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": f"One of {SCHEDULES}; changes every step."})
    min_learning_rate: float = field(default=0.0, metadata={"help": "Where cosine and polynomial end."})
    polynomial_power: float = field(default=1.0, metadata={"help": "Exponent of the polynomial schedule."})
    lr_milestones: list[float] | None = field(
        default=None, metadata={"help": "Epochs at which multistep multiplies the learning rate by 0.1."}
    )
    warmup_epochs: float = field(default=0.0, metadata={"help": "Epochs of linear growth to the peak."})
    warmup_steps: int | None = field(default=None, metadata={"help": "So many steps instead."})
    warmup_learning_rate: float = field(default=0.0, metadata={"help": "Where the growth begins."})

    optimizer: str = field(
        default="adamw",
        metadata={"help": f"One of {OPTIMIZERS}; muon moves the backbone's matrices, NAdamW the rest."},
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Of all but biases and norms."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Momentum of AdamW and NAdamW."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Their decay of squared gradients."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Clip gradients to this norm."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Evaluate and save a moving average of the weights, with this decay."}
    )
    freeze_stages: int = field(default=0, metadata={"help": "Leave the backbone's first stages as they are."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for more time."})

    eval_steps: str = field(
        default="epoch", metadata={"help": "Evaluate every `epoch` or every so many steps; always at the end."}
    )
    checkpointing_steps: str = field(
        default="epoch",
        metadata={"help": "Save all that is needed to go on every `epoch`, every so many steps, or `never`."},
    )
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Keep only so many checkpoints."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder, or `latest`: the last whole one in `output_dir`, if there is any."},
    )

    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read images, per device."})
    dataloader_prefetch_factor: int = field(default=4, metadata={"help": "Batches that each of them reads ahead."})
    max_skipped_samples: int = field(
        default=100, metadata={"help": "Stop when more samples than these cannot be read; 0 allows none."}
    )

    logging_steps: int = field(default=50, metadata={"help": "Log the mean loss every so many steps."})
    report_to: list[str] | None = field(default=None, metadata={"help": f"Trackers: any of {TRACKERS}."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the model, the card and the results."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository; default is output_dir's name."})
    hub_strategy: str = field(default="end", metadata={"help": f"When to upload: one of {HUB_STRATEGIES}."})

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
        positive = [
            *("num_train_epochs", "max_train_steps", "train_batch_size", "per_device_train_batch_size"),
            *("per_device_eval_batch_size", "learning_rate", "learning_rate_batch_size", "max_grad_norm"),
            *("checkpoints_total_limit", "logging_steps", "dataloader_prefetch_factor", "polynomial_power"),
        ]
        not_negative = [
            *("min_learning_rate", "warmup_epochs", "warmup_steps", "warmup_learning_rate", "weight_decay"),
            *("freeze_stages", "dataloader_num_workers", "max_skipped_samples", "seed"),
        ]
        for name in positive + not_negative:
            value = getattr(self, name)
            least = "positive" if name in positive else "0 or more"
            if value is not None and not (
                math.isfinite(value) and (value > 0 or (value == 0 and name in not_negative))
            ):
                raise ValueError(f"--{name} must be {least}, got {value}")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"--{name} must be in [0, 1), got {value}")


def check_interval(name: str, interval: str):
    """Raise a `ValueError` unless the interval is "epoch", "never" or a positive number of steps."""
    if interval not in ("epoch", "never") and not (interval.isdecimal() and interval.isascii() and int(interval) > 0):
        raise ValueError(f"--{name} must be `epoch`, `never` or a number of steps, got {interval!r}")


def parse_arguments(*argument_classes: type, arguments: list[str] | None = None) -> tuple:
    """
    An instance of each dataclass from the command line and the recipe that it names.

    Args:
        argument_classes (`type`): Dataclasses; one of them is `LoopArguments`.
        arguments (`list[str]`, *optional*): The command line; default is `sys.argv[1:]`.

    Raises:
        ValueError: for a recipe that cannot be read, or has an unknown key or a value of a wrong type.
    """
    given = arguments = sys.argv[1:] if arguments is None else list(arguments)
    recipe = _option("--recipe", arguments)
    if recipe is not None:
        arguments = [*read_recipe(recipe, argument_classes), *arguments]
    parser = HfArgumentParser(argument_classes, allow_abbrev=False)  # an abbreviated --recipe would not be read
    parsed = parser.parse_args_into_dataclasses(arguments)
    for args in parsed:
        if isinstance(args, LoopArguments):
            _check_evaluation(args, parsed)
            args.command = command_line(sys.argv[0], given)
            args.settings = settings_of(*parsed)
    return parsed


def _without_effect(parsed: Sequence[Any]) -> set[str]:
    """Settings in the place of which another one was given, or that the chosen schedule does not use."""
    replaced_by = {
        "num_train_epochs": ("max_train_steps",),
        "train_val_split": ("validation_dir", "validation_file"),
        "variant": ("model_name_or_path",),
        "warmup_epochs": ("warmup_steps",),
    }
    given = _given(parsed)
    unused = {name for name, others in replaced_by.items() if not given.isdisjoint(others)}
    for args in parsed:
        if isinstance(args, LoopArguments):
            unused |= {name for name, users in USERS_OF_SCHEDULE.items() if args.lr_scheduler_type not in users}
            if not (args.warmup_steps or (args.warmup_steps is None and args.warmup_epochs)):
                unused.add("warmup_learning_rate")
    return unused


def _check_evaluation(args: LoopArguments, parsed: Sequence[Any]):
    """
    Raise a `ValueError` if there is nothing to train on; or, to evaluate only, no weights but random ones, nothing to
    evaluate on, or something else to do.
    """
    sources = [part for part in parsed if hasattr(part, "leave_training_out")]
    if not args.eval_only:
        for source in sources:
            source.check_training()
        return
    if _given(parsed).isdisjoint({"model_name_or_path", "resume_from_checkpoint"}):
        raise ValueError("--eval_only needs weights: --model_name_or_path or --resume_from_checkpoint, got neither")
    if args.push_to_hub:
        raise ValueError("--push_to_hub does not go with --eval_only: examples/publish_to_hub.py uploads a checkpoint")
    if args.dry_run:
        raise ValueError("--dry_run does not go with --eval_only: it says what a training would do")
    for source in sources:
        source.leave_training_out()


def _given(parsed: Sequence[Any]) -> set[str]:
    """Names of the arguments that are not `None`."""
    return {name for part in parsed for name, value in vars(part).items() if value is not None}


def command_line(script: str, arguments: Sequence[str]) -> str:
    """
    A command as a card shows it: without access tokens, and without the folders of whoever gave it.

    Args:
        script (`str`): Path of the script.
        arguments (`Sequence[str]`): Its arguments.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    start = f"accelerate launch --num_processes {num_processes}" if num_processes > 1 else "python"
    lines = [f"{start} examples/{Path(script).name}"]
    is_secret = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            is_secret = "token" in name
            if not is_secret:
                lines.append(f"    {name}" + (f"={_quote(value)}" if equals else ""))
        elif not is_secret:
            lines[-1] += f" {_quote(argument)}"
    return " \\\n".join(lines)


def _quote(argument: str) -> str:
    """An argument without tokens, and without user, password and query of an address."""
    argument = re.sub(r"hf_\w+", "hf_...", argument)
    argument = re.sub(r"://[^/@\s]*@", "://", argument)
    return shlex.quote(re.sub(r"(://[^?\s]*)\?\S*", r"\1", argument) if "://" in argument else shorten_path(argument))


def shorten_path(path: str) -> str:
    """A path as seen from this repository; only the name of one that leads elsewhere. Others as they are."""
    if not os.path.isabs(path) and ".." not in Path(path).parts:
        return path
    absolute = Path(path).resolve()
    return absolute.relative_to(REPOSITORY).as_posix() if absolute.is_relative_to(REPOSITORY) else absolute.name


def settings_of(*parsed: Any) -> dict[str, Any]:
    """The arguments of dataclasses that the trained model depends on, as a card shows them."""
    unused = HOUSEKEEPING | _without_effect(parsed)
    return {
        name: plain_value(value)
        for args in parsed
        for name, value in asdict(args).items()
        if value is not None and name not in unused and not name.endswith(("_dir", "_file", "_name", "_path"))
    }


def _option(name: str, arguments: list[str]) -> str | None:
    """The last value of an option, as argparse takes it."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None]):
        if argument == name:
            value = following
        elif argument.startswith(f"{name}="):
            value = argument.removeprefix(f"{name}=")
    return value


def read_recipe(path: str, argument_classes: tuple[type, ...]) -> list[str]:
    """The recipe as command line arguments."""
    try:
        recipe = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"--recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--recipe {path} is not valid JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"--recipe {path} must hold one JSON object, got {type(recipe).__name__}")
    # Not `field.type`, which HfArgumentParser overwrites.
    hints = {name: hint for arguments in argument_classes for name, hint in typing.get_type_hints(arguments).items()}
    del hints["recipe"]
    command_line = []
    for key, value in recipe.items():
        if key == "description":
            continue
        if key not in hints:
            raise ValueError(f"--recipe {path} has the unknown key {key!r}; known are {sorted(hints)}")
        if not _fits(value, hints[key]):
            raise ValueError(f"--recipe {path}: {key!r} must be {_describe(hints[key])}, got {value!r}")
        if isinstance(value, list) and value:
            command_line += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            command_line.append(f"--{key}={json.dumps(value)}")
        elif value is not None and value != []:
            command_line.append(f"--{key}={value}")
    return command_line


def _fits(value: object, hint: type) -> bool:
    """Whether a JSON value is of the type that an annotation names."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: type) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_origin(hint) else str(hint)
