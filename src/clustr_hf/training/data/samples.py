# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Transformed samples with random access; unreadable samples are skipped, named and counted.

The random numbers of a transform depend only on the sample's key, so that the numbers of processes and of data-loading
workers do not change the training data.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .decoding import UnreadableSample
from .seeds import seeded


# Size of the shuffle buffer of a stream in samples; ImageNet's encoded images take about 0.2 GB per worker.
SHUFFLE_BUFFER = 2048
# Consecutive unreadable samples that are skipped before an error is raised.
MAX_ATTEMPTS = 20


class TrainingSamples(Dataset):
    """
    Transformed samples of a data set with random access.

    Args:
        read (`Callable[[int], Any]`): Index -> decoded sample; raises [`UnreadableSample`]. Errors call a sample
            `read.name(index)` if there is such a method.
        transform (`Callable[[Any], dict]`): Decoded sample -> input of the collate function; may be random.
        num_samples (`int`): Number of samples.

    A key is a pair (index, seed of the transform). The replacement of an unreadable sample depends only on its key.
    """

    def __init__(self, read: Callable[[int], Any], transform: Callable[[Any], dict], num_samples: int):
        self.read, self.transform, self.num_samples = read, transform, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, seed = key
        sample, index, skipped = read_first(self.read, self._candidates(index, seed))
        with seeded(seed):
            transformed = transform_named(self.transform, sample, self.read, index)
        return {"sample": transformed, "index": index, "skipped": skipped}

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        others = np.random.default_rng(seed)
        return chain([index], (int(others.integers(self.num_samples)) for _ in count()))


class EvaluationSamples(TrainingSamples):
    """
    Transformed samples to evaluate on; the transform must not be random.

    A key is a position in [0, num_samples). Larger keys are fillers, which complete the last batch of a process.
    Fillers and replacements of unreadable samples have the index -1 and are not evaluated.
    """

    def __getitem__(self, key: int) -> dict:
        position = key % self.num_samples
        candidates = ((position + offset) % self.num_samples for offset in range(self.num_samples))
        sample, index, skipped = read_first(self.read, candidates)
        is_filler = key >= self.num_samples
        return {
            "sample": transform_named(self.transform, sample, self.read, index),
            "index": -1 if is_filler or index != position else index,
            "skipped": [] if is_filler else skipped,
        }


def read_first(read: Callable[[Any], Any], candidates: Iterable[Any]) -> tuple[Any, Any, list[str]]:
    """The first readable candidate, its key, and the errors of the candidates before it."""
    skipped = []
    for candidate in candidates:
        try:
            return read(candidate), candidate, skipped
        except UnreadableSample as error:
            skipped.append(str(error))
        if len(skipped) == MAX_ATTEMPTS:
            break
    raise RuntimeError(f"{len(skipped)} samples in a row cannot be read: {'; '.join(skipped[:3])} ...")


def transform_named(transform: Callable[[Any], dict], sample: Any, read: Callable[[Any], Any], key: Any) -> dict:
    """
    Transform a sample; an error of the transform names the sample.

    Args:
        transform, sample: Function and its argument.
        read, key: Function and key that the sample was read with. Errors call the sample `read.name(key)` if there is
            such a method.
    """
    try:
        return transform(sample)
    except Exception as error:
        name = read.name(key) if hasattr(read, "name") else f"sample {key}"
        message = f"{name}: {error}"
        try:
            named = type(error)(message)
        except Exception:  # the type takes other arguments
            named = RuntimeError(f"{name}: {error!r}")
        raise named from error


def spread_evenly(samples: EvaluationSamples, number: int) -> Iterator[Any]:
    """At most `number` decoded samples, evenly spaced in the split; an unreadable one is replaced by the next."""
    total = len(samples)
    number = min(number, total)
    for first in range(0, number * total, total):
        yield read_first(samples.read, ((first // number + offset) % total for offset in range(total)))[0]


@dataclass
class TrainingData:
    """
    Training data: either `samples` with random access, or a `stream` with the functions that turn its rows into
    samples, and its length if that is known.

    Args:
        samples ([`TrainingSamples`], *optional*): Samples with random access.
        stream, read, transform (*optional*): As in [`StreamedBatches`].
        num_samples (`int`, *optional*): Length of the stream.
        repeats (`int`): Number of consecutive draws of each sample (repeated augmentation).
        shuffle_buffer (`int`): As in [`StreamedBatches`].
    """

    samples: TrainingSamples | None = None
    stream: Any = None
    read: Callable[[dict], Any] | None = None
    transform: Callable[[Any], dict] | None = None
    num_samples: int | None = None
    repeats: int = 1
    shuffle_buffer: int = SHUFFLE_BUFFER

    def __post_init__(self):
        if self.samples is not None:
            self.num_samples = len(self.samples)

    @property
    def is_stream(self) -> bool:
        return self.samples is None
