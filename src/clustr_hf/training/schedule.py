# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The plan of a run: batches, number of steps, and the learning rate of every step."""

import math
from dataclasses import dataclass

from .arguments import LoopArguments
from .gradient_accumulation import divide_batch


MULTISTEP_FACTOR = 0.1


@dataclass(frozen=True)
class TrainingPlan:
    """
    Batches and schedule of a run; [`TrainingPlan.make`] derives them from arguments, data and number of processes.

    A step is one update of the weights by `train_batch_size` images: `per_device_batch_size` images on each of
    `num_processes` devices, `accumulation` times. An epoch consists of whole steps; the remaining images are
    left out, a different set in each epoch.
    """

    args: LoopArguments
    num_samples: int | None  # None: a stream of unknown length, which is one epoch
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
            ValueError: if the batch cannot be divided among processes, the data is smaller than a batch, or
                `max_train_steps` is missing for a stream of unknown length.
        """
        per_device, accumulation = divide_batch(args, num_processes)
        if num_samples is None and args.max_train_steps is None:
            raise ValueError("--max_train_steps is needed: the stream does not state its number of samples")
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

        As in timm and OpenMMLab, the warm-up replaces the beginning of the schedule: the rate grows linearly from
        `warmup_learning_rate` to the peak, and the schedule then continues as if it had started at step 0.

        The schedulers of timm compute the same rates except for rounding, so that a run that resumes from a checkpoint
        of an earlier release would end with other weights. Those of transformers start the decay after the warm-up.
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

    def describe(self) -> dict[str, str]:
        """Batches and schedule in words, for the log and for `--dry_run`."""
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
