# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Mean intersection over union of label maps, from pixel counts summed over images. K is the number of classes."""

from collections.abc import Sequence

import numpy as np
import torch


def class_areas(
    prediction: torch.Tensor, reference: torch.Tensor, num_labels: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    Pixel counts of one image, from which [`summarize_areas`] computes the mean IoU.

    Args:
        prediction, reference (`torch.LongTensor` of shape `(H, W)`): Predicted and true class of each pixel.
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, defaults to 255): Label of the pixels in `reference` that are ignored.

    Returns:
        `torch.LongTensor` of shape `(3, K)`, on the CPU: for each class the number of correctly predicted pixels, of
        pixels predicted as the class, and of pixels labelled as the class.

    Raises:
        ValueError: if the maps differ in size, or a value is not a class.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"`prediction` must have the size of `reference`, {tuple(reference.shape)}, got {tuple(prediction.shape)}."
        )
    valid = reference != ignore_index
    predicted, labelled = prediction[valid], reference[valid]
    for name, values in (("prediction", predicted), ("reference", labelled)):
        if len(values) and not (values.min() >= 0 and values.max() < num_labels):
            raise ValueError(
                f"`{name}` must be in [0, {num_labels}), got values from {values.min()} to {values.max()}."
            )
    correct = labelled[predicted == labelled]
    counted = (correct, predicted, labelled)
    return torch.stack([torch.bincount(values, minlength=num_labels) for values in counted]).cpu()


def summarize_areas(areas: Sequence[torch.Tensor]) -> dict[str, float | np.ndarray]:
    """
    Mean IoU and pixel accuracies from the [`class_areas`] of all images.

    Returns:
        `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats in [0, 1]), and `per_category_iou`,
        `per_category_accuracy` (`np.ndarray` of shape `(K,)`, NaN for classes that do not occur).
    """
    correct, predicted, labelled = torch.stack(list(areas)).sum(dim=0).numpy().astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is the NaN of an absent class
        iou = correct / (predicted + labelled - correct)
        accuracy = correct / labelled
        overall = correct.sum() / labelled.sum()
    return {
        "mean_iou": _mean_of_present(iou),
        "mean_accuracy": _mean_of_present(accuracy),
        "overall_accuracy": float(overall),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _mean_of_present(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")
