# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The checkpoint that comes with the package, to try without a network."""

from pathlib import Path


CHECKPOINTS = Path(__file__).with_name("checkpoints")


def shipped_checkpoint(name: str = "clustr-nano-cifar10") -> Path:
    """
    Folder of a checkpoint that comes with the package, for `from_pretrained`.

    `clustr-nano-cifar10` classifies images into the ten classes of CIFAR-10; its card is the folder's README.md. The
    folder is a whole repository: with `trust_remote_code=True` it also runs where the package is not imported.

    Args:
        name (`str`): Its name.

    Raises:
        ValueError: if there is none of this name.
    """
    names = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"`name` must be one of {names}, got {name!r}.")
    return CHECKPOINTS / name
