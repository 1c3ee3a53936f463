# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The clustering as a package for the Hub's `kernels` library, for use in other models.

[`build_kernel_repository`] writes a kernel repository from two sources:

- the clustering files of `remote_code/` (`clustering_*clustr.py`), which model repositories contain too;
- `template/`, which has the structure of the repository: its card, `build.toml`, a test, and in `torch-ext/` the rest
  of the kernel: public names, layers, and the functions of TCFormer.

A kernel repository has one build variant per backend. These variants differ only in their metadata, because the
clustering itself chooses between Triton kernels, the compiled CPU kernel and tensor operations.
"""

import base64
import hashlib
import json
import re
import shutil
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..remote_code import clustering_clustr
from ..remote_code.clustering_triton_launches_clustr import read_launches


NAME = "dpc-knn-clustering"
PYTHON_NAME = NAME.replace("-", "_")
BACKENDS = ("cpu", "cuda", "rocm", "xpu")
LICENSE = "apache-2.0"
# `kernels` reserves version 0 for kernels whose interface or quality is not settled.
VERSION = 0
# The oldest release of `kernels` that the package has been tested with.
KERNELS_MINVER = "0.17.2"

_TEMPLATE = Path(__file__).parent / "template"
_CLUSTERING_FOLDER = Path(clustering_clustr.__file__).parent
_CLUSTERING_FILES = "clustering_*clustr.py"
_LAUNCH_CONFIGS = "launch_configs"


def build_kernel_repository(
    folder: str | Path,
    repo_id: str = f"your-name/{NAME}",
    version: int = VERSION,
    launch_configs: Sequence[str | Path] = (),
) -> Path:
    """
    Write a complete kernel repository to a folder. The same arguments produce the same bytes.

    Args:
        folder (`str` or `Path`):
            A new or empty folder. A failure leaves it as it was.
        repo_id (`str`):
            `"owner/name"` of the repository on the Hub, for `build.toml`, the card and the test.
        version (`int`, defaults to 0):
            Major version of the kernel, at least 0.
        launch_configs (`Sequence[str | Path]`, *optional*):
            JSON files with launch configurations for the Triton kernels, each named after its GPU, for example
            `NVIDIA_H100_80GB_HBM3.json`. [`~clustering_triton_launches_clustr.find_launch`] describes their content.

    Returns:
        `Path` of the folder.

    Raises:
        FileExistsError: if `folder` is a file or not empty.
        ValueError: for an invalid `repo_id` or `version`, and for a launch configuration with an invalid name or
            content.
    """
    folder = Path(folder).resolve()
    launch_configs = [Path(path) for path in launch_configs]
    _check_folder(folder)
    _check_arguments(repo_id, version, launch_configs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staging = Path(temporary) / folder.name
        _write_template(staging, repo_id, version)
        source = staging / "torch-ext" / PYTHON_NAME
        _write_clustering(source, launch_configs)
        for backend in BACKENDS:
            _write_variant(source, staging / "build" / f"torch-{backend}", backend, version)
        # `kernel-builder upload` expects the card here.
        shutil.copyfile(staging / "README.md", staging / "build" / "CARD.md")
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    return folder


def _check_folder(folder: Path):
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"`folder` {folder} must be a folder, but is a file.")
    found = sorted(path.name for path in folder.iterdir())[:5] if folder.exists() else []
    if found:
        raise FileExistsError(f"`folder` {folder} must be new or empty, but holds {found}.")


def _check_arguments(repo_id: str, version: int, launch_configs: Sequence[Path]):
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f'`repo_id` must have the form "owner/name", got {repo_id!r}.')
    if not isinstance(version, int) or version < 0:
        raise ValueError(f"`version` must be a whole number of at least 0, got {version!r}.")
    names = [path.name for path in launch_configs]
    if len(set(names)) < len(names):
        raise ValueError(f"`launch_configs` must have different names, got {sorted(names)}.")
    for path in launch_configs:
        if not re.fullmatch(r"\w+\.json", path.name, re.ASCII):
            raise ValueError(
                "`launch_configs` must be named after a GPU, with letters, digits and underscores, and end in .json, "
                f"got {path.name}."
            )
        read_launches(path)


def _write_template(staging: Path, repo_id: str, version: int):
    """Copies the template; fills the repository's values into the card, `build.toml` and the test, not into code."""
    values = dict(
        name=NAME,
        repo_id=repo_id,
        version=version,
        license=LICENSE,
        backends=json.dumps(BACKENDS),
    )
    for path in sorted(_TEMPLATE.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        place = staging / path.relative_to(_TEMPLATE)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        if place.parent.name != PYTHON_NAME:
            text = string.Template(text).substitute(values)
        _write(place, text)


def _write_clustering(source: Path, launch_configs: Sequence[Path]):
    """Writes the clustering files, and the launch configurations beside them."""
    for path in sorted(_CLUSTERING_FOLDER.glob(_CLUSTERING_FILES)):
        _write(source / path.name, _own_namespace(path.read_text(encoding="utf-8")))
    for path in launch_configs:
        (source / _LAUNCH_CONFIGS).mkdir(exist_ok=True)
        _write(source / _LAUNCH_CONFIGS / path.name, path.read_text(encoding="utf-8"))


def _own_namespace(code: str) -> str:
    """
    Rename the namespace of the custom operators from `clustr_hf` to the name of the package that the code is loaded as.

    `kernels` requires this: it loads a kernel under its id, so that one process can load several versions of a kernel,
    and this package as well.
    """
    name = '__package__.replace(".", "_")'
    code = code.replace('"clustr_hf::', f'{name} + "::')
    return code.replace("torch.ops.clustr_hf.", f"getattr(torch.ops, {name}).")


def _write_variant(source: Path, variant: Path, backend: str, version: int):
    """Writes a build variant: the source and its metadata."""
    shutil.copytree(source, variant)
    digests = _file_digests(variant)
    # A hash of the content, so that two kernels have the same id only if their files are the same.
    unique = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:8]
    metadata = {
        "name": NAME,
        "id": f"_{PYTHON_NAME}_{backend}_{unique}",
        "version": version,
        "kernels-minver": KERNELS_MINVER,
        "license": LICENSE,
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    _write(variant / "metadata.json", json.dumps(metadata, indent=2) + "\n")


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 in base64 of every file by its path, sorted."""
    paths = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return {name: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for name, path in paths}


def _write(path: Path, text: str):
    # Bytes, so that line endings, and hence digests, are the same on every system.
    path.write_bytes(text.encode())


__all__ = ["build_kernel_repository"]
