# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Check that a repository is complete, and run it without the package and without the Hub."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ..remote_code.handler_clustr import pipeline_task
from .card import check_card
from .files import CARD, CONFIG, IMAGES, outdated_code, repository_files


TIMEOUT = 600  # seconds

# The repository's own code answers: the package cannot be imported, and no code of an earlier run is reused.
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


def validate_repository(folder: str | Path, image: Image.Image | str | Path | None = None) -> list:
    """
    Check that a folder is a complete repository, and run its handler, and thereby its pipeline, in a new process
    without this package, the Hub, an accelerator, or an access token.

    Args:
        folder (`str` or `Path`): The repository. Its code is run.
        image (`PIL.Image.Image`, `str` or `Path`, *optional*): Image to run it on. Default: the first example image of
            the repository, or a generated picture.

    Returns:
        `list`: the handler's answer.

    Raises:
        ValueError: for a missing file, code of another release, a card that the Hub would reject or that is about
            another task, or a repository that does not run; the message then ends with the output of the process.
    """
    folder = Path(folder)
    names = repository_files(folder)
    config = json.loads((folder / CONFIG).read_text())
    check_card(folder / CARD, pipeline_task(config), names)
    _check_code(folder, config)
    with tempfile.TemporaryDirectory() as temporary:
        picture = _example_file(folder, names, image, Path(temporary))
        return _answer_alone(folder.resolve(), picture, Path(temporary))


def _check_code(folder: Path, config: dict):
    for reference in config.get("auto_map", {}).values():
        module = reference.rpartition("--")[2].partition(".")[0]
        if not (folder / f"{module}.py").is_file():
            raise ValueError(f"`folder` {folder} must hold {module}.py, which its configuration names.")
    outdated = outdated_code(folder)
    if outdated:
        raise ValueError(
            f"`folder` {folder} must hold no code of other releases, which is not uploaded, but holds {outdated}. "
            f"Update its code with: python -m clustr_hf.publish {folder}"
        )


def _example_file(folder: Path, names: list[str], image: Image.Image | str | Path | None, temporary: Path) -> Path:
    """The image to run a repository on: the given one, its first example image, or a generated one."""
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
    """Answer of the repository's handler in a new process."""
    try:
        process = subprocess.run(
            [sys.executable, "-c", _ANSWER_ALONE, str(folder), str(image)],
            env=_isolated_environment(temporary),
            cwd=temporary,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{folder} must run, but did not answer within {TIMEOUT} s.") from error
    answers = [line for line in process.stdout.splitlines() if line.startswith("answer:")]
    if process.returncode != 0 or not answers:
        raise ValueError(f"{folder} must run without this package, but: {process.stderr.strip()[-1500:]}")
    return json.loads(answers[-1].removeprefix("answer:"))


def _isolated_environment(temporary: Path) -> dict[str, str]:
    """This process's environment without access tokens, accelerators, and its rank in a distributed training."""
    prefixes = ("ACCELERATE_", "FSDP_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MASTER_", "TORCHELASTIC_")
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes) and name not in ranks}
    isolated = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(temporary / "modules"), "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **isolated}
