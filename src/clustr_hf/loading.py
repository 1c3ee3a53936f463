# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Load trained models; a missing weight, which `from_pretrained` only warns of, is an error."""

import importlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from .remote_code.handler_clustr import pipeline_task


def load_trained(
    name_or_path: str | Path, model_class: type[PreTrainedModel] | None = None, **arguments: Any
) -> PreTrainedModel:
    """
    Load the model of a checkpoint in evaluation mode, with every weight from the checkpoint.

    Args:
        name_or_path (`str` or `Path`): Folder, or id on the Hub.
        model_class (`type`, *optional*):
            A class of this package, such as [`ClusTRModel`], whose weights are part of every checkpoint. Default: the
            class that was saved.
        arguments: Further arguments of `from_pretrained`, such as `revision` or a field of the configuration.

    Raises:
        ValueError: if the checkpoint is not a ClusTR model, lacks weights of the class, or cannot be read.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, **arguments)
    pipeline_task(config)  # raises unless it is a ClusTR model
    saved_class = getattr(importlib.import_module(__package__), config["architectures"][0])
    model_class = model_class or saved_class
    with naming_unreadable_weights("`name_or_path`", name_or_path):
        model, report = model_class.from_pretrained(name_or_path, output_loading_info=True, **arguments)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"`name_or_path` {name_or_path} must have all weights of {model_class.__name__}, but is a checkpoint "
            f"of {saved_class.__name__} and lacks {len(missing)} of them: {', '.join(missing[:4])}."
        )
    return model.eval()


@contextmanager
def naming_unreadable_weights(argument: str, name_or_path: str | Path) -> Iterator[None]:
    """
    A context for `from_pretrained` whose errors name the unreadable file, unlike those of `from_pretrained` itself.

    Args:
        argument (`str`): Name of the argument that gave the checkpoint, for the message.
        name_or_path (`str` or `Path`): Folder, or id on the Hub.

    Raises:
        ValueError: if a weights file is truncated or of another format; names the file if the checkpoint is a folder.
    """
    try:
        yield
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        names = ", ".join(_unreadable_files(Path(name_or_path))) or "one of its files"
        raise ValueError(
            f"{argument} {name_or_path} has weights that cannot be read, in {names}: {error}. "
            f"The file is truncated or has another format than its name says: copy or download it again."
        ) from error


def _unreadable_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError):
            yield path.name


__all__ = ["load_trained"]
