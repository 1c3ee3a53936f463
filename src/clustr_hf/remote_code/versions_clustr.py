# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The oldest releases of transformers and torch that this code runs with.

Every file that a repository's configuration names imports this one first: the error for an older release says which one
is needed and which one is installed, before an import of something that it lacks fails.
"""

import re

import torch
import transformers


MINIMUM_VERSIONS = {"transformers": "5.20", "torch": "2.6"}


def check_version(name: str, installed: str):
    """
    Args:
        name (`str`): One of [`MINIMUM_VERSIONS`].
        installed (`str`): Its `__version__`.

    Raises:
        ImportError: if it is too old.
    """
    needed = MINIMUM_VERSIONS[name]
    if _major_and_minor(installed) < _major_and_minor(needed):
        raise ImportError(
            f"ClusTR needs {name} {needed} or newer, but {name} {installed} is installed. "
            f'Run `pip install --upgrade "{name}>={needed}"`.'
        )


def _major_and_minor(version: str) -> tuple[int, ...]:
    """`"5.20.0.dev0"` -> `(5, 20)`."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


for _library in (transformers, torch):
    check_version(_library.__name__, _library.__version__)
