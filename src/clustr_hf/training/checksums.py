# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Checksums of saved folders: `checksums.json` lists the size and the SHA-256 of every other file in a folder.

A run writes the checksums before the folder gets its final name, and compares them before it reads the folder. This
finds files that a failing disk or an interrupted copy has changed, even if their weights would load without an error.
"""

import functools
import hashlib
import json
import logging
import time
from pathlib import Path

from .distributed import is_main_process


logger = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"
SLOW = 1.0  # seconds after which a comparison is logged


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` for all files in a folder and its subfolders: `{name: {"size": bytes, "sha256": hex}}`."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    checksums = {
        name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in sorted(_files(folder).items())
    }
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1) + "\n")


def find_damage(folder: Path, suffixes: tuple[str, ...] | None = None) -> list[str]:
    """
    Compare the files of a folder with its `checksums.json`.

    Files without a checksum are ignored. The result is cached until the size or the modification time of a file
    changes.

    Args:
        folder (`Path`): A folder with `checksums.json`.
        suffixes (`tuple[str, ...]`, *optional*): Suffixes of the files to compare. Default: all files.

    Returns:
        `list[str]`: one sentence for each damaged file, which names the file.
    """
    stats = {name: path.stat() for name, path in _files(folder).items()}
    signature = tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()))
    return list(_find_damage(folder.resolve(), suffixes, signature))


def checked_files(folder: Path) -> set[str]:
    """
    The names of the files that `checksums.json` lists.

    Raises:
        ValueError: if `checksums.json` cannot be read.
    """
    return set(_read(folder / CHECKSUMS))


def warn_of_changed_weights(folder: Path) -> None:
    """Warn of weights that have changed since a run saved the folder; the user may have replaced them on purpose."""
    if not (folder / CHECKSUMS).is_file() or not is_main_process():
        return
    for damage in find_damage(folder, (".safetensors", CHECKSUMS)):
        logger.warning(
            f"{folder} is not as the training saved it: {damage}; if this is intended, remove its {CHECKSUMS}"
        )


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
    except OSError as error:  # a failing disk
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
