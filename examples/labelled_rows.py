# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Rows whose class ids count in one list of names, from files of which each may count in a list of its own.

`datasets` gives all files the names of the first one: where the others have theirs in another order, cats become dogs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from class_names import KnownNames, choose_names, find_place, find_places
from datasets import (
    ClassLabel,
    Dataset,
    DownloadConfig,
    Features,
    IterableDataset,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.utils.file_utils import is_remote_url, xopen


Rows = Dataset | IterableDataset


class Labels(ABC):
    """
    Where the rows of a data set have ids of classes.

    Attributes:
        chosen (`list[str]`): The names that all ids count in once [`match_classes`] has matched the splits.
    """

    def __init__(self):
        self.chosen: list[str] = []

    @abstractmethod
    def names(self, rows: Rows, split: str) -> list[str]:
        """The names that the ids of these rows count in; raises a `ValueError` if the rows have none."""

    @abstractmethod
    def renumber(self, rows: Rows, names: list[str], split: str) -> Rows:
        """The same rows with ids that count in other names; raises a `ValueError` for an id without a name."""


class LabelColumn(Labels):
    """A column of type `ClassLabel`."""

    def __init__(self, column: str):
        super().__init__()
        self.column = column

    def names(self, rows: Rows, split: str = "training") -> list[str]:
        check_columns(rows, label_column_name=self.column)
        feature = rows.features[self.column]
        if not isinstance(feature, ClassLabel):
            raise ValueError(f"--label_column_name {self.column!r} must be a column of type ClassLabel, got {feature}")
        return feature.names

    def renumber(self, rows: Rows, names: list[str], split: str) -> Rows:
        places = find_places(self.names(rows), names, split)
        features = Features({self.column: ClassLabel(names=names)})
        if isinstance(rows, IterableDataset):
            function = partial(_renumber_row, column=self.column, places=places, sample=f"a {split} sample")
            return rows.map(function, features=Features({**rows.features, **features}))
        labels = rows.select_columns([self.column]).with_format("arrow")[:][self.column].to_pylist()
        labels = [find_place(places, label, f"{split} sample {index}") for index, label in enumerate(labels)]
        return replace_column(rows, Dataset.from_dict({self.column: labels}, features=features))


def _renumber_row(row: dict[str, Any], column: str, places: list[int], sample: str) -> dict[str, int]:
    return {column: find_place(places, row[column], sample)}


def replace_column(rows: Dataset, column: Dataset) -> Dataset:
    """Rows, not chosen or shuffled yet, with another column of the same name, without a copy of the others."""
    return concatenate_datasets([rows.remove_columns(column.column_names), column], axis=1)


def match_classes(
    parts: Mapping[str, Sequence[Rows]], labels: Labels | None, known: KnownNames | None = None
) -> dict[str, Rows]:
    """
    The rows of each split in one piece, with ids that count in one list of names: the checkpoint's, or the training
    split's.

    Args:
        parts (`Mapping[str, Sequence[Rows]]`): The pieces of each split, as [`load_parts`] gives them.
        labels ([`Labels`], *optional*): Where the ids are; without it nothing is matched.
        known ([`KnownNames`], *optional*): The classes of the checkpoint that is trained further or evaluated.

    Raises:
        ValueError: if names cannot be matched, or an id has no name.
    """
    if labels is not None and _used(parts):
        own = {split: [labels.names(rows, split) for rows in parts[split]] for split in _used(parts)}
        # Of a split's pieces, each may lack some of the classes.
        names = choose_names({split: _union(lists) for split, lists in own.items()}, known)
        labels.chosen, parts = names, dict(parts)
        for split, lists in own.items():
            if set(_union(lists)) <= set(names):  # else it is what is not trained on
                parts[split] = [
                    rows if given == names else labels.renumber(rows, names, split)
                    for rows, given in zip(parts[split], lists)
                ]
    return {split: _join(pieces) for split, pieces in parts.items()}


def _join(pieces: Sequence[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    columns = pieces[0].column_names  # a column that was replaced has gone to the end
    return concatenate_datasets([rows.select_columns(columns) for rows in pieces])


def _used(parts: Mapping[str, Sequence[Rows]]) -> list[str]:
    """Splits whose classes count; a test split may have none."""
    return [split for split in ("train", "validation") if split in parts]


def _union(lists: Sequence[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def load_parts(path: str, name: str | None = None, **source: Any) -> dict[str, list[Rows]]:
    """
    The splits of `datasets.load_dataset`, each as one piece, or as several where its files differ in the names of
    classes.

    Args:
        path, name, source: As `load_dataset` takes them.
    """
    hub = {key: source[key] for key in ("cache_dir", "token", "streaming") if key in source}
    builder = load_dataset_builder(path, name, **{key: value for key, value in source.items() if key != "streaming"})
    files = builder.config.data_files or {}
    if builder.name in READ_SCHEMA:
        pieces = {split: _group_by_names(files[split], builder.name, hub.get("token")) for split in files}
        found = [builder.info.features, *(features for groups in pieces.values() for features, _ in groups)]
        named = [features for features in found if list(class_labels(features))]
        if any(list(class_labels(features)) != list(class_labels(named[0])) for features in named):
            load = partial(load_dataset, builder.name, **hub)
            return {
                split: [
                    load(data_files={split: group}, split=split, features=features or named[0])
                    for features, group in groups
                ]
                for split, groups in pieces.items()
            }
    return {split: [rows] for split, rows in load_dataset(path, name, **source).items()}


def class_labels(feature: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Where columns have classes, and the names of these."""
    if isinstance(feature, ClassLabel):
        yield path, feature.names
    elif isinstance(feature, Mapping):
        for key in sorted(feature):
            yield from class_labels(feature[key], (*path, key))
    elif isinstance(feature, list) or hasattr(feature, "feature"):
        yield from class_labels(feature[0] if isinstance(feature, list) else feature.feature, path)


def _group_by_names(files: Sequence[str], kind: str, token: str | None) -> list[tuple[Features | None, list[str]]]:
    """Files in their order, those together that follow one another and have the same names of classes."""
    files = list(map(str, files))
    if is_remote_url(files[0]):  # one look for a split: there may be hundreds, which were written together
        return [(_read_features(files[0], kind, token), files)]
    found = [(_read_features(file, kind, token), file) for file in files]
    groups = [list(group) for _, group in groupby(found, key=lambda pair: list(class_labels(pair[0])))]
    return [(group[0][0], [file for _, file in group]) for group in groups]


def _read_features(file: str, kind: str, token: str | None) -> Features | None:
    """The features of a file; None where `datasets` did not write it, so that it names no classes."""
    with xopen(file, "rb", download_config=DownloadConfig(token=token)) as opened:
        schema = READ_SCHEMA[kind](opened)
    return Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else None


def _read_arrow_schema(file) -> pa.Schema:
    try:
        return pa.ipc.open_stream(file).schema
    except (OSError, pa.lib.ArrowInvalid):
        return pa.ipc.open_file(file).schema


# How to read what a file says of its columns, by the kind of file.
READ_SCHEMA = {"parquet": pq.read_schema, "arrow": _read_arrow_schema}


def check_columns(data: Rows, **columns: str):
    """Raise a `ValueError` unless the data has the columns that the arguments name."""
    for argument, column in columns.items():
        if column not in data.column_names:
            raise ValueError(f"--{argument} {column!r} is not in the data set, which has {data.column_names}")
