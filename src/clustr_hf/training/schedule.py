# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What a run amounts to: images a step, steps, learning rate of every step; and the memory that a step needs."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import nn

from .arguments import LoopArguments
from .devices import device_name, peak_memory, total_memory
from .task import batch_size, batch_tensor


MULTISTEP_FACTOR = 0.1


@dataclass(frozen=True)
class TrainingPlan:
    """
    Batches and schedule of a run, as they follow from the arguments, the data and the number of processes.

    A step is one update of the weights by `train_batch_size` images: `accumulation` times `per_device_batch_size`
    images on each of `num_processes`. Epochs have whole steps; images beyond the last one wait for the next shuffle.
    """

    args: LoopArguments
    num_samples: int | None  # None: a stream of unknown length, which counts as one epoch
    num_processes: int
    per_device_batch_size: int
    accumulation: int
    steps_per_epoch: int
    num_steps: int
    warmup_steps: int

    @classmethod
    def make(cls, args: LoopArguments, num_samples: int | None, num_processes: int) -> "TrainingPlan":
        """
        Raises:
            ValueError: if the batch does not divide among processes, the data is smaller than a batch, or a stream of
                unknown length comes without `max_train_steps`.
        """
        per_device, accumulation = divide_batch(args, num_processes)
        if num_samples is None and args.max_train_steps is None:
            raise ValueError("--max_train_steps is needed: the stream does not say how many samples it has")
        if num_samples is not None and num_samples < args.train_batch_size:
            raise ValueError(f"--train_batch_size is {args.train_batch_size}, but there are {num_samples} samples")
        steps_per_epoch = args.max_train_steps if num_samples is None else num_samples // args.train_batch_size
        num_steps = args.max_train_steps or max(1, round(args.num_train_epochs * steps_per_epoch))
        warmup = round(args.warmup_epochs * steps_per_epoch) if args.warmup_steps is None else args.warmup_steps
        return cls(args, num_samples, num_processes, per_device, accumulation, steps_per_epoch, num_steps, warmup)

    @property
    def peak_learning_rate(self) -> float:
        args = self.args
        return args.learning_rate * args.train_batch_size / (args.learning_rate_batch_size or args.train_batch_size)

    def learning_rate(self, step: int) -> float:
        """
        Learning rate of the update from `step` to `step + 1`, `step` in [0, num_steps).

        As in timm and OpenMMLab, the schedule's time begins with the first step, and the warm-up replaces its
        beginning: it grows linearly from `warmup_learning_rate` to the peak.
        """
        args, peak = self.args, self.peak_learning_rate
        if step < self.warmup_steps:
            return args.warmup_learning_rate + (peak - args.warmup_learning_rate) * step / self.warmup_steps
        progress, lowest = step / self.num_steps, args.min_learning_rate
        if args.lr_scheduler_type == "cosine":
            return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2
        if args.lr_scheduler_type == "polynomial":
            return lowest + (peak - lowest) * (1 - progress) ** args.polynomial_power
        if args.lr_scheduler_type == "multistep":
            passed = sum(step >= round(epoch * self.steps_per_epoch) for epoch in args.lr_milestones)
            return peak * MULTISTEP_FACTOR**passed
        return peak

    def describe(self) -> dict[str, object]:
        """What `--dry_run` prints about batches and schedule."""
        last = self.learning_rate(self.num_steps - 1)
        return {
            "training samples": "unknown (stream)" if self.num_samples is None else f"{self.num_samples:,}",
            "images per step": (
                f"{self.args.train_batch_size:,} = {self.num_processes} processes x {self.per_device_batch_size} images"
                f" x {self.accumulation} accumulated"
            ),
            "steps": f"{self.num_steps:,} ({self.steps_per_epoch:,} an epoch, {self.warmup_steps:,} of warm-up)",
            "learning rate": f"{self.learning_rate(0):.3g}, peak {self.peak_learning_rate:.3g}, last {last:.3g}",
        }


def divide_batch(args: LoopArguments, num_processes: int) -> tuple[int, int]:
    """Images on a device at a time, and how many times they are accumulated."""
    if args.train_batch_size % num_processes:
        raise ValueError(
            f"--train_batch_size must be divisible by the number of processes, got {args.train_batch_size} for "
            f"{num_processes} processes"
        )
    share = args.train_batch_size // num_processes
    per_device = min(args.per_device_train_batch_size or share, share)
    if share % per_device:
        raise ValueError(
            f"--per_device_train_batch_size must divide a process's share of --train_batch_size, {share}, got "
            f"{per_device}"
        )
    return per_device, share // per_device


def plot_learning_rate(plan: TrainingPlan, points: int = 1000) -> Figure:
    """The learning rate over the steps."""
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
    Memory of a training step in float32, in GB: weights, gradients, AdamW's two moments (Muon's are half of it), and
    what the forward pass saves for the backward pass, measured on a small batch and multiplied.

    Args:
        model, compute_loss, batch: As in the training loop, all on the CPU; `batch["pixel_values"]` has its images.
        num_images (`int`): Images on a device at a time.
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
    weights = sum(parameter.numel() for parameter in parameters) * 4 / 1e9
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad) * 4 / 1e9
    activations = sum(saved.values()) / 1e9 / batch_size(batch) * num_images
    return {"weights": weights, "gradients": trained, "AdamW": 2 * trained, "activations": activations}


def try_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[nn.Module, dict], torch.Tensor],
    batch: dict,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, float | str | None]:
    """
    Memory of a training step on the accelerator that model and batch are on. The step is taken twice: the optimizer
    makes its state in the first one.

    Returns:
        `dict[str, float | str | None]`: `device`; `peak_gb`, allocated by torch, infinite where memory ran out, None
        where the backend does not count; and `device_gb`, all memory of the device, None where it is not known.
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
        "peak_gb": None if peak is None else peak / 1e9,
        "device_gb": None if total is None else total / 1e9,
    }
