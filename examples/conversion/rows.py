# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The rows of the table: their starts, their titles, and which of them are compared."""

from dataclasses import dataclass


# Epochs of the fine-tuning.
EPOCHS = (0.5, 1, 2)
# Steps of a conversion.
STEPS = ("as converted", "least squares", "transfer")
# Rows that a segmentation starts from.
SEGMENTED = ("source", "scratch", "two-scales")


@dataclass(frozen=True)
class Start:
    """
    Converted weights.

    Args:
        title (`str`): Title of the rows.
        scales (`str`): `"two"` or `"one"`.
        is_calibrated (`bool`): Whether the attention is fitted to the source's.
    """

    title: str
    scales: str
    is_calibrated: bool = True


STARTS = {
    "two-scales": Start("two scales", "two"),
    "one-scale": Start("one scale", "one"),
    "uncalibrated": Start("two scales, not calibrated", "two", is_calibrated=False),
}


def titles(num_epochs: float) -> dict[str, str]:
    """
    Rows of the table in their order, and their titles.

    Args:
        num_epochs (`float`): Number of epochs of the source.
    """
    rows = {"source": f"PVTv2, the source: {num_epochs:g} epochs"}
    rows |= {f"source-{epochs}": f"the source, {_more(epochs)}" for epochs in EPOCHS}
    for name, start in STARTS.items():
        rows[name] = start.title  # of a segmentation
        rows |= {f"{name}-{step}": f"{start.title}, {step}" for step in STEPS if start.is_calibrated}
        for epochs in EPOCHS:
            rows[f"{name}-tuned-{epochs}"] = f"{start.title}, {_more(epochs)}"
            rows[f"{name}-distilled-{epochs}"] = f"{start.title}, {_more(epochs)} with distillation"
            rows[f"{name}-taught-{epochs}"] = f"{start.title}, {_more(epochs)} with distillation from a better teacher"
    rows |= {f"scratch-{epochs}": f"ClusTR from random weights: {_count(epochs)}" for epochs in EPOCHS}
    return {**rows, "scratch": f"ClusTR from random weights: {num_epochs:g} epochs"}


def _more(epochs: float) -> str:
    return f"{_count(epochs)} more"


def _count(epochs: float) -> str:
    return f"{epochs:g} epoch{'s' if epochs > 1 else ''}"


# Pairs of rows, the first of which should be ahead, or level.
COMPARISONS = [
    *((f"two-scales-distilled-{epochs}", f"two-scales-tuned-{epochs}") for epochs in EPOCHS),
    *((f"two-scales-taught-{epochs}", f"two-scales-tuned-{epochs}") for epochs in EPOCHS),
    ("one-scale-distilled-1", "one-scale-tuned-1"),
    *((f"two-scales-tuned-{epochs}", f"source-{epochs}") for epochs in EPOCHS),
    ("two-scales-tuned-1", "scratch"),
    ("two-scales-tuned-2", "scratch"),
    ("two-scales-tuned-1", "uncalibrated-tuned-1"),
    ("two-scales-tuned-1", "one-scale-tuned-1"),
]
