# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""`--dry_run`: print the plan of a run and the memory that a step needs, draw the learning rate, train nothing."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from matplotlib.figure import Figure
from torch import nn

from ..devices import device_name, is_accelerator, peak_memory, total_memory
from .arguments import LoopArguments
from .data.loaders import LoaderOptions, training_loader
from .models import set_memory_options
from .optimizers import make_optimizer
from .report import write_picture
from .schedule import TrainingPlan
from .task import Task, batch_size, batch_tensor


GIGABYTE = 1e9  # bytes


def dry_run(task: Task, plan: TrainingPlan, accelerator: Accelerator) -> dict[str, float]:
    """
    Print the arguments, the plan and the memory of a step, and draw the learning rate. On an accelerator, run
    two steps to measure their memory.

    Returns:
        `dict[str, float]`: `num_steps` and `memory_gb`, with an accelerator also `measured_memory_gb` and
        `device_memory_gb`. Empty in all processes but the main one.
    """
    if not accelerator.is_main_process:
        return {}
    memory = estimate_memory(
        task.model, task.compute_loss, first_batch(task, plan.args, num_images=2), plan.per_device_batch_size
    )
    path = Path(plan.args.output_dir) / "learning_rate.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(plot_learning_rate(plan), path)
    parts = ", ".join(f"{name} {gigabytes:.2f}" for name, gigabytes in memory.items())
    rows = {
        **{f"--{name}": value for name, value in asdict(plan.args).items() if value is not None},
        "parameters": f"{sum(parameter.numel() for parameter in task.model.parameters()) / 1e6:.3f} M",
        **plan.describe(),
        "memory per device, float32": f"{sum(memory.values()):.2f} GB: {parts}",
        "plot of the learning rate": path,
    }
    summary = {"memory_gb": sum(memory.values()), "num_steps": plan.num_steps}
    if is_accelerator(accelerator.device):
        measured = _measure_step(task, plan, accelerator)
        rows["memory of a step, measured"] = format_step_memory(**measured)
        summary |= {"measured_memory_gb": measured["peak_gb"], "device_memory_gb": measured["device_gb"]}
    print("\n".join(f"{name:<32}{value}" for name, value in rows.items()))
    return summary


def first_batch(task: Task, args: LoopArguments, num_images: int) -> dict:
    """The first training images as a batch on the CPU. A stream is read no further than needed."""
    data = replace(task.train_data, shuffle_buffer=num_images)
    loader = training_loader(data, task.collate, args.train_batch_size, num_images, args.seed, LoaderOptions())
    return next(iter(loader))["batch"]


def plot_learning_rate(plan: TrainingPlan, points: int = 1000) -> Figure:
    """Plot the learning rate over the steps."""
    steps = sorted({round(i * (plan.num_steps - 1) / points) for i in range(points + 1)})
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, [plan.learning_rate(step) for step in steps])
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    axis.grid(alpha=0.3)
    return figure


def estimate_memory(
    model: nn.Module, compute_loss: Callable[[nn.Module, dict], torch.Tensor], batch: dict, num_images: int
) -> dict[str, float]:
    """
    Estimate the memory of a training step in float32, in GB: weights, gradients, the two moments of AdamW (Muon needs
    one), and the activations that the forward pass saves for the backward pass. The activations are measured on a small
    batch and scaled to `num_images`.

    Args:
        model, compute_loss, batch: As in the training loop, on the CPU.
        num_images (`int`): Images per device in a forward pass.
    """
    parameters = list(model.parameters())
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    saved = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = compute_loss(model, batch)
    del loss
    weights = sum(parameter.numel() for parameter in parameters) * 4 / GIGABYTE
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad) * 4 / GIGABYTE
    activations = sum(saved.values()) / GIGABYTE / batch_size(batch) * num_images
    return {"weights": weights, "gradients": trained, "AdamW": 2 * trained, "activations": activations}


def _measure_step(task: Task, plan: TrainingPlan, accelerator: Accelerator) -> dict[str, float | str | None]:
    """[`try_step`] with the model, the optimizer and the images of a forward pass of this run."""
    model = task.model.to(accelerator.device)
    set_memory_options(model, plan.args.gradient_checkpointing, plan.args.channels_last)
    batch = send_to_device(first_batch(task, plan.args, plan.per_device_batch_size), accelerator.device)
    return try_step(model, make_optimizer(model, plan.args), task.compute_loss, batch, accelerator.autocast)


def try_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[nn.Module, dict], torch.Tensor],
    batch: dict,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, float | str | None]:
    """
    Measure the memory of a training step on the accelerator that holds model and batch. It runs two steps, since
    the optimizer allocates its state in the first one.

    Returns:
        `dict[str, float | str | None]`: `device`; `peak_gb`, allocated by torch, infinite if memory ran out, None if
        the backend does not count it; `device_gb`, the total memory of the device, None if unknown.
    """
    device = batch_tensor(batch).device

    def step():
        with autocast():
            loss = compute_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    try:
        peak = peak_memory(lambda: (step(), step()), device)["peak_bytes"]
    except torch.OutOfMemoryError:
        peak = math.inf
    total = total_memory(device)
    return {
        "device": device_name(device),
        "peak_gb": None if peak is None else peak / GIGABYTE,
        "device_gb": None if total is None else total / GIGABYTE,
    }


def format_step_memory(device: str, peak_gb: float | None, device_gb: float | None) -> str:
    """The result of [`try_step`] in words."""
    device = device if device_gb is None else f"{device}, which has {device_gb:.2f} GB"
    if peak_gb is None:
        return f"not counted by torch on {device}"
    if math.isinf(peak_gb):
        return f"out of memory on {device}: use a smaller --per_device_train_batch_size"
    return f"{peak_gb:.2f} GB at its peak on {device}"
