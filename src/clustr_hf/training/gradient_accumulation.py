# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
One training step: divides its batch into micro-batches, and updates the weights once with the accumulated gradients.

`train_batch_size` = number of processes x images per device x accumulated micro-batches.
"""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn

from .arguments import LoopArguments


def divide_batch(args: LoopArguments, num_processes: int) -> tuple[int, int]:
    """
    Divide the batch of a step among processes and micro-batches.

    Returns:
        `tuple[int, int]`: images per device in a micro-batch, and the number of micro-batches to accumulate.

    Raises:
        ValueError: if the division leaves a remainder.
    """
    if args.train_batch_size % num_processes:
        raise ValueError(
            f"--train_batch_size must be divisible by the number of processes, got {args.train_batch_size} for "
            f"{num_processes} processes"
        )
    share = args.train_batch_size // num_processes
    per_device = min(args.per_device_train_batch_size or share, share)
    if share % per_device:
        raise ValueError(
            f"--per_device_train_batch_size must divide the share of --train_batch_size of one process, {share}, got "
            f"{per_device}"
        )
    return per_device, share // per_device


def update_weights(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[nn.Module, dict], torch.Tensor],
    micro_batches: Iterable[dict],
    max_grad_norm: float | None = None,
) -> torch.Tensor:
    """
    Accumulate the gradients of the micro-batches and update the weights once.

    `accelerator.backward` divides each loss by `accelerator.gradient_accumulation_steps`, so that the sum is
    the gradient of the mean loss over the whole batch. Within `accelerator.accumulate`, the optimizer does nothing and
    processes do not exchange gradients before the last micro-batch.

    Args:
        accelerator (`Accelerator`): Its `gradient_accumulation_steps`, the number of micro-batches, is the divisor;
            `TrainingLoop` sets it.
        model, optimizer: As prepared by the accelerator.
        compute_loss (`Callable[[nn.Module, dict], torch.Tensor]`): Mean loss of a micro-batch, with gradient.
        micro_batches (`Iterable[dict]`): The micro-batches of this process, on its device.
        max_grad_norm (`float`, *optional*): Norm to which the accumulated gradient is clipped.

    Returns:
        `torch.Tensor`: the mean loss of this process, a scalar in float32.
    """
    losses = []
    for batch in micro_batches:
        with accelerator.accumulate(model):
            loss = compute_loss(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients and max_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach().float())
    return torch.stack(losses).mean()
