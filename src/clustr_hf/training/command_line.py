# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""How a model card shows the command and the settings of a training: without access tokens and private folders."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..publish.card import plain_value


# Arguments that cards leave out, as they do paths and names, since they do not change the trained model.
HOUSEKEEPING = {
    *("recipe", "dry_run", "eval_only", "push_to_hub", "hub_model_id", "hub_strategy", "report_to", "logging_steps"),
    *("resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "max_skipped_samples"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "num_pictures", "picture_threshold"),
    *("eval_steps", "per_device_eval_batch_size", "gradient_checkpointing", "model_revision"),
    *("ignore_mismatched_sizes", "token", "trust_remote_code"),
}
# Arguments that name another model from which the trained model learns; cards show them, without private folders.
SHOWN_PATHS = {"teacher_model_name_or_path"}
# Arguments that have no effect if one of the others is given.
OVERRIDDEN_BY = {
    "num_train_epochs": ("max_train_steps",),
    "train_val_split": ("validation_dir", "validation_file"),
    "variant": ("model_name_or_path",),
    "warmup_epochs": ("warmup_steps",),
}
# The checkout of an editable installation.
REPOSITORY = Path(__file__).resolve().parents[3]


def command_line(script: str, arguments: Sequence[str]) -> str:
    """
    Format a command for a card, one option per line.

    Args:
        script (`str`): Path of the script.
        arguments (`Sequence[str]`): Arguments of the script.
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
    """Quote an argument for a shell, without tokens and without user, password and query of a URL."""
    argument = re.sub(r"hf_\w+", "hf_...", argument)
    argument = re.sub(r"://[^/@\s]*@", "://", argument)
    return shlex.quote(re.sub(r"(://[^?\s]*)\?\S*", r"\1", argument) if "://" in argument else shorten_path(argument))


def shorten_path(path: str) -> str:
    """
    Shorten a path for publication: relative to this repository if it lies inside, otherwise only its name. Relative
    paths without `..` and arguments that are not paths are returned unchanged.
    """
    if not os.path.isabs(path) and ".." not in Path(path).parts:
        return path
    absolute = Path(path).resolve()
    return absolute.relative_to(REPOSITORY).as_posix() if absolute.is_relative_to(REPOSITORY) else absolute.name


def settings_of(*parsed: Any) -> dict[str, Any]:
    """
    The arguments that determine the trained model, as plain values.

    Args:
        parsed: Dataclasses of arguments. Those that an `unused_settings` method of one of them names are left out.
    """
    unused = HOUSEKEEPING | _without_effect(parsed)
    settings = {
        name: shorten_path(value) if name in SHOWN_PATHS and value is not None else plain_value(value)
        for args in parsed
        for name, value in asdict(args).items()
    }
    endings = ("_dir", "_file", "_name", "_path")
    return {
        name: value
        for name, value in settings.items()
        if value is not None and name not in unused and (name in SHOWN_PATHS or not name.endswith(endings))
    }


def _without_effect(parsed: Iterable[Any]) -> set[str]:
    """Names of the arguments that the given ones override or that an `unused_settings` method names."""
    given = given_names(parsed)
    unused = {name for name, others in OVERRIDDEN_BY.items() if not given.isdisjoint(others)}
    return unused.union(*(args.unused_settings() for args in parsed if hasattr(args, "unused_settings")))


def given_names(parsed: Iterable[Any]) -> set[str]:
    """Names of the arguments that are not `None`."""
    return {name for args in parsed for name, value in vars(args).items() if value is not None}
