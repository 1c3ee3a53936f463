# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Colours of lines, classes and text."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import hsv_to_rgb


# Categorical colours that colour-blind readers can distinguish (Okabe and Ito).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def class_colors(num_labels: int) -> np.ndarray:
    """
    A colour for each class. A class has the same colour for any number of classes, and neighbours differ strongly.

    Args:
        num_labels (`int`): Number of classes.

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`, uint8 RGB.
    """
    hues = np.arange(num_labels) * 0.618034 % 1  # the golden ratio spreads any number of hues
    rows = np.arange(num_labels)
    saturations, values = np.array([0.85, 0.55, 0.95])[rows % 3], np.array([0.95, 0.75, 0.55])[rows // 2 % 3]
    return np.round(hsv_to_rgb(np.stack([hues, saturations, values], axis=-1)) * 255).astype(np.uint8)


def readable_on(color: Sequence[int]) -> tuple[int, int, int]:
    """
    Black or white, whichever is easier to read on a colour.

    The contrast is at least 4.58; the Web Content Accessibility Guidelines ask for 4.5.

    Args:
        color (`Sequence[int]`): RGB in [0, 255].
    """
    shares = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)  # sRGB
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)
