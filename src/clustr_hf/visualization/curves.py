# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Training curves (as in Figures A1 and A2)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .colors import BLUE, ORANGE


def plot_training_curves(log_history: Sequence[Mapping[str, float]], metric: str = "eval_accuracy") -> Figure:
    """
    Loss and validation metric over the epochs (as in Figures A1 and A2).

    Args:
        log_history (`Sequence[Mapping[str, float]]`):
            As in `Trainer.state.log_history`: entries with `epoch` and any of `loss`, `eval_loss`, `metric`.
        metric (`str`, defaults to `"eval_accuracy"`):
            Name of the validation metric.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axis, metric_axis = figure.subplots(1, 2)
    _curve(loss_axis, log_history, "loss", "training", BLUE)
    _curve(loss_axis, log_history, "eval_loss", "validation", ORANGE)
    loss_axis.set(xlabel="epoch", ylabel="loss")
    loss_axis.set_ylim(bottom=0)
    if loss_axis.lines:
        loss_axis.legend()
    _curve(metric_axis, log_history, metric, "validation", ORANGE)
    metric_axis.set(xlabel="epoch", ylabel=_metric_title(metric))
    for axis in (loss_axis, metric_axis):
        axis.grid(alpha=0.3)
    return figure


def plot_compared_curves(
    log_histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], metric: str = "eval_accuracy"
) -> Figure:
    """
    Training loss and validation metric of several models over the epochs (as in Figures A1 and A2).

    A line is the mean over the runs of a model, a band the range from their lowest to their highest value.

    Args:
        log_histories (`Mapping[str, Sequence[Sequence[Mapping[str, float]]]]`):
            Name of a model -> log histories of its runs, as in [`plot_training_curves`]. All runs of a model must be
            logged at the same epochs.
        metric (`str`, defaults to `"eval_accuracy"`):
            Name of the validation metric.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if a model has no runs, or its runs are logged at different epochs.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = dict(zip(("loss", metric), figure.subplots(1, 2)))
    for number, (name, histories) in enumerate(log_histories.items()):
        for value, axis in axes.items():
            epochs, values = _values_of_runs(name, histories, value)
            color = f"C{number}"
            axis.plot(epochs, values.mean(axis=0), label=name, color=color, marker="o", markersize=3)
            axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    for axis, title in zip(axes.values(), ("training loss", _metric_title(metric))):
        axis.set(xlabel="epoch", ylabel=title)
        axis.grid(alpha=0.3)
    handles, labels = axes["loss"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)  # the curves leave no room within the axes
    return figure


def _values_of_runs(
    name: str, histories: Sequence[Sequence[Mapping[str, float]]], value: str
) -> tuple[list[float], np.ndarray]:
    """The logged epochs, and the values of all runs at them: an array (runs, epochs)."""
    runs = [{entry["epoch"]: entry[value] for entry in history if value in entry} for history in histories]
    if not runs or any(list(run) != list(runs[0]) for run in runs):
        raise ValueError(f"`log_histories` must hold runs of {name!r} that log {value!r} at the same epochs.")
    return list(runs[0]), np.array([list(run.values()) for run in runs])


def _metric_title(metric: str) -> str:
    return metric.removeprefix("eval_").replace("_", " ").replace("iou", "IoU").replace("ap", "AP")


def _curve(axis, log_history: Sequence[Mapping[str, float]], name: str, label: str, color: str):
    points = [(entry["epoch"], entry[name]) for entry in log_history if name in entry and "epoch" in entry]
    if points:
        axis.plot(*zip(*points), label=label, color=color, marker="o", markersize=3)
