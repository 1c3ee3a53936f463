"""Compares answers of pipelines, whose masks are images, with those of endpoints, whose masks are base64 PNG files."""

import base64
import io

import numpy as np
import pytest
from PIL import Image


def as_arrays(answer):
    """An answer of a pipeline with the types of JSON (tuples become lists), and masks as arrays."""
    if isinstance(answer, Image.Image):
        return np.asarray(answer)
    if isinstance(answer, dict):
        return {name: as_arrays(value) for name, value in answer.items()}
    return [as_arrays(value) for value in answer] if isinstance(answer, (list, tuple)) else answer


def with_arrays(answer):
    """An answer of an endpoint, with masks as arrays."""
    if isinstance(answer, dict):
        return {name: _decode(value) if name == "mask" else with_arrays(value) for name, value in answer.items()}
    return [with_arrays(value) for value in answer] if isinstance(answer, list) else answer


def _decode(mask: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask))))


def assert_same(answer, expected):
    """Assert equal structure, labels and masks, and floats that agree to 1e-5."""
    assert type(answer) is type(expected)
    if isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        for name in expected:
            assert_same(answer[name], expected[name])
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for pair in zip(answer, expected):
            assert_same(*pair)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(answer, expected)
    else:
        assert answer == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)
