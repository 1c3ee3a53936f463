# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Checksums of what a run saves: size and SHA-256 of every file of a folder, in `checksums.json` beside them.

They are written before the folder gets its name and are compared before anything in it is read. A file that has changed
since, on a failing disk or by an interrupted copy, is named; its weights would otherwise load without an error.
"""

import functools
import hashlib
import json
import logging
import os
import time
from pathlib import Path


logger = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"
SLOW = 1.0  # seconds after which the log says what the time went into


def write_checksums(folder: Path):
    """Write `checksums.json` of all files in a folder and its subfolders; `{name: {"size": bytes, "sha256": hex}}`."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    checksums = {
        name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in sorted(_files(folder).items())
    }
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1) + "\n")


def find_damage(folder: Path, suffixes: tuple[str, ...] | None = None) -> list[str]:
    """
    What is wrong with the files of a folder that has `checksums.json`: one sentence a file, which names it.

    Files without a checksum are not looked at. The answer is kept until a file's size or time of change differs, so
    that asking again costs nothing.

    Args:
        folder (`Path`): Where `checksums.json` is.
        suffixes (`tuple[str, ...]`, *optional*): Endings of the files to compare; default: all.
    """
    stats = {name: path.stat() for name, path in _files(folder).items()}
    signature = tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()))
    return list(_find_damage(folder.resolve(), suffixes, signature))


def checked_files(folder: Path) -> set[str]:
    """
    Names of the files that `checksums.json` lists.

    Raises:
        ValueError: if it cannot be read.
    """
    return set(_read(folder / CHECKSUMS))


def warn_of_changed_weights(folder: Path):
    """Say which weights of a folder that a run has saved are others now; somebody may have meant to replace them."""
    if not (folder / CHECKSUMS).is_file() or int(os.environ.get("RANK", 0)) > 0:  # one process of many says it
        return
    for damage in find_damage(folder, (".safetensors", CHECKSUMS)):
        logger.warning(f"{folder} is not as the training saved it: {damage}; if that is meant, remove its {CHECKSUMS}")


@functools.lru_cache(maxsize=64)
def _find_damage(folder: Path, suffixes: tuple[str, ...] | None, signature: tuple) -> tuple[str, ...]:
    try:
        checksums = _read(folder / CHECKSUMS)
    except ValueError as error:
        return (str(error),)
    began, found = time.perf_counter(), []
    for name, expected in checksums.items():
        if suffixes is None or name.endswith(suffixes):
            found += _damage_of_file(folder / name, name, expected)
    seconds = time.perf_counter() - began
    if seconds > SLOW:
        size = sum(expected["size"] for expected in checksums.values()) / 1e9
        logger.info(f"compared {folder} with its checksums: {size:.1f} GB in {seconds:.0f} s")
    return tuple(found)


def _damage_of_file(path: Path, name: str, expected: dict) -> list[str]:
    if not path.is_file():
        return [f"{name} is missing"]
    size = path.stat().st_size
    if size != expected["size"]:
        kind = "is truncated" if size < expected["size"] else "is too long"
        return [f"{name} {kind}: it has {size} bytes, and had {expected['size']} when it was saved"]
    try:
        digest = _sha256(path)
    except OSError as error:  # a disk that fails
        return [f"{name} cannot be read: {error.strerror}"]
    return [] if digest == expected["sha256"] else [f"{name} differs from what was saved (SHA-256)"]


def _read(path: Path) -> dict[str, dict]:
    try:
        checksums = json.loads(path.read_bytes())
        is_valid = isinstance(checksums, dict) and all(
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
            for entry in checksums.values()
        )
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON") from error
    if not is_valid:
        raise ValueError(f"{path.name} does not hold a size and a SHA-256 for each file")
    return checksums


def _files(folder: Path) -> dict[str, Path]:
    paths = ((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return dict(paths)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
