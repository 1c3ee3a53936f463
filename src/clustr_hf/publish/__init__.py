# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Repositories for the Hub: assemble one in a folder, check that it runs without this package, push it in one commit.

A repository holds the weights (safetensors), the configuration, the image processor, the code files of
`clustr_hf/remote_code` that they need, `handler.py` and `requirements.txt` for Inference Endpoints, and a card.
"""

from .card import CardContents
from .files import CARD, CODE_FILES, CONFIG, HANDLER, REQUIREMENTS, RESULTS, repository_files
from .hub import full_repository_id, push, push_space
from .repository import build_repository, complete_repository, package_requirements, refresh_repository
from .validation import validate_repository


__all__ = [
    "CARD",
    "CODE_FILES",
    "CONFIG",
    "HANDLER",
    "REQUIREMENTS",
    "RESULTS",
    "CardContents",
    "build_repository",
    "complete_repository",
    "full_repository_id",
    "package_requirements",
    "push",
    "push_space",
    "refresh_repository",
    "repository_files",
    "validate_repository",
]
