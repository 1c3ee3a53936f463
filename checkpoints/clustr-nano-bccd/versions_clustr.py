# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Minimum versions of transformers and torch.

Every file that is named in the configuration of a repository imports this one first. With an older release, the error
then names the required and the installed version, rather than the first missing import.
"""

import re

import torch
import transformers


MINIMUM_VERSIONS = {"transformers": "5.20", "torch": "2.6"}


def check_version(name: str, installed: str) -> None:
    """
    Check an installed version.

    Args:
        name (`str`): A library in [`MINIMUM_VERSIONS`].
        installed (`str`): `__version__` of the library.

    Raises:
        ImportError: if the version is too old.
    """
    needed = MINIMUM_VERSIONS[name]
    if _major_and_minor(installed) < _major_and_minor(needed):
        raise ImportError(
            f"ClusTR requires {name} {needed} or newer, but {name} {installed} is installed. "
            f'Run `pip install --upgrade "{name}>={needed}"`.'
        )


def _major_and_minor(version: str) -> tuple[int, ...]:
    """`"5.20.0.dev0"` -> `(5, 20)`."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


for _library in (transformers, torch):
    check_version(_library.__name__, _library.__version__)
