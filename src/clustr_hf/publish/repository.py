# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Assemble a Hub repository in a folder, and update the code of an existing one."""

import importlib
import importlib.metadata
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from ..remote_code.handler_clustr import RequestError, pipeline_task, read_image
from .card import PICTURES, CardContents, load_card, widget_sources, write_model_card
from .files import (
    CARD,
    CODE_FILES,
    CONFIG,
    HANDLER,
    HANDLER_SOURCE,
    IMAGES,
    PROCESSOR_CONFIG,
    REQUIREMENTS,
    RESULTS,
    is_replaceable,
    is_uploaded,
    outdated_code,
)


# The packages that an endpoint needs, a subset of the requirements of clustr_hf.
ENDPOINT_REQUIREMENTS = ("numpy", "pillow", "safetensors", "torch", "torchvision", "transformers")


def build_repository(
    model: PreTrainedModel,
    processor: Any,
    folder: str | Path,
    card: CardContents | str | Path | None = None,
    example_images: Mapping[str, Image.Image | str | Path] | None = None,
    files: Sequence[str | Path] = (),
) -> Path:
    """
    Write a complete Hub repository to a folder.

    Args:
        model (`PreTrainedModel`):
            A ClusTR model with or without a head, from the package or loaded with remote code.
        processor (`BaseImageProcessor`):
            Its image processor.
        folder (`str` or `Path`):
            Folder to write. An existing folder is replaced if it holds nothing but an earlier repository. The folder is
            complete whenever it exists.
        card ([`CardContents`], `str` or `Path`, *optional*):
            Contents of the card that cannot be read from the checkpoint; or the path of an existing card, a README.md.
        example_images (`Mapping[str, PIL.Image.Image | str | Path]`, *optional*):
            Title -> image that the Hub offers to try, which must satisfy the limits of the handler; the images are
            copied to `images/`. Default: photographs on the Hub.
        files (`Sequence[str | Path]`, *optional*):
            Pictures and results to copy; their names must be in `card.PICTURES` or [`RESULTS`].

    Returns:
        `Path` of the folder.

    Raises:
        FileExistsError: if the folder holds anything else.
        ValueError: for a model of an unknown class, a card without metadata, example images that the handler refuses,
            and `files` of other names.
    """
    folder = Path(folder).resolve()
    check_replaceable(folder)
    for path in map(Path, files):
        if path.name not in (*PICTURES, *RESULTS):
            raise ValueError(f"`files` must have names of {[*PICTURES, *RESULTS]}, got {path}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staging = Path(temporary) / folder.name  # the same name, since it becomes the title of the card
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        for path in files:
            shutil.copy(path, staging)
        widget = _write_images(staging, example_images or {}, processor)
        complete_repository(staging, card, widget)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    return folder


def complete_repository(
    folder: str | Path, card: CardContents | str | Path | None = None, widget: Mapping[str, str] | None = None
) -> None:
    """
    Complete a saved checkpoint to a repository: add handler, requirements and card.

    Code files of another release are replaced by those of this package, as in [`refresh_repository`].

    Args:
        folder (`str` or `Path`): Folder in which `save_pretrained` has saved model and processor.
        card ([`CardContents`], `str` or `Path`, *optional*): As in [`build_repository`].
        widget (`Mapping[str, str]`, *optional*): Title -> address of images to try, relative to the folder.

    Raises:
        FileNotFoundError: if there is no configuration.
        ValueError: for a model of an unknown class, and a card without metadata.
    """
    folder = Path(folder)
    if card is None or isinstance(card, CardContents):
        write_model_card(folder, card, widget)
    else:
        _copy_card(Path(card), folder, widget)
    if outdated_code(folder):
        refresh_repository(folder)
    _write_endpoint_files(folder)


def refresh_repository(folder: str | Path) -> None:
    """
    Update the code of a checkpoint to that of this package: the code files, the `auto_map` of both configurations,
    `handler.py` and `requirements.txt`. Weights, card and all other fields of the configurations stay as they are.

    Args:
        folder (`str` or `Path`): A checkpoint, with or without code.

    Raises:
        FileNotFoundError: if there is no configuration of the model or of the image processor.
        ValueError: if the model or the image processor is of an unknown class; nothing is written.
    """
    folder, package = Path(folder), importlib.import_module("clustr_hf")
    configs = {name: json.loads((folder / name).read_text()) for name in (CONFIG, PROCESSOR_CONFIG)}
    pipeline_task(configs[CONFIG])  # raises unless it is a ClusTR model
    model_class = getattr(package, configs[CONFIG]["architectures"][0])
    processor_name = configs[PROCESSOR_CONFIG].get("image_processor_type")
    if processor_name not in package.__all__:
        raise ValueError(f"`image_processor_type` must be a class of clustr_hf in {folder}, got {processor_name!r}.")
    processor_class = getattr(package, processor_name)
    configs[CONFIG].update(auto_map=model_class._auto_map)
    configs[CONFIG].pop("custom_pipelines", None)
    if model_class._custom_pipelines:
        configs[CONFIG].update(custom_pipelines=model_class._custom_pipelines)
    reference = f"{processor_class.__module__.rpartition('.')[2]}.{processor_name}"
    configs[PROCESSOR_CONFIG].update(auto_map={processor_class._auto_class: reference})
    _replace_code(folder, [model_class, processor_class])
    for name, config in configs.items():
        # Sorted as `save_pretrained` does; other nested fields, such as `id2label`, keep their order.
        config["auto_map"] = dict(sorted(config["auto_map"].items()))
        (folder / name).write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    _write_endpoint_files(folder)


def _replace_code(folder: Path, classes: Sequence[type]):
    """Copy the files of the classes and all that they import, as `save_pretrained` does, and remove all other code."""
    sources = {inspect.getfile(each) for each in classes}
    sources = {Path(file) for source in sources for file in (source, *get_relative_import_files(source))}
    for name in (*CODE_FILES, *outdated_code(folder)):
        (folder / name).unlink(missing_ok=True)
    for source in sources:
        shutil.copyfile(source, folder / source.name)


def _write_endpoint_files(folder: Path):
    shutil.copyfile(HANDLER_SOURCE, folder / HANDLER)
    (folder / REQUIREMENTS).write_text("\n".join(package_requirements()) + "\n")


def package_requirements(*more: str) -> list[str]:
    """Requirements of a repository's code and of the packages `more`, in the versions that clustr_hf requires."""
    names = {*ENDPOINT_REQUIREMENTS, *more}
    requirements = importlib.metadata.requires("clustr_hf") or []
    return [line for line in requirements if re.match(r"[\w-]+", line)[0].lower() in names]


def check_replaceable(folder: Path) -> None:
    """Raise a `FileExistsError` unless a folder is new, empty, or an earlier repository, which may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"`folder` {folder} must be a folder, but is a file.")
    paths = [path for path in folder.rglob("*") if path.is_file() or path.name != IMAGES]
    names = [path.relative_to(folder).as_posix() for path in paths]
    strangers = [name for name in names if not is_replaceable(name)]
    if strangers or (names and not (folder / HANDLER).is_file()):
        found = sorted(strangers or names)[:5]
        raise FileExistsError(f"`folder` {folder} must be new, empty or an earlier repository, but holds {found}.")


def _write_images(folder: Path, images: Mapping[str, Image.Image | str | Path], processor: Any) -> dict[str, str]:
    """Write example images to `images/`, decoded as the handler does; returns title -> path."""
    widget = {}
    for number, (title, image) in enumerate(images.items()):
        try:
            image = read_image(image if isinstance(image, Image.Image) else Path(image).read_bytes(), processor)
        except RequestError as error:
            raise ValueError(f"`example_images` {title!r}: {error}") from error
        (folder / IMAGES).mkdir(exist_ok=True)
        name = f"{IMAGES}/{number}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-') or 'image'}.png"
        image.save(folder / name)
        widget[title] = name
    return widget


def _copy_card(path: Path, folder: Path, widget: Mapping[str, str] | None):
    """Copy a card and the images of its widget, unless `widget` replaces them."""
    card = load_card(path)
    if card.data.get("pipeline_tag") is None:
        raise ValueError(f"`card` {path} must have metadata with a pipeline_tag.")
    if widget:
        card.data.widget = [{"src": source, "example_title": title} for title, source in widget.items()]
    else:
        for source in widget_sources(card):
            if is_uploaded(source) and (path.parent / source).is_file():
                (folder / IMAGES).mkdir(exist_ok=True)
                shutil.copy(path.parent / source, folder / source)
    card.save(folder / CARD)
