# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The pretrained checkpoint that the package ships with."""

from pathlib import Path


CHECKPOINTS = Path(__file__).with_name("checkpoints")


def bundled_checkpoint(name: str = "clustr-nano-cifar10") -> Path:
    """
    Folder of a checkpoint that the package ships with, for `from_pretrained`.

    `clustr-nano-cifar10` classifies images into the ten classes of CIFAR-10; its card is the README.md in the folder.
    The folder is a complete repository, which also runs without the package (`trust_remote_code=True`).

    Args:
        name (`str`, defaults to `"clustr-nano-cifar10"`): Name of the checkpoint.

    Raises:
        ValueError: if there is no checkpoint of this name.
    """
    names = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"`name` must be one of {names}, got {name!r}.")
    return CHECKPOINTS / name


shipped_checkpoint = bundled_checkpoint  # the earlier name

__all__ = ["bundled_checkpoint", "shipped_checkpoint"]
