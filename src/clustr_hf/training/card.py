# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The model card of a training: command, settings, data and results; and the [`Report`] of an evaluation."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..publish import complete_repository
from ..publish.card import CardContents, measurements_of
from .arguments import LoopArguments
from .command_line import shorten_path
from .report import format_table, write_table
from .sources import ModelArguments, SourceArguments


@dataclass
class TrainingCard:
    """
    The model card of a training.

    Args:
        args ([`LoopArguments`], or `TrainingArguments` with a `command` and `settings`): Arguments of the training.
        data_args ([`SourceArguments`]): Arguments of the data.
        model_args ([`ModelArguments`]): Arguments of the initial model.
        summary (`str`): One sentence about the trained model.
    """

    args: LoopArguments | TrainingArguments
    data_args: SourceArguments
    model_args: ModelArguments
    summary: str

    def write(self, folder: Path, results: dict[str, Any], tables: Sequence[str] = ()):
        """Write handler, requirements and card to the folder of a saved model; `results` as in `all_results.json`."""
        name, dataset_id, part = describe_data(self.data_args)
        contents = CardContents(
            name=Path(self.args.output_dir).resolve().name,
            summary=self.summary,
            datasets=[dataset_id] if dataset_id else (),
            base_model=self._base_model(),
            training=describe_training(results),
            command=self.args.command,
            recipe=self.args.settings,
            measurements=measurements_of(results, name, self.args.command, dataset_id, part),
            tables=tables,
        )
        complete_repository(folder, contents)

    def _base_model(self) -> str | None:
        """Hub id of the model that was fine-tuned, if it is from the Hub."""
        name = self.model_args.model_name_or_path
        return None if name is None or Path(name).exists() else name


@dataclass(kw_only=True)
class Report:
    """
    The report of an evaluation, a table of scores and pictures of predictions, and the card of the trained model.

    The report itself is the `write_card` of a [`Task`], its method `write_evaluation` is the one of the task. A task
    with pictures implements `draw_predictions` in a subclass.

    Args:
        scores: The `compute_metrics` of the task; its `table` has the scores of the last evaluation.
        card ([`TrainingCard`]): Card of the training.
        model_class (`type`): Class that loads the saved model.
        num_pictures (`int`): Number of validation images to draw.
        kind (`str`): What a row of the table is about, such as "class".
        has_card (`bool`): Whether to write a card, which requires a model of this package.
        shows_table (`bool`): Whether the card shows the table.
        remark (`str`): Text of the card above the table.
    """

    scores: Any
    card: TrainingCard
    model_class: type
    num_pictures: int = 0
    kind: str = "class"
    has_card: bool = True
    shows_table: bool = True
    remark: str = ""

    @property
    def table(self) -> Path:
        return Path(self.card.args.output_dir) / f"per_{self.kind}_results.json"

    def __call__(self, folder: Path, results: dict[str, Any]):
        """Write the table, and the pictures and the card of the model that is saved in a folder."""
        model = self.model_class.from_pretrained(folder).eval() if self.num_pictures > 0 else None
        self.write_evaluation(model, folder)
        if self.has_card:
            tables = [format_table(self.table, self.kind)] if self.shows_table and self.table.is_file() else []
            self.card.write(folder, results, [self.remark, *tables] if self.remark else tables)

    def write_evaluation(self, model: nn.Module | None, folder: Path):
        """Write the table to the output folder, and pictures of a model on the CPU to a folder."""
        if self.scores.table is not None:  # None if this process resumed after the last evaluation
            write_table(self.scores.table, self.table)
        if self.num_pictures > 0:
            self.draw_predictions(model, folder / "predictions.png")

    def draw_predictions(self, model: nn.Module, path: Path):
        """Draw predictions for validation images that are spread evenly over the split."""
        raise NotImplementedError


def describe_training(results: dict[str, Any]) -> str:
    """Number of steps, duration, device and versions."""
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


def describe_data(args: SourceArguments) -> tuple[str, str | None, str]:
    """
    Describe the evaluation data.

    Returns:
        `tuple[str, str | None, str]`: their name, without private folders; their Hub id, if they are from the Hub; and
        the part of them that was used.
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
