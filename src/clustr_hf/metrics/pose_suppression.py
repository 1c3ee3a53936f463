# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Non-maximum suppression of poses by their object keypoint similarity."""

from collections.abc import Sequence

import numpy as np


def suppress_similar_poses(
    keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: Sequence[float], threshold: float = 0.9
) -> np.ndarray:
    """
    Non-maximum suppression of persons by the similarity of their keypoints (OKS-NMS).

    Args:
        keypoints (`np.ndarray` of shape `(n, K, 2)`): (x, y) in pixels.
        scores, areas (`np.ndarray` of shape `(n,)`): Score and area (square pixels) of each person.
        sigmas (`Sequence[float]` of length K): Sigma of each keypoint, see [`KeypointConvention`].
        threshold (`float`, defaults to 0.9): A person more similar than this to a better one is suppressed.

    Returns:
        `np.ndarray`: indices of the persons that are kept, best first.
    """
    variances = (2 * np.asarray(sigmas)) ** 2
    order, kept = list(np.argsort(-scores, kind="stable")), []
    while order:
        best, *others = order
        kept.append(best)
        area = (areas[others] + areas[best]) / 2 + np.spacing(1)
        distances = ((keypoints[others] - keypoints[best]) ** 2).sum(axis=-1)
        similarity = np.exp(-distances / variances / area[:, None] / 2).mean(axis=-1)
        order = [index for index, value in zip(others, similarity) if value <= threshold]
    return np.array(kept, dtype=np.int64)
