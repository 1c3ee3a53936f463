# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Repositories for the Hub and their cards."""

from .card import CardContents
from .repository import (
    CARD,
    CODE_FILE,
    CONFIG,
    HANDLER,
    KNOWN_FILE,
    REQUIREMENTS,
    RESULTS,
    build_repository,
    complete_repository,
    full_repository_id,
    package_requirements,
    push,
    push_space,
    refresh_repository,
    repository_files,
    validate_repository,
)


__all__ = [
    "CARD",
    "CODE_FILE",
    "CONFIG",
    "HANDLER",
    "KNOWN_FILE",
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
