# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Data loaders whose order depends only on the seed, the epoch and the position in the epoch.

A resumed run therefore sees the same batches as an uninterrupted one, on any number of processes and workers. The order
of a stream also depends on the numbers of processes and workers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..signals import leave_stopping_to_main_process
from .samples import EvaluationSamples, TrainingData
from .streams import StreamedBatches


class TrainingBatches:
    """
    Batch sampler of one process: keys of [`TrainingSamples`], one epoch at a time.

    With `repeats`, each shuffled sample is drawn that many times in a row (repeated augmentation, Hoffer et al. 2020),
    each time with another seed, and the epoch keeps its length. Consecutive draws go to different processes.
    """

    def __init__(
        self,
        num_samples: int,
        train_batch_size: int,
        micro_batch_size: int,
        seed: int,
        repeats: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.num_samples, self.repeats, self.seed = num_samples, repeats, seed
        self.length = num_samples // train_batch_size * train_batch_size
        self.micro_batch_size = micro_batch_size  # images per forward pass, over all processes
        self.process_index, self.num_processes = process_index, num_processes
        self.set_position(0, 0)

    def set_position(self, epoch: int, first_batch: int) -> None:
        """Set the epoch of the next iteration, and the batch that the iteration starts with."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return self.length // self.micro_batch_size - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.num_samples).repeat(self.repeats)[: self.length]
        keys = list(zip(order.tolist(), generator.integers(2**31, size=self.length).tolist()))
        for start in range(self.first_batch * self.micro_batch_size, self.length, self.micro_batch_size):
            yield keys[start + self.process_index : start + self.micro_batch_size : self.num_processes]


def evaluation_batches(num_samples: int, batch_size: int, process_index: int, num_processes: int) -> list[list[int]]:
    """Keys of [`EvaluationSamples`] for one process; all processes have the same number of batches, of equal sizes."""
    share = -(-num_samples // num_processes)
    keys = [process_index + num_processes * position for position in range(share)]
    return [keys[start : start + batch_size] for start in range(0, share, batch_size)]


def collate(samples: Sequence[dict[str, Any]], stack_images: bool = True) -> dict[str, Any]:
    """
    Dictionaries with the same keys -> a batch: tensors are stacked, numbers become a tensor, other values form a list.

    Args:
        samples (`Sequence[dict]`): Transformed samples.
        stack_images (`bool`): Whether tensors must have the same shape. If false, tensors of different shapes form a
            list.
    """
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    batch = {}
    for name, values in columns.items():
        if isinstance(values[0], (int, float)):
            batch[name] = torch.tensor(values, device="cpu")
        elif isinstance(values[0], torch.Tensor) and (stack_images or len({value.shape for value in values}) == 1):
            batch[name] = torch.stack(values)
        else:
            batch[name] = values
    return batch


class CollateSamples:
    """Collate function of the loaders: the task's batch, the indices of the samples, and the errors of skipped ones."""

    def __init__(self, collate: Callable[[list[dict]], dict]):
        self.collate = collate

    def __call__(self, samples: Sequence[dict]) -> dict:
        batch = self.collate([sample["sample"] for sample in samples])
        indices = torch.tensor([sample["index"] for sample in samples], device="cpu")
        skipped = [message for sample in samples for message in sample["skipped"]]
        return {"batch": batch, "indices": indices, "skipped": skipped}


@dataclass(frozen=True)
class LoaderOptions:
    """How a process reads data: its index among all processes, and the number of its workers."""

    num_workers: int = 0
    prefetch_factor: int = 4
    process_index: int = 0
    num_processes: int = 1


def training_loader(
    data: TrainingData,
    collate: Callable[[list[dict]], dict],
    train_batch_size: int,
    micro_batch_size: int,
    seed: int,
    options: LoaderOptions,
) -> DataLoader:
    """
    Batches of one process, one epoch at a time; `loader.batches.set_position` sets where an iteration starts.

    Args:
        data, collate: Training data, and the function that makes a batch of transformed samples.
        train_batch_size, micro_batch_size (`int`): Images per step, and per forward pass, over all processes.
        seed (`int`): Seed of the order and the augmentation.
        options ([`LoaderOptions`]): How to read the data.
    """
    collate = CollateSamples(collate)
    settings = {"seed": seed, "repeats": data.repeats, "process_index": options.process_index}
    if not data.is_stream:
        batches = TrainingBatches(
            len(data.samples), train_batch_size, micro_batch_size, num_processes=options.num_processes, **settings
        )
        loader = make_loader(data.samples, options, batch_sampler=batches, collate_fn=collate)
    else:
        per_process = micro_batch_size // options.num_processes
        settings["shuffle_buffer"] = data.shuffle_buffer
        batches = StreamedBatches(data.stream, data.read, data.transform, collate, per_process, **settings)
        # Workers copy the position when they start, so they live for one epoch only.
        loader = make_loader(batches, options, batch_size=None, persistent_workers=False)
    loader.batches = batches
    return loader


def evaluation_loader(
    samples: EvaluationSamples, collate: Callable[[list[dict]], dict], batch_size: int, options: LoaderOptions
) -> DataLoader:
    """Batches of one process; all processes together read every sample once, apart from fillers with index -1."""
    keys = evaluation_batches(len(samples), batch_size, options.process_index, options.num_processes)
    return make_loader(samples, options, batch_sampler=keys, collate_fn=CollateSamples(collate))


def make_loader(dataset: Dataset, options: LoaderOptions, **kwargs: Any) -> DataLoader:
    """A `DataLoader` whose workers, if any, persist between epochs and prefetch."""
    if options.num_workers > 0:
        kwargs = {"persistent_workers": True, "prefetch_factor": options.prefetch_factor, **kwargs}
        kwargs["worker_init_fn"] = leave_stopping_to_main_process
    else:
        kwargs.pop("persistent_workers", None)
    return DataLoader(dataset, num_workers=options.num_workers, pin_memory=torch.cuda.is_available(), **kwargs)
