# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
How much a trained model uses its attention: its score with the attention of all blocks switched off.

The output projections of the attention are set to zero, so that every block adds nothing in place of its attention. The
training script evaluates the changed weights on the images that the run held out.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from clustr_hf.training.attention_off import OUTPUT_PROJECTION
from clustr_hf.training.checksums import CHECKSUMS
from clustr_hf.training.report import EVALUATION


WEIGHTS = "model.safetensors"
# The folder of the evaluation within that of the run.
FOLDER = "attention-off"


def evaluate_without_attention(run, threads: int | None = None) -> None:
    """
    Evaluate a complete run with its attention switched off, unless that is done or the model has no attention.

    Args:
        run (`Run`): The results are written to its folder.
        threads (`int`, *optional*): Number of CPU threads. Default: chosen by torch.

    Raises:
        RuntimeError: if the script failed.
    """
    if not run.has_attention or (run.folder / FOLDER / EVALUATION).is_file():
        return
    with tempfile.TemporaryDirectory(dir=run.folder) as changed:
        switch_attention_off(run.folder, Path(changed))
        saved = {"eval_only": True, "model_name_or_path": changed, "config_overrides": {}}  # its own configuration
        run.execute(Path(changed) / "out", saved, threads)
        (run.folder / FOLDER).mkdir(exist_ok=True)
        shutil.copy(Path(changed) / "out" / EVALUATION, run.folder / FOLDER / EVALUATION)


def switch_attention_off(source: Path, target: Path) -> None:
    """
    Copy a saved model to another folder, with the output projections of its attention set to zero.

    Raises:
        ValueError: if the model has no such projections.
    """
    weights = load_file(source / WEIGHTS)
    names = [name for name in weights if OUTPUT_PROJECTION.fullmatch(name)]
    if not names:
        raise ValueError(f"{source / WEIGHTS} must have output projections of attention, but has none")
    for name in names:
        weights[name] = torch.zeros_like(weights[name])
    for path in source.glob("*.json"):
        if path.name != CHECKSUMS:  # those of the weights as they were
            shutil.copy(path, target)
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
