# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A trained model as a complete repository: what its card says about command, settings, data and results."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_arguments import LoopArguments, shorten_path
from training_sources import ModelArguments, SourceArguments
from transformers import TrainingArguments

from clustr_hf.model_card import CardContents, measurements_of
from clustr_hf.publish import complete_repository


@dataclass
class TrainingCard:
    """
    The card of a training.

    Args:
        args ([`LoopArguments`] or `TrainingArguments` with its `command` and `settings`): What was trained, and how.
        data_args ([`SourceArguments`]): On which data.
        model_args ([`ModelArguments`]): From which model.
        summary (`str`): What a trained model is.
    """

    args: LoopArguments | TrainingArguments
    data_args: SourceArguments
    model_args: ModelArguments
    summary: str

    def write(self, folder: Path, results: dict[str, Any], tables: Sequence[str] = ()):
        """Handler, requirements and card beside a saved model, given what is in `all_results.json`."""
        name, dataset_id = data_name(self.data_args)
        contents = CardContents(
            name=Path(self.args.output_dir).resolve().name,
            summary=self.summary,
            datasets=[dataset_id] if dataset_id else (),
            base_model=self._base_model(),
            training=describe_training(results),
            command=self.args.command,
            recipe=self.args.settings,
            measurements=measurements_of(results, name, self.args.command, dataset_id),
            tables=tables,
        )
        complete_repository(folder, contents)

    def _base_model(self) -> str | None:
        """Id on the Hub of the model that was fine-tuned."""
        name = self.model_args.model_name_or_path
        return None if name is None or Path(name).exists() else name


def describe_training(results: dict[str, Any]) -> str:
    """How long it took, on what, in which versions."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))
    duration = f", {results['train_runtime'] / 60:.1f} minutes" if "train_runtime" in results else ""
    return (
        f"{results['step']:,} steps{duration} on {describe_device()}, with clustr_hf "
        f"{importlib.metadata.version('clustr_hf')} ({versions})."
    )


def describe_device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def data_name(args: SourceArguments) -> tuple[str, str | None]:
    """Name of the data, without the folders of whoever trained, and their id on the Hub if they are from there."""
    if getattr(args, "dataset_name", None) is not None:
        if Path(args.dataset_name).exists():
            return shorten_path(args.dataset_name), None
        return args.dataset_name, args.dataset_name
    sources = ("validation_annotation_file", "validation_file", "validation_dir", "train_file", "train_dir")
    return shorten_path(next(filter(None, (getattr(args, source, None) for source in sources)))), None
