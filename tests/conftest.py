"""What several test files need."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits


os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
# Data and recordings that may lie beside a checkout; tests that use them skip where they do not.
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture
def shared():
    """Path of the shared data, or a skip."""
    if not SHARED.is_dir():
        pytest.skip("the shared data is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run_process(command, cwd, **environment: str) -> str:
    """Run a command offline and without a GPU; returns what it printed, fails with what it said if it fails."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture
def run_without_package(tmp_path):
    """Run Python code in a new process that cannot import clustr_hf; returns what it printed."""

    def run(code: str, *arguments: object, **environment: str) -> str:
        blocked = f"import sys; sys.modules['clustr_hf'] = None\n{code}"
        modules = str(tmp_path / "modules")
        return run_process(
            [sys.executable, "-c", blocked, *arguments], tmp_path, HF_MODULES_CACHE=modules, **environment
        )

    return run


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory):
    """Digits 0 to 2 as a folder of images for each class, to train and to validate."""
    folder = tmp_path_factory.mktemp("images")
    digits = load_digits(n_class=3)
    for split, part in (("train", slice(0, 60)), ("validation", slice(60, 91))):
        for index, (image, digit) in enumerate(zip(digits.images[part], digits.target[part])):
            path = folder / split / ["zero", "one", "two"][digit] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    return folder
