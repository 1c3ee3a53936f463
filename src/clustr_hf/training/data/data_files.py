# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Files of a data set, loaded in pieces with equal class names; errors name the file that cannot be read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    DownloadConfig,
    Features,
    IterableDataset,
    load_dataset,
    load_dataset_builder,
)
from datasets.config import DATASET_STATE_JSON_FILENAME
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import is_remote_url, xopen

from .labelled_rows import Rows


def load_parts(
    path: str,
    name: str | None = None,
    streaming: bool = False,
    check: Callable[[DatasetBuilder], None] | None = None,
    **source: Any,
) -> dict[str, list[Rows]]:
    """
    The splits of `datasets.load_dataset`, each in one piece, or in several pieces if its files differ in their class
    names. Splits may have different columns.

    Args:
        path, name, streaming, source: As in `load_dataset`.
        check (`Callable[[DatasetBuilder], None]`, *optional*): Raises an error for a data set that must not be loaded.

    Raises:
        ValueError: if a file cannot be read, or the files of a split differ in their columns; the message names the
            file.
    """
    if Path(path, DATASET_STATE_JSON_FILENAME).exists():
        raise ValueError(f"{path} was written by `save_to_disk`: convert it with `to_parquet`")
    builder = load_dataset_builder(path, name, **source)
    if check is not None:
        check(builder)
    if builder.name not in READ_SCHEMA:
        return {split: [rows] for split, rows in _load_all(builder, streaming).items()}
    files = builder.config.data_files or {}
    with _naming_broken_file(files, builder.name):
        hub = {name: source[name] for name in ("cache_dir", "token") if name in source}
        parts = _load_pieces(builder, files, streaming, hub)
    if streaming:
        for split, pieces in parts.items():
            for stream in pieces:
                # `datasets` keeps this record of downloads in every stream that is derived from this one.
                stream.info.download_checksums = {str(file): {} for file in files[split]}
    return parts


def _load_all(builder: DatasetBuilder, streaming: bool) -> Mapping[str, Rows]:
    """All splits, as `load_dataset` loads them with a builder of its own."""
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _load_pieces(
    builder: DatasetBuilder, files: Mapping[str, Sequence[str]], streaming: bool, hub: Mapping[str, Any]
) -> dict[str, list[Rows]]:
    """The splits of parquet or Arrow files; files with different class names or columns are loaded separately."""
    groups = {split: _group_by_names(split, files[split], builder.name, hub.get("token")) for split in files}
    found = [group for of_split in groups.values() for group in of_split]
    all_features = [builder.info.features, *(features for _, features, _ in found)]
    named = [features for features in all_features if features and list(class_labels(features))]
    names_differ = any(list(class_labels(features)) != list(class_labels(named[0])) for features in named)
    columns_differ = len({tuple(columns.items()) for columns, _, _ in found}) > 1
    if not names_differ and not columns_differ:
        return {split: [rows] for split, rows in _load_all(builder, streaming).items()}
    load = partial(load_dataset, builder.name, streaming=streaming, **hub)
    return {
        split: [
            load(data_files={split: group}, split=split, features=features or _same_columns(named, columns))
            for columns, features, group in of_split
        ]
        for split, of_split in groups.items()
    }


def _same_columns(named: Sequence[Features], columns: Mapping[str, str]) -> Features | None:
    """Features for a file without class names: those of the first file with names that has the same columns."""
    return next((features for features in named if sorted(features) == list(columns)), None)


def class_labels(feature: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The paths of all class columns in a feature, each with its class names."""
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
    Columns, features and names of files in their order; consecutive files with the same class names form one group.

    Raises:
        ValueError: if the files have no rows, or differ in their columns.
    """
    files = list(map(str, files))
    if is_remote_url(files[0]):  # one request per split: there may be hundreds of files, written together
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
    The columns of a file, sorted by name, with their types, and its features. The features are None if `datasets` did
    not write the file, which then has no class names.
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
def naming_broken_files(stream: IterableDataset) -> Iterator[None]:
    """Errors while reading a stream of [`load_parts`] name the broken file if it is a local one."""
    try:
        yield
    except (DatasetGenerationError, OSError, pa.ArrowException) as error:
        files = (stream.info.download_checksums or {}) if hasattr(stream, "info") else {}
        _refuse_broken(((file, kind) for file in files for kind in READ_SCHEMA if file.endswith(f".{kind}")), error)
        raise


@contextmanager
def _naming_broken_file(files: Mapping[str, Sequence[str]], kind: str) -> Iterator[None]:
    """Errors of `datasets` in this block name the file that cannot be read if it is a local one."""
    try:
        yield
    except DatasetGenerationError as error:
        _refuse_broken(((str(file), kind) for of_split in files.values() for file in of_split), error)
        raise ValueError(
            f"the data cannot be read, { ({split: list(map(str, names)) for split, names in files.items()}) }: "
            f"{error.__cause__ or error}"
        ) from error


def _refuse_broken(files: Iterable[tuple[str, str]], error: Exception):
    """Raise an error that names the first local file that is broken; `files` are pairs of a path and a kind."""
    for file, kind in files:
        reason = None if is_remote_url(file) else _find_fault(file, kind)
        if reason is not None:
            raise ValueError(f"{file} cannot be read as a file of kind {kind}: {reason}") from error


def _find_fault(file: str, kind: str) -> Exception | None:
    """The error of reading a file whose schema can be read; None if the file is intact."""
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


# Functions that read the schema of an open file, by the kind of file.
READ_SCHEMA = {"parquet": pq.read_schema, "arrow": _read_arrow_schema}
