# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Scores of an evaluation, and the files written beside a trained model: table, pictures and card."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from ..report import format_table, warn_of_absent, write_picture, write_table
from ..training_card import TrainingCard


Table = dict[str, dict[str, float]]


class Scores:
    """
    `compute_metrics` of a task, which keeps the table of the last evaluation.

    Args:
        compute (`Callable[[list], tuple[dict[str, float], Table]]`): Records of all samples -> metrics, named
            `eval_...`, and a table with a row of scores for each class.
        warn (`Callable[[Table], None]`): Called with the first table; warns of classes without ground truth.
    """

    def __init__(
        self, compute: Callable[[list], tuple[dict[str, float], Table]], warn: Callable[[Table], None] = lambda _: None
    ):
        self.compute, self.warn = compute, warn
        self.table: Table | None = None

    def __call__(self, records: list) -> dict[str, float]:
        metrics, table = self.compute(records)
        if self.table is None:
            self.warn(table)
        self.table = table
        return metrics


def warn_of_empty_rows(table: Table, column: str, unit: str) -> None:
    """Warn of rows whose `column`, a number of ground-truth units such as "pixel", is 0: their scores are undefined."""
    warn_of_absent(unit, list(table), [row[column] for row in table.values()])


@dataclass
class EvaluationArguments:
    """Pictures of predictions."""

    num_pictures: int = field(
        default=4, metadata={"help": "Number of validation images to draw in predictions.png; 0 draws none."}
    )

    def __post_init__(self):
        if self.num_pictures < 0:
            raise ValueError(f"--num_pictures must be 0 or more, got {self.num_pictures}")


@dataclass(kw_only=True)
class Report:
    """
    Writes the results of an evaluation and the card of a trained model: `write_evaluation` and `write_card` of a task.

    Args:
        scores ([`Scores`]): Has the table of the last evaluation.
        card ([`TrainingCard`]): Card of the training.
        model_class (`type`): Class that loads the saved model.
        draw (`Callable[[nn.Module], Figure]`, *optional*): Draws predictions of a model on validation images.
        row_name (`str`): Title of the table's first column, and part of its file name.
        has_card (`bool`): Whether to write a card; only for models that the package can load.
        shows_table (`bool`): Whether the card shows the table.
        remark (`str`): Text above the table on the card.
    """

    scores: Scores
    card: TrainingCard
    model_class: type
    draw: Callable[[nn.Module], Figure] | None = None
    row_name: str = "class"
    has_card: bool = True
    shows_table: bool = True
    remark: str = ""

    @property
    def table(self) -> Path:
        return Path(self.card.args.output_dir) / f"per_{self.row_name}_results.json"

    def write_card(self, folder: Path, results: dict[str, Any]) -> None:
        """Write table, pictures and card of the model that is saved in a folder."""
        model = self.model_class.from_pretrained(folder).eval() if self.draw is not None else None
        self.write_evaluation(model, folder)
        if self.has_card:
            tables = [format_table(self.table, self.row_name)] if self.shows_table and self.table.is_file() else []
            self.card.write(folder, results, [self.remark, *tables] if self.remark else tables)

    def write_evaluation(self, model: nn.Module | None, folder: Path) -> None:
        """Write the table to the output folder, and pictures of a model on the CPU to a folder."""
        if self.scores.table is not None:  # it is None in a run that was resumed after its last evaluation
            write_table(self.scores.table, self.table)
        if self.draw is not None:
            write_picture(self.draw(model), folder / "predictions.png")
