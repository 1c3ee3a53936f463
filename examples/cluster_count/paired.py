# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Points of several seeds, compared with the point of the same seed that has all clusters."""

import statistics
from collections.abc import Sequence
from typing import Any


def full_points(points: Sequence[dict[str, Any]]) -> dict[int | None, dict[str, Any]]:
    """Seed -> its point with the most clusters, the first of several; points of a single curve have no seed."""
    seeds = dict.fromkeys(point.get("seed") for point in points)
    return {
        seed: max((point for point in points if point.get("seed") == seed), key=lambda point: point["clusters"])
        for seed in seeds
    }


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for fewer than two values."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
