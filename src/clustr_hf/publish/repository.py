# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Repositories for the Hub: assemble one in a folder, see that strangers can use it, push it in one commit.

A repository holds the weights (safetensors), the configuration with the map of its classes, the image processor, the
code that these need, `handler.py` and `requirements.txt` for Inference Endpoints, and a card.

    python -m clustr_hf.publish checkpoints/*    # brings the code in these folders up to date with this package
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from PIL import Image
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from ..remote_code import handler_clustr
from ..remote_code.handler_clustr import RequestError, pipeline_task, read_image
from .card import (
    PICTURES,
    UNKNOWN_REPOSITORY,
    CardContents,
    check_card,
    load_card,
    widget_sources,
    write_model_card,
)


HANDLER = "handler.py"
REQUIREMENTS = "requirements.txt"
CARD = "README.md"
CONFIG = "config.json"
PROCESSOR_CONFIG = "preprocessor_config.json"
NEEDED = (CONFIG, PROCESSOR_CONFIG, HANDLER, REQUIREMENTS, CARD)
IMAGES = "images"
# Results of a training that go along, besides the card's pictures.
RESULTS = ("all_results.json", "log_history.json", "per_class_results.json", "per_part_results.json")
CODE_FILE = re.compile(r"[^/]+_clustr(_\w+)?\.py")
# All that a repository holds; nothing else is pushed, whatever lies beside it, and none of it can be a pickle.
_PATTERNS = (
    *map(re.escape, (*NEEDED, *PICTURES, *RESULTS)),
    CODE_FILE.pattern,
    r"model[^/]*\.safetensors(\.index\.json)?",
    rf"{IMAGES}/\d+-[a-z0-9-]+\.png",
)
KNOWN_FILE = re.compile("|".join(_PATTERNS))
# Of an earlier push by other means: older weights, which loaders must not find beside the new ones.
OLD_WEIGHTS = re.compile(r"pytorch_model[^/]*\.bin(\.index\.json)?")
# What an endpoint needs of all that this package requires.
ENDPOINT_REQUIREMENTS = ("numpy", "pillow", "safetensors", "torch", "torchvision", "transformers")
# All that a Space holds.
SPACE_SUFFIXES = {".jpg", ".json", ".md", ".png", ".py", ".safetensors", ".txt"}
VALIDATION_SECONDS = 600

# Answers by the repository's own code: neither the package, nor the Hub, nor code of an earlier run is at hand.
_ANSWER_ALONE = """
import importlib.util, json, sys
sys.modules["clustr_hf"] = None
folder, image = sys.argv[1:]
from transformers import AutoConfig, AutoImageProcessor
for auto_class in (AutoConfig, AutoImageProcessor):
    auto_class.from_pretrained(folder, trust_remote_code=True)
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
for part in (endpoint.pipeline.model, endpoint.pipeline.image_processor):
    if not type(part).__module__.startswith("transformers_modules."):
        sys.exit(f"{type(part)} is not the repository's own")
with open(image, "rb") as file:
    answer = endpoint({"inputs": file.read()})
print("answer:" + json.dumps(answer))
"""


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
            A ClusTR model with or without a head, from the package or loaded by remote code.
        processor (`BaseImageProcessor`):
            Its image processor.
        folder (`str` or `Path`):
            Is made, or replaced if it holds nothing but an earlier repository. It is whole or not there at any time.
        card ([`CardContents`], `str` or `Path`, *optional*):
            What the card says beyond what the files say; or a card that is there already, a README.md.
        example_images (`Mapping[str, PIL.Image.Image | str | Path]`, *optional*):
            Title -> image that the Hub offers to try, one that the handler takes; they are copied to `images/`.
            Default: photographs on the Hub.
        files (`Sequence[str | Path]`, *optional*):
            Pictures and results to copy, of the names in `model_card.PICTURES` and [`RESULTS`].

    Returns:
        `Path` of the folder.

    Raises:
        FileExistsError: if the folder holds something else.
        ValueError: for a model of an unknown class, a card without metadata, example images that the handler refuses,
            and `files` that do not belong there.
    """
    folder = Path(folder).resolve()
    _check_replaceable(folder)
    for path in map(Path, files):
        if path.name not in (*PICTURES, *RESULTS):
            raise ValueError(f"`files` must have names of {[*PICTURES, *RESULTS]}, got {path}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staging = Path(temporary) / folder.name  # of the same name: cards are named after it
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
):
    """
    Add to a saved checkpoint what a repository has beyond it: handler, requirements, card.

    Args:
        folder (`str` or `Path`): Where `save_pretrained` has written model and processor.
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
    _write_endpoint_files(folder)


def refresh_repository(folder: str | Path):
    """
    Bring the code of a checkpoint up to date with this package: the code files, the `auto_map` of both configurations,
    `handler.py` and `requirements.txt`. Weights, card and all other fields of the configurations stay as they are.

    Args:
        folder (`str` or `Path`): A checkpoint, with or without code.

    Raises:
        FileNotFoundError: if there is no configuration of the model or of the image processor.
        ValueError: if the model or the image processor is of an unknown class; nothing is written.
    """
    folder, package = Path(folder), importlib.import_module("clustr_hf")
    configs = {name: json.loads((folder / name).read_text()) for name in (CONFIG, PROCESSOR_CONFIG)}
    pipeline_task(configs[CONFIG])  # or an error, if it is no model of ours
    model_class = getattr(package, configs[CONFIG]["architectures"][0])
    processor_name = configs[PROCESSOR_CONFIG].get("image_processor_type")
    if processor_name not in package.__all__:
        raise ValueError(f"`image_processor_type` must be a class of clustr_hf in {folder}, got {processor_name!r}.")
    processor_class = getattr(package, processor_name)
    configs[CONFIG].update(auto_map=model_class._auto_map)
    configs[CONFIG].pop("custom_pipelines", None)
    if model_class._custom_pipelines:
        configs[CONFIG].update(custom_pipelines=model_class._custom_pipelines)
    place = f"{processor_class.__module__.rpartition('.')[2]}.{processor_name}"
    configs[PROCESSOR_CONFIG].update(auto_map={processor_class._auto_class: place})
    _replace_code(folder, [model_class, processor_class])
    for name, config in configs.items():
        # As `save_pretrained` sorts them; other fields keep their order, that of class numbers for instance.
        config["auto_map"] = dict(sorted(config["auto_map"].items()))
        (folder / name).write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    _write_endpoint_files(folder)


def _replace_code(folder: Path, classes: Sequence[type]):
    """The files of the classes and all that these import, as `save_pretrained` writes them, and no others of ours."""
    files = {inspect.getfile(one) for one in classes}
    files = {Path(file) for start in files for file in (start, *get_relative_import_files(start))}
    for path in folder.glob("*.py"):
        if CODE_FILE.fullmatch(path.name):
            path.unlink()
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _write_endpoint_files(folder: Path):
    shutil.copyfile(handler_clustr.__file__, folder / HANDLER)
    (folder / REQUIREMENTS).write_text("\n".join(package_requirements()) + "\n")


def package_requirements(*more: str) -> list[str]:
    """What a repository's code needs, and `more`, in the versions that this package asks for."""
    names = {*ENDPOINT_REQUIREMENTS, *more}
    requirements = importlib.metadata.requires("clustr_hf") or []
    return [line for line in requirements if re.match(r"[\w-]+", line)[0].lower() in names]


def validate_repository(folder: str | Path, image: Image.Image | str | Path | None = None) -> list:
    """
    See that a folder is a whole repository, and run its handler, and with it its pipeline, in a new process without
    this package, the Hub, an accelerator, or an access token.

    Args:
        folder (`str` or `Path`): The repository. Its code is run.
        image (`PIL.Image.Image`, `str` or `Path`, *optional*): What to run it on. Default: the first of its example
            images, or a picture that is made up.

    Returns:
        `list`: the handler's answer.

    Raises:
        ValueError: for a missing file, a card that the Hub would not take or that is about another task, or a
            repository that does not run; with the process's last words.
    """
    folder = Path(folder)
    names = repository_files(folder)
    config = json.loads((folder / "config.json").read_text())
    check_card(folder / CARD, pipeline_task(config), names)
    for place in config.get("auto_map", {}).values():
        module = place.rpartition("--")[2].partition(".")[0]
        if not (folder / f"{module}.py").is_file():
            raise ValueError(f"`folder` {folder} must hold {module}.py, which its configuration names.")
    with tempfile.TemporaryDirectory() as temporary:
        picture = _example_file(folder, names, image, Path(temporary))
        return _answer_alone(folder.resolve(), picture, Path(temporary))


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Publish model, code and card",
    validate: bool = True,
) -> str:
    """
    Push a repository to the Hub in one commit.

    Only files of [`KNOWN_FILE`] are pushed. Those of an earlier push that are no longer there are taken away in the
    same commit; other files in the repository stay. A repository that was made for this push and got no commit is
    removed again.

    Args:
        folder (`str` or `Path`): What [`build_repository`] wrote, or a training script's output folder.
        repo_id (`str`): Id on the Hub, `"name"` or `"owner/name"`; is made if it does not exist.
        private (`bool`, *optional*): Whether a new repository is private; default is the owner's setting.
        token (`str`, *optional*): Access token; default is the one that is logged in.
        commit_message (`str`): Message of the commit.
        validate (`bool`, defaults to `True`): Whether to call [`validate_repository`] first.

    Returns:
        `str`: the revision to pin, as in `from_pretrained(repo_id, revision=..., trust_remote_code=True)`.

    Raises:
        ValueError: if the repository is not whole, or does not run; nothing is pushed.
        HfHubHTTPError, RuntimeError: if the Hub refuses, the weights in the latter case; it holds what it held before.
    """
    folder = Path(folder)
    files = repository_files(folder)
    if validate:
        validate_repository(folder)
    api = HfApi(token=token)
    with _new_or_old_repository(api, full_repository_id(repo_id, token), private) as full_id:
        present = api.repo_info(full_id)
        card = _address(folder / CARD, full_id, api.endpoint).encode()
        operations = [CommitOperationAdd(name, card if name == CARD else folder / name) for name in files]
        for name in (file.rfilename for file in present.siblings):
            if name not in files and (KNOWN_FILE.fullmatch(name) or OLD_WEIGHTS.fullmatch(name)):
                operations.append(CommitOperationDelete(name))
        # Refused if somebody else has pushed since: what they see removed must be what was looked at.
        return api.create_commit(full_id, operations, commit_message=commit_message, parent_commit=present.sha).oid


def full_repository_id(repo_id: str, token: str | None = None) -> str:
    """
    `"owner/name"` of an id that may lack its owner, who is then the one who is logged in. The Hub has old models of
    names without owners, which are somebody else's.
    """
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def push_space(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """
    Push a folder with a Gradio app to the Hub in one commit, as [`push`] does with a model; returns the revision.

    Args:
        folder (`str` or `Path`): Its files of the kinds [`SPACE_SUFFIXES`] are pushed, but hidden ones.
        repo_id, private, token: As in [`push`].
    """
    folder, api = Path(folder), HfApi(token=token)
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in SPACE_SUFFIXES]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    operations = [CommitOperationAdd(path.as_posix(), folder / path) for path in visible]
    kind = {"repo_type": "space", "space_sdk": "gradio"}
    with _new_or_old_repository(api, full_repository_id(repo_id, token), private, **kind) as full_id:
        return api.create_commit(full_id, operations, commit_message="Publish the Space", repo_type="space").oid


def repository_files(folder: str | Path) -> list[str]:
    """
    Paths of the files of a repository, relative to its folder: those of [`KNOWN_FILE`].

    Raises:
        ValueError: if a needed file is missing.
    """
    folder = Path(folder)
    paths = sorted([*folder.glob("*"), *folder.glob(f"{IMAGES}/*")])
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    known = [name for name in names if KNOWN_FILE.fullmatch(name)]
    missing = [name for name in NEEDED if name not in known]
    if missing or not any(name.endswith(".safetensors") for name in known):
        raise ValueError(f"`folder` {folder} must be a repository, but lacks {missing or 'weights (safetensors)'}.")
    return known


@contextlib.contextmanager
def _new_or_old_repository(
    api: HfApi, full_id: str, private: bool | None, repo_type: str = "model", **kind: str
) -> Iterator[str]:
    """A repository on the Hub, by its full id; one that is made here goes away again if what follows fails."""
    is_new = not api.repo_exists(full_id, repo_type=repo_type)
    if is_new:  # if somebody makes it at this very moment, this fails, and what is theirs stays
        api.create_repo(full_id, private=private, repo_type=repo_type, **kind)
    try:
        yield full_id
    except BaseException:
        if is_new:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                api.delete_repo(full_id, missing_ok=True, repo_type=repo_type)
        raise


def _address(path: Path, repo_id: str, endpoint: str) -> str:
    """A card with the repository's id in its commands, and the whole addresses of the images to try."""
    card = load_card(path)
    for example in card.data.get("widget") or []:
        if "://" not in example["src"]:
            example["src"] = f"{endpoint}/{repo_id}/resolve/main/{quote(example['src'])}"
    return re.sub(rf'"{UNKNOWN_REPOSITORY}/[^"]+"', f'"{repo_id}"', str(card))


def _check_replaceable(folder: Path):
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"`folder` {folder} must be a folder, but is a file.")
    paths = [path for path in folder.rglob("*") if path.is_file() or path.name != IMAGES]
    names = [path.relative_to(folder).as_posix() for path in paths]
    strangers = [name for name in names if not KNOWN_FILE.fullmatch(name)]
    if strangers or (names and not (folder / HANDLER).is_file()):
        found = sorted(strangers or names)[:5]
        raise FileExistsError(f"`folder` {folder} must be new, empty or an earlier repository, but holds {found}.")


def _write_images(folder: Path, images: Mapping[str, Image.Image | str | Path], processor: Any) -> dict[str, str]:
    """Example images as files under `images/`, as the handler reads them; title -> path."""
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
    card = load_card(path)
    if card.data.get("pipeline_tag") is None:
        raise ValueError(f"`card` {path} must have metadata with a pipeline_tag.")
    if widget:
        card.data.widget = [{"src": source, "example_title": title} for title, source in widget.items()]
    else:
        for source in widget_sources(card):
            if KNOWN_FILE.fullmatch(source) and (path.parent / source).is_file():
                (folder / IMAGES).mkdir(exist_ok=True)
                shutil.copy(path.parent / source, folder / source)
    card.save(folder / CARD)


def _example_file(folder: Path, names: list[str], image: Image.Image | str | Path | None, temporary: Path) -> Path:
    """The image to try a repository on: the one that is given, the first of its files, or one that is made up."""
    if isinstance(image, (str, Path)):
        return Path(image).resolve()
    if image is None:
        examples = [name for name in names if name.startswith(f"{IMAGES}/")]
        if examples:
            return (folder / examples[0]).resolve()
        image = Image.effect_mandelbrot((320, 240), (-2, -1.5, 1, 1.5), 100)
    path = temporary / "image.png"
    image.convert("RGB").save(path)
    return path


def _answer_alone(folder: Path, image: Path, temporary: Path) -> list:
    # On the CPU, without secrets, and not as one of the processes of a training that this may be called from.
    others = ("ACCELERATE_", "FSDP_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MASTER_", "TORCHELASTIC_")
    alone = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(temporary / "modules"), "CUDA_VISIBLE_DEVICES": ""}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        kept.pop(name, None)
    try:
        process = subprocess.run(
            [sys.executable, "-c", _ANSWER_ALONE, str(folder), str(image)],
            env={**kept, **alone},
            cwd=temporary,
            capture_output=True,
            text=True,
            timeout=VALIDATION_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{folder} must run, but gave no answer in {VALIDATION_SECONDS} s.") from error
    answers = [line for line in process.stdout.splitlines() if line.startswith("answer:")]
    if process.returncode != 0 or not answers:
        raise ValueError(f"{folder} must run without this package, but: {process.stderr.strip()[-1500:]}")
    return json.loads(answers[-1].removeprefix("answer:"))


__all__ = [
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
