# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Regularisation of a segmentation model, and class weights of its loss."""

from contextlib import suppress
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from ...data.decoding import UnreadableSample
from ...distillation import DistillationArguments
from ...models import RecipeArguments
from .transforms import ReadLabelMap


@dataclass
class SegmentationRecipe(DistillationArguments, RecipeArguments):
    """Regularisation, and class weights of the loss."""

    class_weight_exponent: float = field(
        default=0.0,
        metadata={
            "help": "Exponent of the class weights (median frequency / frequency) ** exponent; 0 turns them off, 1 "
            "balances the classes."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.class_weight_exponent <= 1:
            raise ValueError(f"--class_weight_exponent must be in [0, 1], got {self.class_weight_exponent}")


def class_weights(labels: ReadLabelMap, num_labels: int, exponent: float, show_progress: bool = False) -> list[float]:
    """
    Weight of every class, (median frequency / frequency) ** exponent: 0 weighs all pixels alike, 1 all classes.

    Args:
        labels: Sequence of label maps `(height, width)`, int64; values of at least `num_labels` are ignored. Unreadable
            maps are skipped.
        num_labels (`int`): Number of classes; a class without pixels has the weight 1.
        exponent (`float`): Between 0 and 1.
        show_progress (`bool`): Whether to show a progress bar.
    """
    pixels = torch.zeros(num_labels, dtype=torch.int64, device="cpu")
    for index in tqdm(range(len(labels)), desc="class frequencies", mininterval=1, disable=not show_progress):
        with suppress(UnreadableSample):  # the training loop logs and counts it
            pixels += torch.bincount(labels[index].flatten(), minlength=num_labels)[:num_labels]
    seen = pixels[pixels > 0].double()
    if len(seen) == 0:
        raise ValueError("the training label maps must have labelled pixels, got none")
    weights = (seen.median() / pixels.double().clamp(min=1)) ** exponent
    return [round(weight, 4) if count else 1.0 for weight, count in zip(weights.tolist(), pixels.tolist())]
