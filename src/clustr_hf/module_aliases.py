# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Modules of `remote_code` under the paths of earlier releases: `clustr_hf.modeling_clustr` and so on."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class AliasFinder(MetaPathFinder, Loader):
    """
    Imports a module of one package under the name of another, as the same module and only when it is asked for: the
    kernels among them need Triton.

    Args:
        alias (`str`): Name of the package that the modules seem to belong to.
        package (`str`): Name of the package that has them.
    """

    def __init__(self, alias: str, package: str):
        self.alias, self.package = alias, package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent != self.alias or importlib.util.find_spec(f"{self.package}.{name}") is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{self.package}.{spec.name.rpartition('.')[2]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # the import system has replaced it


def add_aliases(alias: str, package: str) -> None:
    """Let modules of `package` be imported as modules of `alias`, too; those already imported become its attributes."""
    sys.meta_path.append(AliasFinder(alias, package))
    for path in tuple(sys.modules):
        parent, _, name = path.rpartition(".")
        if parent == package:
            importlib.import_module(f"{alias}.{name}")
