# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Recipes: the arguments of a training, such as the settings of a table of the paper, in a JSON file.

A recipe maps names of arguments to values and may have a `description`. Arguments on the command line override the
recipe, which overrides the defaults.
"""

import json
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path


def insert_recipe(arguments: Sequence[str], argument_classes: Sequence[type]) -> list[str]:
    """The command line, preceded by the arguments of its `--recipe`."""
    path = find_option("--recipe", arguments)
    return [*([] if path is None else read_recipe(path, argument_classes)), *arguments]


def find_option(name: str, arguments: Sequence[str]) -> str | None:
    """The value of an option; the last one if there are several, as argparse takes it."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None]):
        if argument == name:
            value = following
        elif argument.startswith(f"{name}="):
            value = argument.removeprefix(f"{name}=")
    return value


def read_recipe(path: str, argument_classes: Sequence[type]) -> list[str]:
    """
    Read a recipe as command-line arguments.

    Args:
        path (`str`): The JSON file.
        argument_classes (`Sequence[type]`): Dataclasses whose fields a recipe may set.

    Raises:
        ValueError: if the file cannot be read, or a key is unknown or has a value of the wrong type.
    """
    # Not `field.type`, which HfArgumentParser overwrites.
    hints = {name: hint for arguments in argument_classes for name, hint in typing.get_type_hints(arguments).items()}
    del hints["recipe"]
    for option in (option for arguments in argument_classes for option in fields(arguments)):
        hints |= {alias.removeprefix("--"): hints[option.name] for alias in option.metadata.get("aliases", ())}
    command_line = []
    for key, value in _read_object(path).items():
        if key == "description":
            continue
        if key not in hints:
            raise ValueError(f"--recipe {path} has the unknown key {key!r}; known are {sorted(hints)}")
        if not _fits(value, hints[key]):
            raise ValueError(f"--recipe {path}: {key!r} must be {_describe(hints[key])}, got {value!r}")
        command_line += _as_option(key, value)
    return command_line


def _read_object(path: str) -> dict[str, object]:
    try:
        recipe = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"--recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--recipe {path} is not valid JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"--recipe {path} must hold one JSON object, got {type(recipe).__name__}")
    return recipe


def _as_option(key: str, value: object) -> list[str]:
    """A setting as on the command line; null and an empty list leave the default."""
    if value is None or value == []:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _fits(value: object, hint: type) -> bool:
    """Whether a JSON value has the type of an annotation."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: type) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_origin(hint) else str(hint)
