# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tolerance with which few enough clusters are left."""

import math
from collections.abc import Callable


def find_smallest_tolerance(is_enough: Callable[[float], bool], low: float, num_steps: int) -> float:
    """
    Bisect the logarithm of the tolerance.

    Args:
        is_enough (`Callable[[float], bool]`): Whether a tolerance merges enough clusters; 1 is taken to.
        low (`float`): Where the search begins, positive; it is taken to merge too few.
        num_steps (`int`): Number of tolerances to try.

    Returns:
        `float`: the smallest tolerance found that merges enough.
    """
    high = 1.0
    for _ in range(num_steps):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
