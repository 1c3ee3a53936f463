# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The classes of the weights that a run starts from."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from .arguments import LoopArguments
from .checkpoints import TrainingState, find_checkpoint
from .data.class_names import KnownNames, names_of
from .models import ModelArguments, has_head


def known_names(
    args: ModelArguments,
    heads: Sequence[str],
    only_evaluates: bool = False,
    resumed: tuple[Path, Sequence[str]] | None = None,
) -> KnownNames | None:
    """
    The classes of the weights that a run starts or resumes from; None if they have no head for the task.

    Args:
        args: The checkpoint to start from.
        heads (`Sequence[str]`): As in [`has_head`].
        only_evaluates (`bool`): Whether `--model_name_or_path` is evaluated and not trained.
        resumed (`tuple[Path, Sequence[str]]`, *optional*): The checkpoint to resume from, and its classes.

    Raises:
        ValueError: if a checkpoint without such a head is to be evaluated.
    """
    if resumed is not None:
        return KnownNames(resumed[1], f"the checkpoint {resumed[0]}", only_evaluates)
    if args.model_name_or_path is None:
        return None
    config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **args.hub_arguments)
    source = f"the checkpoint {args.model_name_or_path}"
    if not has_head(config, heads):
        if only_evaluates:
            raise ValueError(
                f"{source} is of {config.architectures}: to evaluate it, its class must be a {' or '.join(heads)}"
            )
        return None
    names = names_of(config, source)
    return KnownNames(names, source, only_evaluates, args.ignore_mismatched_sizes) if names else None


def names_of_run(args: LoopArguments, model_args: ModelArguments, heads: Sequence[str]) -> KnownNames | None:
    """The classes of the weights that a run of the loop starts from, resumes from or evaluates: [`known_names`]."""
    checkpoint = None
    if args.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint, announce=False)
    names = None if checkpoint is None else TrainingState.load(checkpoint).class_names
    return known_names(
        model_args,
        heads,
        only_evaluates=args.eval_only and (names is not None or args.resume_from_checkpoint is None),
        resumed=None if names is None else (checkpoint, names),
    )
