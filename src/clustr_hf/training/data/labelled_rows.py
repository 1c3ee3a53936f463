# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Rows whose class ids refer to one list of names, read from files that may each have their own list.

`datasets` gives all files the class names of the first one: if another file lists the names in a different order, cats
become dogs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, concatenate_datasets

from .class_names import KnownNames, check_label, choose_names, find_place, find_places


Rows = Dataset | IterableDataset


class Labels(ABC):
    """
    The class ids in the rows of a data set.

    Attributes:
        chosen (`list[str]`): The names that all ids refer to after [`match_classes`].
    """

    def __init__(self):
        self.chosen: list[str] = []

    @abstractmethod
    def names(self, rows: Rows, split: str) -> list[str]:
        """The names that the ids of these rows refer to; raises a `ValueError` if the rows have none."""

    @abstractmethod
    def renumber(self, rows: Rows, names: list[str], split: str) -> Rows:
        """The same rows with ids that refer to other names; raises a `ValueError` for an id without a name."""

    def check(self, rows: Rows, split: str) -> None:  # noqa: B027 (optional)
        """Raise a `ValueError` for a row with an invalid id, if this check does not need to read all columns."""


class LabelColumn(Labels):
    """A column of type `ClassLabel`."""

    def __init__(self, column: str):
        super().__init__()
        self.column = column

    def names(self, rows: Rows, split: str = "training") -> list[str]:
        check_columns(rows, split, label_column_name=self.column)
        feature = rows.features[self.column]
        if not isinstance(feature, ClassLabel):
            raise ValueError(f"--label_column_name {self.column!r} must be a column of type ClassLabel, got {feature}")
        return feature.names

    def renumber(self, rows: Rows, names: list[str], split: str) -> Rows:
        places = find_places(self.names(rows, split), names, split)
        features = Features({self.column: ClassLabel(names=names)})
        if isinstance(rows, IterableDataset):
            function = partial(_renumber_row, column=self.column, places=places, sample=f"a {split} sample")
            return rows.map(function, features=Features({**rows.features, **features}))
        labels = rows.select_columns([self.column]).with_format("arrow")[:][self.column].to_pylist()
        labels = [find_place(places, label, f"{split} sample {index}") for index, label in enumerate(labels)]
        return replace_column(rows, Dataset.from_dict({self.column: labels}, features=features))

    def check(self, rows: Dataset, split: str) -> None:
        number = len(self.names(rows, split))
        labels = rows.select_columns([self.column]).with_format("arrow")[:][self.column].to_pylist()
        for index, label in enumerate(labels):
            check_label(label, number, f"{split} sample {index}")


def _renumber_row(row: dict[str, Any], column: str, places: list[int], sample: str) -> dict[str, int]:
    return {column: find_place(places, row[column], sample)}


def replace_column(rows: Dataset, column: Dataset) -> Dataset:
    """Replace a column of rows that are in file order; the other columns are not copied."""
    return concatenate_datasets([rows.remove_columns(column.column_names), column], axis=1)


def match_classes(
    parts: Mapping[str, Sequence[Rows]], labels: Labels | None, known: KnownNames | None = None
) -> dict[str, Rows]:
    """
    The rows of each split, concatenated, with ids that refer to one list of names: the checkpoint's, or the training
    split's.

    Args:
        parts (`Mapping[str, Sequence[Rows]]`): The pieces of each split, as [`load_parts`] returns them.
        labels ([`Labels`], *optional*): The ids in the rows; without it, nothing is matched.
        known ([`KnownNames`], *optional*): The classes of the checkpoint that is trained further or evaluated.

    Raises:
        ValueError: if names cannot be matched, or an id has no name.
    """
    if labels is not None and _used(parts):
        own = {split: [labels.names(rows, split) for rows in parts[split]] for split in _used(parts)}
        # Each piece of a split may lack some of the classes.
        names = choose_names({split: _union(lists) for split, lists in own.items()}, known)
        labels.chosen, parts = names, dict(parts)
        for split, lists in own.items():
            if set(_union(lists)) <= set(names):  # otherwise it is a training split that is not used
                parts[split] = [
                    rows if given == names else labels.renumber(rows, names, split)
                    for rows, given in zip(parts[split], lists)
                ]
    return {split: _join(pieces) for split, pieces in parts.items()}


def _join(pieces: Sequence[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    columns = pieces[0].column_names  # a replaced column has moved to the end
    return concatenate_datasets([rows.select_columns(columns) for rows in pieces])


def _used(parts: Mapping[str, Sequence[Rows]]) -> list[str]:
    """The splits whose classes are matched; a test split may have none."""
    return [split for split in ("train", "validation") if split in parts]


def _union(lists: Sequence[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def check_columns(data: Rows, split: str, **columns: str) -> None:
    """Raise a `ValueError` unless a split has the columns that the arguments name."""
    for argument, column in columns.items():
        if column not in data.column_names:
            raise ValueError(
                f"--{argument} {column!r} is not in the data set, which has {data.column_names} in its {split} split"
            )


def cast_images(data: DatasetDict, **columns: str) -> DatasetDict:
    """
    The data with image columns as bytes or path, not decoded.

    Args:
        data (`DatasetDict`): The splits.
        columns (`str`): Image columns, by the name of the argument that names them.

    Raises:
        ValueError: if a column does not hold images.
    """
    cast = {}
    for split, rows in data.items():
        for argument, column in columns.items():
            feature = rows.features[column]
            try:
                rows = rows.cast_column(column, Image(decode=False))
            except (TypeError, ValueError, pa.ArrowException) as error:
                raise ValueError(
                    f"--{argument} {column!r} must be a column of images, got {feature} in the {split} split"
                ) from error
        cast[split] = rows
    return DatasetDict(cast)
