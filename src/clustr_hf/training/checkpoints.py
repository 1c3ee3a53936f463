# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The checkpoints of a run, and the atomic writes of files and folders behind them.

A folder is written under a name that ends in `.incomplete`, flushed to the disk, and then renamed, which is atomic. A
folder without that ending is therefore complete, even after a kill. All machines must share the disk.

Before a run resumes from a folder, its checksums show whether it was damaged later, on the disk or in a copy.
"""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from .checksums import CHECKSUMS, checked_files, find_damage, write_checksums
from .distributed import decided_by_main_process


logger = logging.getLogger(__name__)
INCOMPLETE = ".incomplete"
STATE_FILE = "training_state.json"
# The files in which Accelerate saves the weights and the first registered object, the moving average.
WEIGHTS, AVERAGE = "model.safetensors", "custom_checkpoint_0.pkl"
# The errors of torch, safetensors and Accelerate for damaged files.
LOADING_ERRORS = (OSError, EOFError, KeyError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)
# Key in the state of a checkpoint with checksums; older checkpoints have neither the key nor checksums.
MARK = "checksums"


@dataclass
class TrainingState:
    """The state of a run besides its weights and its optimizer."""

    step: int = 0
    pending_losses: list[float] = field(default_factory=list)  # of the steps since the last log entry
    log_history: list[dict] = field(default_factory=list)
    best_metric: float | None = None
    best_step: int | None = None
    skipped: list[str] = field(default_factory=list)  # samples that could not be read
    seconds: float = 0.0
    fingerprint: dict = field(default_factory=dict)  # settings that determine the order of the data
    class_names: list[str] | None = None  # in the order of the model's outputs

    def save(self, folder: Path) -> None:
        (folder / STATE_FILE).write_text(json.dumps({MARK: CHECKSUMS, **asdict(self)}))

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        """
        Load the state of a checkpoint.

        Raises:
            ValueError: if the file is missing or does not hold a state.
        """
        return cls(**{name: value for name, value in _read_state(folder).items() if name != MARK})


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    known = {*TrainingState.__dataclass_fields__, MARK}
    if not isinstance(content, dict) or not isinstance(content.get("step"), int) or not content.keys() <= known:
        raise ValueError(f"{path} does not hold the state of a training")
    return content


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see either the old or the new content."""
    temporary = path.with_name(path.name + INCOMPLETE)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_folder(folder: Path, write: Callable[[Path], None], accelerator: Accelerator) -> None:
    """
    Write a folder atomically. All processes must call it.

    Args:
        folder (`Path`): The folder to write; an existing one is replaced.
        write (`Callable[[Path], None]`): Writes the content to a temporary folder; all processes call it.
        accelerator (`Accelerator`): Accelerator of the run.

    Raises:
        OSError: if the folder cannot be written, for example because the disk is full; no part of it remains.
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
            write_checksums(temporary)
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
    """Flush all files of a folder to the disk."""
    for path in folder.rglob("*"):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that a kill leaves no incomplete folder under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}-removed{INCOMPLETE}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def numbered_folders(output_dir: Path, name: str) -> list[Path]:
    """The folders `<name>-<step>`, in the order of their steps."""
    found = [path for path in output_dir.glob(f"{name}-*") if re.fullmatch(rf"{name}-\d+", path.name) and path.is_dir()]
    return sorted(found, key=folder_step)


def folder_step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def prune(output_dir: Path, name: str, keep: int, newest: int) -> None:
    """
    Remove all but the last `keep` numbered folders up to step `newest`, the oldest first. Later folders, which are
    damaged or belong to a run that was resumed before them, are ignored.
    """
    folders = [folder for folder in numbered_folders(output_dir, name) if folder_step(folder) <= newest]
    for folder in folders[:-keep]:
        remove_folder(folder)


def remove_incomplete(output_dir: Path) -> None:
    """Remove the unfinished files and folders of a killed run."""
    for path in output_dir.glob(f"*{INCOMPLETE}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def prepare_folder(output_dir: Path, accelerator: Accelerator) -> None:
    """
    Make the output folder of a run and remove unfinished files of a killed run. All processes must call it.

    Raises:
        ValueError: if the machines do not share the disk: they do not see a mark that the main process leaves.
    """
    mark = output_dir / f"mark-{gather_object([os.getpid()])[0]}{INCOMPLETE}"
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_incomplete(output_dir)
        mark.touch()
    accelerator.wait_for_everyone()
    if not mark.is_file():
        raise ValueError(f"--output_dir {output_dir} must be on a disk that all machines share")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        mark.unlink()


def damage_of_checkpoint(folder: Path) -> list[str]:
    """Describe the damage of a checkpoint, one sentence for each file. Without checksums, only the state is checked."""
    if not has_checksums(folder):
        try:
            mark = _read_state(folder).get(MARK)
        except ValueError as error:
            return [str(error).removeprefix(f"{folder}{os.sep}")]
        return [f"{CHECKSUMS} is missing"] if mark else []
    damage = find_damage(folder)
    if damage:
        return damage
    listed = checked_files(folder)
    found = [f"{STATE_FILE} has no checksum"] if STATE_FILE not in listed else []
    added = [name for name in (WEIGHTS, AVERAGE) if name not in listed and (folder / name).exists()]
    return found + [f"{name} was added after it was saved" for name in added]


def has_checksums(folder: Path) -> bool:
    return (folder / CHECKSUMS).is_file()


def find_checkpoint(output_dir: Path, resume_from: str | None, announce: bool = True) -> Path | None:
    """
    Find the checkpoint to resume from; None to start fresh. All processes must call it and get the same answer.

    Args:
        output_dir (`Path`): Output folder of the run.
        resume_from (`str`, *optional*): A checkpoint folder, or `"latest"` for the latest complete checkpoint.
        announce (`bool`): Whether to warn of damaged checkpoints and of checkpoints without checksums.

    Raises:
        ValueError: if the folder is not a checkpoint or is damaged; if all checkpoints are damaged; or if no checkpoint
            is requested although the output folder has some, which would get mixed with those of the new run.
    """
    return decided_by_main_process(lambda: _find_checkpoint(output_dir, resume_from, announce))


def _find_checkpoint(output_dir: Path, resume_from: str | None, announce: bool) -> Path | None:
    existing = numbered_folders(output_dir, "checkpoint")
    if resume_from is None:
        if existing:
            raise ValueError(
                f"--output_dir {output_dir} has {existing[-1].name} of an earlier run: resume it with "
                f"--resume_from_checkpoint latest, or use another folder"
            )
        return None
    chosen = _last_undamaged(existing, announce) if resume_from == "latest" else _named(Path(resume_from), output_dir)
    if announce and chosen is not None and not has_checksums(chosen):
        logger.warning(f"{chosen} has no {CHECKSUMS}: damage to its files cannot be detected")
    return chosen


def _named(folder: Path, output_dir: Path) -> Path:
    if not (folder / STATE_FILE).is_file() and not has_checksums(folder):
        raise ValueError(
            f"--resume_from_checkpoint {folder} is not a checkpoint: it has no {STATE_FILE}. "
            f"Checkpoints in {output_dir}: {_names(numbered_folders(output_dir, 'checkpoint'))}"
        )
    damage = damage_of_checkpoint(folder)
    if damage:
        others = numbered_folders(folder.resolve().parent, "checkpoint")
        undamaged = [path for path in others if path != folder.resolve() and not damage_of_checkpoint(path)]
        raise ValueError(
            f"--resume_from_checkpoint {folder} is damaged: {'; '.join(damage)}. Undamaged checkpoints beside it: "
            f"{_names(undamaged)}"
        )
    return folder


def _last_undamaged(existing: list[Path], announce: bool) -> Path | None:
    """The last undamaged checkpoint; None if there are no checkpoints."""
    damaged = []
    for folder in reversed(existing):
        damage = damage_of_checkpoint(folder)
        if not damage:
            if announce:
                for message in damaged:
                    logger.warning(f"{message}; falling back to {folder.name}")
            return folder
        damaged.append(f"{folder} is damaged: {'; '.join(damage)}")
    if damaged:
        raise ValueError(
            f"--resume_from_checkpoint latest finds no undamaged checkpoint: {'. '.join(damaged)}. To start fresh, "
            f"remove them or use another --output_dir"
        )
    return None


def _names(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders) or "none"


def describe_last_good(output_dir: Path, step: int) -> str:
    """Name the last checkpoint up to a step, for the error of a run that fails."""
    checkpoints = [folder for folder in numbered_folders(output_dir, "checkpoint") if folder_step(folder) <= step]
    return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
