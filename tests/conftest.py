"""What several test files need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


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


@pytest.fixture
def run_without_package(tmp_path):
    """Run Python code in a new process that cannot import clustr_hf; returns what it printed."""

    def run(code: str, *arguments: object, environment: dict[str, str] | None = None) -> str:
        blocked = f"import sys; sys.modules['clustr_hf'] = None\n{code}"
        process_environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "CUDA_VISIBLE_DEVICES": "",
            **(environment or {}),
        }
        result = subprocess.run(
            [sys.executable, "-c", blocked, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=process_environment,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
