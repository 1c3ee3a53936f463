# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The files of a Hub repository: weights, configurations, card, pictures, results, and code.

The code files come from the folder `clustr_hf/remote_code`: a repository holds the files of its model and image
processor and all files that these import, which `repository.py` and `save_pretrained` copy. `handler_clustr.py` is
uploaded as `handler.py`, the name that Inference Endpoints look for.
"""

import re
from pathlib import Path

from .. import remote_code
from .card import CARD, PICTURES


CODE_FOLDER = Path(remote_code.__file__).parent
HANDLER_SOURCE = CODE_FOLDER / "handler_clustr.py"
CODE_FILES = frozenset(path.name for path in CODE_FOLDER.glob("*.py")) - {"__init__.py", HANDLER_SOURCE.name}

HANDLER = "handler.py"
REQUIREMENTS = "requirements.txt"
CONFIG = "config.json"
PROCESSOR_CONFIG = "preprocessor_config.json"
REQUIRED_FILES = (CONFIG, PROCESSOR_CONFIG, HANDLER, REQUIREMENTS, CARD)
# Results that a training script writes beside a model.
RESULTS = ("all_results.json", "log_history.json", "per_class_results.json", "per_part_results.json")
IMAGES = "images"

# No pattern admits a pickle.
_FIXED_NAMES = frozenset({*REQUIRED_FILES, *PICTURES, *RESULTS, *CODE_FILES})
_WEIGHTS = re.compile(r"model[^/]*\.safetensors(\.index\.json)?")
_EXAMPLE_IMAGE = re.compile(rf"{IMAGES}/\d+-[a-z0-9-]+\.png")
# Code files of any release; those with other names than in `CODE_FILES` are removed, never uploaded.
_CODE_OF_ANY_RELEASE = re.compile(r"[^/]+_clustr(_\w+)?\.py")
# Weights of earlier pushes by other means, which loaders must not find beside the new ones.
_PICKLED_WEIGHTS = re.compile(r"pytorch_model[^/]*\.bin(\.index\.json)?")


def is_uploaded(name: str) -> bool:
    """Whether a file of this path, relative to its folder, is pushed with a repository."""
    return name in _FIXED_NAMES or any(pattern.fullmatch(name) for pattern in (_WEIGHTS, _EXAMPLE_IMAGE))


def is_outdated_code(name: str) -> bool:
    """Whether a file is code of another release that the code of this release does not import."""
    return name not in CODE_FILES and _CODE_OF_ANY_RELEASE.fullmatch(name) is not None


def is_replaceable(name: str) -> bool:
    """Whether a file of an earlier repository may be overwritten or removed when a new one takes its place."""
    return is_uploaded(name) or is_outdated_code(name)


def is_removed_on_push(name: str) -> bool:
    """Whether a file on the Hub is removed by a push that does not contain it."""
    return is_replaceable(name) or _PICKLED_WEIGHTS.fullmatch(name) is not None


def outdated_code(folder: Path) -> list[str]:
    """Names of the code files of other releases in a folder."""
    return sorted(path.name for path in folder.glob("*.py") if is_outdated_code(path.name))


def repository_files(folder: str | Path) -> list[str]:
    """
    Paths of the files of a repository, relative to its folder; other files in the folder are left out.

    Raises:
        ValueError: if a required file is missing.
    """
    folder = Path(folder)
    paths = sorted([*folder.glob("*"), *folder.glob(f"{IMAGES}/*")])
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    uploaded = [name for name in names if is_uploaded(name)]
    missing = [name for name in REQUIRED_FILES if name not in uploaded]
    if missing or not any(name.endswith(".safetensors") for name in uploaded):
        raise ValueError(f"`folder` {folder} must be a repository, but lacks {missing or 'weights (safetensors)'}.")
    return uploaded
