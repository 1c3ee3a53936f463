# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The trained model: saved with processor, card and results in the output folder, and pushed to the Hub."""

import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors.torch import save_model
from torch import nn

from ..publish import push
from .checkpoints import WEIGHTS, write_folder, write_json
from .report import CURVE, RESULTS
from .task import Task


logger = get_logger(__name__)


def save_pretrained(model: nn.Module, task: Task, folder: Path) -> None:
    """Save model and processor for `from_pretrained`; for a plain `nn.Module`, save only the weights as safetensors."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        save_model(model, str(folder / WEIGHTS))
    if task.processor is not None:
        task.processor.save_pretrained(folder)


def write_outputs(
    output_dir: Path, save_into: Callable[[Path], None], task: Task, results: dict[str, float], accelerator: Accelerator
) -> None:
    """
    Write model, processor, card and results to the output folder, each file atomically. All processes must call it.

    Args:
        output_dir (`Path`): Output folder of the run.
        save_into (`Callable[[Path], None]`): Saves model and processor in a folder; all processes call it.
        task ([`Task`]): Its `write_card` completes the folder.
        results (`dict[str, float]`): Content of `all_results.json`.
        accelerator (`Accelerator`): Accelerator of the run.
    """
    staging = output_dir / "model"

    def write(folder: Path):
        save_into(folder)
        if accelerator.is_main_process:
            write_json(folder / RESULTS, results)
            if (output_dir / CURVE).is_file():  # shown on the card
                shutil.copy(output_dir / CURVE, folder)
            if task.write_card is not None:
                task.write_card(folder, results)

    write_folder(staging, write, accelerator)
    if accelerator.is_main_process:
        # Results are moved last: their presence means that the output is complete.
        for path in sorted(staging.iterdir(), key=lambda path: path.name == RESULTS):
            path.replace(output_dir / path.name)
        shutil.rmtree(staging)
    accelerator.wait_for_everyone()


def push_outputs(output_dir: Path, repository: str, message: str, must_succeed: bool) -> None:
    """Push the output folder to the Hub. Without `must_succeed`, a failure is only logged and training continues."""
    try:
        revision = push(output_dir, repository, commit_message=message, validate=must_succeed)
        logger.info(f"Pushed {repository}; pin its revision={revision}")
    except Exception as error:
        if must_succeed:
            raise
        logger.warning(f"could not push {message!r}, training continues: {error}")
