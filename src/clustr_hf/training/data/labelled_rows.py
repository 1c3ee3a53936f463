# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Rows whose class ids count in one list of names, from files of which each may count in a list of its own.

`datasets` gives all files the names of the first one: where the others have theirs in another order, cats become dogs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DownloadConfig,
    Features,
    Image,
    IterableDataset,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import is_remote_url, xopen

from .class_names import KnownNames, choose_names, find_place, find_places


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
    classes. Splits may differ in their columns.

    Args:
        path, name, source: As `load_dataset` takes them.

    Raises:
        ValueError: if a file cannot be read, or those of a split differ in their columns; it names the file.
    """
    hub = {key: source[key] for key in ("cache_dir", "token", "streaming") if key in source}
    builder = load_dataset_builder(path, name, **{key: value for key, value in source.items() if key != "streaming"})
    files = builder.config.data_files or {}
    if builder.name not in READ_SCHEMA:
        return {split: [rows] for split, rows in load_dataset(path, name, **source).items()}
    pieces = {split: _group_by_names(split, files[split], builder.name, hub.get("token")) for split in files}
    found = [features for groups in pieces.values() for _, features, _ in groups]
    named = [features for features in (builder.info.features, *found) if features and list(class_labels(features))]
    names_differ = any(list(class_labels(features)) != list(class_labels(named[0])) for features in named)
    columns_differ = len({tuple(columns.items()) for groups in pieces.values() for columns, _, _ in groups}) > 1
    with _naming_file(files, builder.name):
        if not names_differ and not columns_differ:
            parts = {split: [rows] for split, rows in load_dataset(path, name, **source).items()}
        else:
            load = partial(load_dataset, builder.name, **hub)
            parts = {
                split: [
                    load(data_files={split: group}, split=split, features=features or _same_columns(named, columns))
                    for columns, features, group in groups
                ]
                for split, groups in pieces.items()
            }
    if source.get("streaming"):
        for split, of_split in parts.items():
            for stream in of_split:
                # Where `datasets` notes what it has downloaded, if it does: kept by all that is made of the stream.
                stream.info.download_checksums = {str(file): {} for file in files[split]}
    return parts


def _same_columns(named: Sequence[Features], columns: Mapping[str, str]) -> Features | None:
    """What a file that names no classes is read as: like the first one with names, if it has the same columns."""
    return next((features for features in named if sorted(features) == list(columns)), None)


def class_labels(feature: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Where columns have classes, and the names of these."""
    if isinstance(feature, ClassLabel):
        yield path, feature.names
    elif isinstance(feature, Mapping):
        for key in sorted(feature):
            yield from class_labels(feature[key], (*path, key))
    elif isinstance(feature, list) or hasattr(feature, "feature"):
        yield from class_labels(feature[0] if isinstance(feature, list) else feature.feature, path)


def _group_by_names(
    split: str, files: Sequence[str], kind: str, token: str | None
) -> list[tuple[dict[str, str], Features | None, list[str]]]:
    """
    Columns, features and names of files in their order, those together that follow one another and have the same names
    of classes.

    Raises:
        ValueError: if the files have no rows, or differ in their columns.
    """
    files = list(map(str, files))
    if is_remote_url(files[0]):  # one look for a split: there may be hundreds, which were written together
        return [(*_read_features(files[0], kind, token), files)]
    found = [(*_read_features(file, kind, token), file) for file in files]
    if kind == "parquet" and not any(pq.read_metadata(file).num_rows for file in files):
        raise ValueError(f"the {split} split must have rows, got none in {files}")
    for columns, _, file in found:
        if columns.keys() != found[0][0].keys():
            raise ValueError(
                f"all files of the {split} split must have the same columns, but {found[0][2]} has "
                f"{list(found[0][0])} and {file} has {list(columns)}"
            )
    groups = [list(group) for _, group in groupby(found, key=lambda row: list(class_labels(row[1])))]
    return [(*group[0][:2], [file for _, _, file in group]) for group in groups]


def _read_features(file: str, kind: str, token: str | None) -> tuple[dict[str, str], Features | None]:
    """
    The columns of a file in the order of their names, with their types, and its features; None where `datasets` did not
    write it, so that it names no classes.
    """
    try:
        with xopen(file, "rb", download_config=DownloadConfig(token=token)) as opened:
            schema = READ_SCHEMA[kind](opened)
    except pa.ArrowException as error:
        raise ValueError(f"{file} cannot be read as a file of kind {kind}: {error}") from error
    is_own = b"huggingface" in (schema.metadata or {})
    columns = {name: str(schema.field(name).type) for name in sorted(schema.names)}
    return columns, Features.from_arrow_schema(schema) if is_own else None


@contextmanager
def naming_files(stream: IterableDataset) -> Iterator[None]:
    """Errors of reading a stream of [`load_parts`] say which of its files is broken, where it is of this machine."""
    try:
        yield
    except (DatasetGenerationError, OSError, pa.ArrowException) as error:
        files = (stream.info.download_checksums or {}) if hasattr(stream, "info") else {}
        _refuse_broken(((file, kind) for file in files for kind in READ_SCHEMA if file.endswith(f".{kind}")), error)
        raise


@contextmanager
def _naming_file(files: Mapping[str, Sequence[str]], kind: str) -> Iterator[None]:
    """Errors of `datasets` in this block say which of the files cannot be read, where it is one of this machine."""
    try:
        yield
    except DatasetGenerationError as error:
        _refuse_broken(((str(file), kind) for of_split in files.values() for file in of_split), error)
        raise ValueError(
            f"the data cannot be read, { ({split: list(map(str, names)) for split, names in files.items()}) }: "
            f"{error.__cause__ or error}"
        ) from error


def _refuse_broken(files: Iterable[tuple[str, str]], error: Exception):
    """Raise an error that names the first of the files, each with its kind, that is of this machine and broken."""
    for file, kind in files:
        reason = None if is_remote_url(file) else _find_fault(file, kind)
        if reason is not None:
            raise ValueError(f"{file} cannot be read as a file of kind {kind}: {reason}") from error


def _find_fault(file: str, kind: str) -> Exception | None:
    """What is wrong with the content of a file whose schema can be read; None if it is whole."""
    try:
        if kind == "parquet":
            for _ in pq.ParquetFile(file).iter_batches(batch_size=100):
                pass
        else:
            Dataset.from_file(file)[:]
    except (OSError, pa.ArrowException) as error:
        return error
    return None


def _read_arrow_schema(file) -> pa.Schema:
    try:
        return pa.ipc.open_stream(file).schema
    except (OSError, pa.lib.ArrowInvalid):
        return pa.ipc.open_file(file).schema


# How to read what a file says of its columns, by the kind of file.
READ_SCHEMA = {"parquet": pq.read_schema, "arrow": _read_arrow_schema}


def check_columns(data: Rows, split: str, **columns: str):
    """Raise a `ValueError` unless a split has the columns that the arguments name."""
    for argument, column in columns.items():
        if column not in data.column_names:
            raise ValueError(
                f"--{argument} {column!r} is not in the data set, which has {data.column_names} in its {split} split"
            )


def cast_images(data: DatasetDict, **columns: str) -> DatasetDict:
    """
    The data with columns of images as bytes or path, not decoded.

    Args:
        data (`DatasetDict`): The splits.
        columns (`str`): By the argument that names it.

    Raises:
        ValueError: if a column is not one of images.
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
