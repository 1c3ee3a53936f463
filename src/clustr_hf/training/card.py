# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A trained model as a complete repository: what its card says about command, settings, data and results."""

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
        """Id on the Hub of the model that was fine-tuned."""
        name = self.model_args.model_name_or_path
        return None if name is None or Path(name).exists() else name


@dataclass(kw_only=True)
class Report:
    """
    What people look at after an evaluation: a table and pictures; and the card of a trained model. It is the loop's
    `write_card`, and its `write_evaluation` the loop's. A task with pictures has a subclass that draws them.

    Args:
        scores: The loop's `compute_metrics`, whose `table` is that of the last evaluation.
        card ([`TrainingCard`]): Of the training.
        model_class (`type`): To load the saved model by.
        num_pictures (`int`): Validation images to draw; 0 draws none.
        kind (`str`): What the table has rows of.
        has_card (`bool`): Whether the package can load the model, which is what a card is about.
        shows_table (`bool`): Whether the card shows the table.
        remark (`str`): What the card says before the table.
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
        """Table, pictures and card of the model that is saved in a folder."""
        model = self.model_class.from_pretrained(folder).eval() if self.num_pictures > 0 else None
        self.write_evaluation(model, folder)
        if self.has_card:
            tables = [format_table(self.table, self.kind)] if self.shows_table and self.table.is_file() else []
            self.card.write(folder, results, [self.remark, *tables] if self.remark else tables)

    def write_evaluation(self, model: nn.Module | None, folder: Path):
        """The table in the output folder, and pictures of a model, on the CPU, in a folder."""
        if self.scores.table is not None:  # else this process has resumed a run after its last evaluation
            write_table(self.scores.table, self.table)
        if self.num_pictures > 0:
            self.draw_predictions(model, folder / "predictions.png")

    def draw_predictions(self, model: nn.Module, path: Path):
        """Validation images that lie evenly in the split, with what the model predicts."""
        raise NotImplementedError


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


def describe_data(args: SourceArguments) -> tuple[str, str | None, str]:
    """
    What was evaluated on: the name of the data, without the folders of whoever trained, their id on the Hub if they are
    from there, and which part of them it was.
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
    sources = (*validation, "train_annotation_file", "train_file", "train_dir")  # the first one that is given
    return shorten_path(next(filter(None, (getattr(args, source, None) for source in sources)))), None, part
