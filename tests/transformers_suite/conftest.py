"""Make transformers' test mixins importable as the package `tests` (see prepare.py)."""

import sys

import prepare
import pytest


if not (prepare.SOURCE / "tests" / "__init__.py").is_file():
    pytest.exit("transformers' test mixins are missing: run `make test-transformers`.", returncode=4)
sys.path.insert(0, str(prepare.SOURCE))


def pytest_configure(config):
    """The marks of the mixins, which their own repository registers."""
    for mark in (
        "accelerate_tests",
        "flash_attn_test",
        "flash_attn_3_test",
        "flash_attn_4_test",
        "generate",
        "is_pipeline_test",
        "torch_compile_test",
        "torch_export_test",
    ):
        config.addinivalue_line("markers", f"{mark}: of transformers' test suite")
