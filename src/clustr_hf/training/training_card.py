# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The model card of a training: command, settings, data and results."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from ..devices import device_name, is_accelerator
from ..publish import complete_repository
from ..publish.card import CardContents, measurements_of, read_metadata
from .arguments import LoopArguments
from .command_line import shorten_path
from .data.arguments import FolderArguments
from .models import ModelArguments


@dataclass
class TrainingCard:
    """
    The model card of a training.

    Args:
        args ([`LoopArguments`], or `TrainingArguments` with a `command` and `settings`): Arguments of the training.
        data_args ([`FolderArguments`]): Arguments of the data.
        model_args ([`ModelArguments`]): Arguments of the initial model.
        summary (`str`): One sentence about the trained model.
    """

    args: LoopArguments | TrainingArguments
    data_args: FolderArguments
    model_args: ModelArguments
    summary: str

    def write(self, folder: Path, results: dict[str, Any], tables: Sequence[str] = ()) -> None:
        """Write handler, requirements and card to the folder of a saved model; `results` as in `all_results.json`."""
        name, dataset_id, part = describe_data(self.data_args)
        contents = CardContents(
            name=Path(self.args.output_dir).resolve().name,
            summary=self.summary,
            datasets=[dataset_id] if dataset_id else (),
            **self._origin,
            training=describe_training(results),
            command=self.args.command,
            recipe=self.args.settings,
            measurements=measurements_of(results, name, self.args.command, dataset_id, part),
            tables=tables,
        )
        complete_repository(folder, contents)

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """The Hub id of the model that was fine-tuned, and its license, which also applies to the result."""
        args = self.model_args
        if args.model_name_or_path is None:
            return {}
        metadata = read_metadata(args.model_name_or_path, revision=args.model_revision, **args.download_arguments)
        is_folder = Path(args.model_name_or_path).exists()
        origin = {"base_model": metadata.get("base_model") if is_folder else args.model_name_or_path}
        if metadata.get("license"):
            origin |= {name: metadata.get(name) for name in ("license", "license_name", "license_link")}
        return origin


def describe_training(results: dict[str, Any]) -> str:
    """Number of steps, duration, device and versions."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))
    duration = f", {results['train_runtime'] / 60:.1f} minutes" if "train_runtime" in results else ""
    return (
        f"{results['step']:,} steps{duration} on {_describe_devices()}, with clustr_hf "
        f"{importlib.metadata.version('clustr_hf')} ({versions})."
    )


def _describe_devices() -> str:
    """The devices of all processes of this training, as far as the main process knows them."""
    state = PartialState()
    if is_accelerator(state.device):
        name = device_name(state.device)
        return name if state.num_processes == 1 else f"{state.num_processes} x {name}"
    count = torch.get_num_threads()
    cores = "1 thread" if count == 1 else f"{count} threads"
    if state.num_processes > 1:
        cores = f"{state.num_processes} processes with {cores} each"
    return f"a CPU ({platform.machine()}, {cores})"


def describe_data(args: FolderArguments) -> tuple[str, str | None, str]:
    """
    Describe the evaluation data.

    Returns:
        `tuple[str, str | None, str]`: the name of the data set, without private folders; its Hub id, if it is from the
        Hub; and the part of it that was used.
    """
    hub_name = getattr(args, "dataset_name", None)
    is_part = getattr(args, "holds_back", False)
    parts = [f"{100 * args.train_val_split:g} % held back from the training" if is_part else "validation"]
    if args.max_eval_samples is not None:
        parts.append(f"at most {args.max_eval_samples:,} images chosen at random")
    part = ", ".join(parts)
    if hub_name is not None and not Path(hub_name).exists():
        return hub_name, hub_name, part
    validation = ("dataset_name", "validation_annotation_file", "validation_file", "validation_dir")
    sources = (*validation, "train_annotation_file", "train_file", "train_dir")  # the first one given names the data
    return shorten_path(next(filter(None, (getattr(args, source, None) for source in sources)))), None, part
