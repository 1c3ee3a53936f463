# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Files and folders that are whole or not there at all, and the checkpoints of a run.

A folder is written under a name that ends in `.incomplete`, flushed to the disk, and then renamed, which is atomic:
whenever the process is killed, every folder without that ending is complete. All processes must see the same disk.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError


INCOMPLETE = ".incomplete"
STATE_FILE = "training_state.json"


@dataclass
class TrainingState:
    """What a run knows of its past, apart from weights and the optimizer's moments."""

    step: int = 0
    pending_losses: list[float] = field(default_factory=list)  # since the last log entry
    log_history: list[dict] = field(default_factory=list)
    best_metric: float | None = None
    best_step: int | None = None
    skipped: list[str] = field(default_factory=list)  # samples that could not be read
    seconds: float = 0.0
    fingerprint: dict = field(default_factory=dict)  # what must be the same for the position to mean the same
    class_names: list[str] | None = None  # in the order of the model's outputs

    def save(self, folder: Path):
        (folder / STATE_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        return cls(**json.loads((folder / STATE_FILE).read_text()))


def write_atomically(path: Path, content: str | bytes):
    """Write a file that a reader finds either as it was or as it will be."""
    temporary = path.with_name(path.name + INCOMPLETE)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object):
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_folder(folder: Path, write: Callable[[Path], None], accelerator: Accelerator):
    """
    Make a folder by `write(temporary folder)`, which every process calls, and give it its name when it is whole.

    Raises:
        OSError: if it could not be written, for example because the disk is full; nothing is left then.
    """
    temporary = folder.with_name(folder.name + INCOMPLETE)
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write(temporary)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _flush(temporary)
            remove_folder(folder)
            temporary.rename(folder)
            _flush_entry(folder.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError for a full disk
        free = shutil.disk_usage(folder.parent).free / 1e9
        raise OSError(
            f"{folder} could not be written and was removed ({free:.2f} GB are free): {type(error).__name__}: {error}"
        ) from error
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()


def _flush(folder: Path):
    """Make sure that all files are on the disk, not only in memory."""
    for path in folder.rglob("*"):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path):
    """Remove a folder so that a kill in between leaves no half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}-removed{INCOMPLETE}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def numbered_folders(output_dir: Path, name: str) -> list[Path]:
    """Folders `<name>-<step>` in order of their steps."""
    found = [path for path in output_dir.glob(f"{name}-*") if re.fullmatch(rf"{name}-\d+", path.name) and path.is_dir()]
    return sorted(found, key=folder_step)


def folder_step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def prune(output_dir: Path, name: str, keep: int):
    """Remove all but the last `keep` of `numbered_folders`, the oldest first."""
    for folder in numbered_folders(output_dir, name)[:-keep]:
        remove_folder(folder)


def remove_incomplete(output_dir: Path):
    """Remove what a killed run was writing."""
    for path in output_dir.glob(f"*{INCOMPLETE}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def find_checkpoint(output_dir: Path, resume_from: str | None) -> Path | None:
    """
    The checkpoint to go on from; None to begin.

    Args:
        output_dir (`Path`): Where the run writes.
        resume_from (`str`, *optional*): A checkpoint folder, or `"latest"`.

    Raises:
        ValueError: if the folder is no checkpoint, or none was asked for and there are some, which would be mixed with
            those of another run.
    """
    existing = numbered_folders(output_dir, "checkpoint")
    if resume_from == "latest":
        return existing[-1] if existing else None
    if resume_from is not None:
        if not (Path(resume_from) / STATE_FILE).is_file():
            raise ValueError(
                f"--resume_from_checkpoint {resume_from} is not a checkpoint: there is no {STATE_FILE} in it. "
                f"Checkpoints in {output_dir}: {', '.join(path.name for path in existing) or 'none'}"
            )
        return Path(resume_from)
    if existing:
        raise ValueError(
            f"--output_dir {output_dir} has {existing[-1].name} of an earlier run: go on with "
            f"--resume_from_checkpoint latest, or use another folder"
        )
    return None
