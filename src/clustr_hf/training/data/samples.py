# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Samples in an order, and with random numbers, that are functions of seed, epoch and place in the epoch alone.

So a run that resumes sees the same batches as one that never stopped, and neither the number of processes nor that of
data loading workers changes what is trained on. Samples that cannot be read are skipped, named and counted.
"""

import random
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ...remote_code.image_reading_clustr import find_transposition, load_image, open_image
from ..signals import leave_stopping_to_main_process
from .labelled_rows import naming_files


# Samples of a stream among which the next one is drawn; ImageNet's encoded images take about 0.2 GB for each worker.
SHUFFLE_BUFFER = 2048
# How many samples may be unreadable one after the other before that is an error of its own.
MOST_ATTEMPTS = 20


class UnreadableSample(Exception):
    """A sample whose file is broken; the message names it."""


def decode_image(image: Any, name: str) -> Image.Image:
    """
    The pixels of an image column.

    Args:
        image (`dict` or `PIL.Image.Image`): What `datasets.Image(decode=False)` gives: `bytes` or a `path`.
        name (`str`): What to call the sample in an error.

    Raises:
        UnreadableSample: for whatever goes wrong in decoding.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, Mapping) or (image.get("bytes") is None and image.get("path") is None):
        raise UnreadableSample(f"{name}: must be an image, with its bytes or its path, got {reprlib.repr(image)}")
    try:
        return load_image(open_image(Path(image["path"]) if image.get("bytes") is None else image["bytes"]))
    except Exception as error:  # PIL's plugins raise almost anything for broken files
        raise _unreadable(image, name, error) from error


def decode_rgb(image: Any, name: str, processor) -> Image.Image:
    """
    An image column as an upright RGB image; whatever is not one is turned and converted as the processor does it.

    Args:
        image, name: As in [`decode_image`].
        processor (`BaseImageProcessor`): Converts images.

    Raises:
        UnreadableSample: for whatever goes wrong in decoding and converting.
    """
    decoded = decode_image(image, name)
    if decoded.mode == "RGB" and find_transposition(decoded) is None:
        return decoded  # as most are; the processor would copy it twice
    try:
        pixels = processor.process_image(decoded, do_convert_rgb=True)
    except Exception as error:
        raise _unreadable(image, name, error) from error
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _unreadable(image: Any, name: str, error: Exception) -> UnreadableSample:
    path = f" ({image['path']})" if isinstance(image, dict) and image.get("path") else ""
    error = error.__cause__ or error  # what PIL says, where there is such
    reason = re.sub(r" <_io\.BytesIO object at \w+>", "", str(error))  # the same sample has the same message
    return UnreadableSample(f"{name}{path}: {reason}")


def transform_named(transform: Callable[[Any], dict], sample: Any, read: Callable[[Any], Any], key: Any) -> dict:
    """
    The transformed sample; an error of the transform says of which sample it is.

    Args:
        transform, sample: What to call, and on what.
        read, key: What the sample was read by; `read.name(key)` is what it is called in errors, if there is such.
    """
    try:
        return transform(sample)
    except Exception as error:
        name = read.name(key) if hasattr(read, "name") else f"sample {key}"
        message = f"{name}: {error}"
        try:
            named = type(error)(message)
        except Exception:  # of arguments of its own
            named = RuntimeError(f"{name}: {error!r}")
        raise named from error


def mix_seeds(*numbers: int) -> int:
    """One seed of 32 bits from several numbers of at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_everything(*numbers: int):
    """Seed Python, numpy and torch with a mix of the numbers."""
    seed = mix_seeds(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Random numbers of this block are a function of the given numbers; those after it go on as if it had not been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = mix_seeds(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class TrainingSamples(Dataset):
    """
    Transformed samples of a data set with random access.

    Args:
        read (`Callable[[int], Any]`): Index -> a decoded sample; raises [`UnreadableSample`].
        transform (`Callable[[Any], dict]`): Decoded sample -> what the collate function takes; may be random.
        num_samples (`int`): How many there are.

    A key is (index, seed of the transform). An unreadable sample is replaced by another one, always the same.
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
    The same to evaluate on. A key is a place in [0, num_samples); those beyond fill up the last batches of a process.

    Fillers, and what stands in for unreadable samples, have the index -1.
    """

    def __getitem__(self, key: int) -> dict:
        place = key % self.num_samples
        candidates = ((place + offset) % self.num_samples for offset in range(self.num_samples))
        sample, index, skipped = read_first(self.read, candidates)
        counts = key < self.num_samples
        return {
            "sample": transform_named(self.transform, sample, self.read, index),
            "index": index if counts and index == place else -1,
            "skipped": skipped if counts else [],
        }


def read_first(read: Callable[[Any], Any], candidates: Iterable[Any]) -> tuple[Any, Any, list[str]]:
    """The first candidate that can be read, its key, and what was wrong with those before it."""
    skipped = []
    for candidate in candidates:
        try:
            return read(candidate), candidate, skipped
        except UnreadableSample as error:
            skipped.append(str(error))
        if len(skipped) == MOST_ATTEMPTS:
            break
    raise RuntimeError(f"{len(skipped)} samples in a row cannot be read: {'; '.join(skipped[:3])} ...")


def spread_evenly(samples: EvaluationSamples, number: int) -> Iterator[Any]:
    """At most so many decoded samples that lie evenly in a split; the next one where one cannot be read."""
    total = len(samples)
    number = min(number, total)
    for first in range(0, number * total, total):
        yield read_first(samples.read, ((first // number + offset) % total for offset in range(total)))[0]


class TrainingBatches:
    """
    Batch sampler of one process: keys of [`TrainingSamples`], one epoch at a time.

    Every `repeats`-th of the shuffled samples is drawn `repeats` times in a row (repeated augmentation, Hoffer et al.
    2020), each time with another seed; an epoch is as long as without. Neighbours go to different processes.
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
        self.micro_batch_size = micro_batch_size  # images of all processes that go forward at a time
        self.process_index, self.num_processes = process_index, num_processes
        self.set_position(0, 0)

    def set_position(self, epoch: int, first_batch: int):
        """Which epoch the next iteration goes over, and from which batch on."""
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
    """Keys of [`EvaluationSamples`] for one process; all processes have equally many batches of equal size."""
    share = -(-num_samples // num_processes)
    keys = [process_index + num_processes * place for place in range(share)]
    return [keys[start : start + batch_size] for start in range(0, share, batch_size)]


class StreamedBatches(IterableDataset):
    """
    Training batches of one process from a stream, without end: begins anew where its part of the stream ends.

    Args:
        stream (`datasets.IterableDataset`): Rows; shuffled by shards and within a buffer, another way every epoch.
        read, transform, collate (`Callable`): Row -> decoded sample -> transformed one; list of these -> batch.
        batch_size (`int`): Samples of a batch.
        shuffle_buffer (`int`): Samples among which the next one is drawn.

    The order is a function of seed, epoch, and the numbers of processes and workers. To resume, batches before the
    given position are read but not decoded, and come out as None.
    """

    def __init__(
        self,
        stream,
        read: Callable[[dict], Any],
        transform: Callable[[Any], dict],
        collate: Callable[[list[dict]], dict],
        batch_size: int,
        seed: int,
        repeats: int = 1,
        process_index: int = 0,
        shuffle_buffer: int = SHUFFLE_BUFFER,
    ):
        self.stream, self.read, self.transform, self.collate = stream, read, transform, collate
        self.batch_size, self.seed, self.repeats, self.process_index = batch_size, seed, repeats, process_index
        self.shuffle_buffer = shuffle_buffer
        self.set_position(0, 0)

    def set_position(self, epoch: int, first_batch: int):
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[dict | None]:
        worker = get_worker_info()
        worker_index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self._rows()
        # Others of its batch, or the first of the epoch, stand in for an unreadable sample: also after resuming.
        stand_ins = list(islice(rows, MOST_ATTEMPTS - 1))
        rows = chain(stand_ins, rows)
        for batch in count():
            drawn = list(islice(rows, self.batch_size))
            if batch * num_workers + worker_index < self.first_batch:
                yield None
                continue
            place = (self.seed, self.epoch, self.process_index, worker_index, batch)
            yield self.collate(
                [self._sample([row, *drawn, *stand_ins], *place, number) for number, row in enumerate(drawn)]
            )

    def _rows(self) -> Iterator[dict]:
        shuffled = self.stream.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        for turn in count():
            shuffled.set_epoch(self.epoch + 1_000_003 * turn)
            read_any = False
            with naming_files(self.stream):
                for row in shuffled:
                    read_any = True
                    yield from repeat(row, self.repeats)
            if not read_any:
                raise RuntimeError(
                    "the stream has no samples for a worker: --dataloader_num_workers must not exceed its shards"
                )

    def _sample(self, candidates: list[dict], *place: int) -> dict:
        sample, row, skipped = read_first(self.read, candidates)
        with seeded(*place):
            transformed = transform_named(self.transform, sample, self.read, row)
        return {"sample": transformed, "index": -1, "skipped": skipped}


class CollateSamples:
    """Collate function of the loaders: the task's own batch, the samples' indices, and which ones were skipped."""

    def __init__(self, collate: Callable[[list[dict]], dict]):
        self.collate = collate

    def __call__(self, samples: Sequence[dict]) -> dict:
        batch = self.collate([sample["sample"] for sample in samples])
        indices = torch.tensor([sample["index"] for sample in samples], device="cpu")
        skipped = [message for sample in samples for message in sample["skipped"]]
        return {"batch": batch, "indices": indices, "skipped": skipped}


@dataclass
class TrainingData:
    """
    What to train on: `samples` with random access, or else a `stream` with the functions that turn its rows into
    samples, and its length, if that is known.

    Args:
        samples ([`TrainingSamples`], *optional*): Samples with random access.
        stream, read, transform (*optional*): As in [`StreamedBatches`].
        num_samples (`int`, *optional*): How many there are.
        repeats (`int`): How often a sample is drawn in a row (repeated augmentation).
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


@dataclass(frozen=True)
class LoaderOptions:
    """How a process reads: its place among all, and how many workers help it."""

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
    Batches of one process, an epoch at a time; `loader.batches.set_position` says where an iteration begins.

    Args:
        data, collate: What to read and how samples become a batch.
        train_batch_size, micro_batch_size (`int`): Images of a step, and of one forward pass, over all processes.
        seed (`int`): Of order and augmentation.
        options ([`LoaderOptions`]): How to read.
    """
    collate = CollateSamples(collate)
    place = {"seed": seed, "repeats": data.repeats, "process_index": options.process_index}
    if not data.is_stream:
        batches = TrainingBatches(
            len(data.samples), train_batch_size, micro_batch_size, num_processes=options.num_processes, **place
        )
        loader = make_loader(data.samples, options, batch_sampler=batches, collate_fn=collate)
    else:
        per_process = micro_batch_size // options.num_processes
        place["shuffle_buffer"] = data.shuffle_buffer
        batches = StreamedBatches(data.stream, data.read, data.transform, collate, per_process, **place)
        # Workers get a copy of the position when they start, so they live for an epoch only.
        loader = make_loader(batches, options, batch_size=None, persistent_workers=False)
    loader.batches = batches
    return loader


def evaluation_loader(
    samples: EvaluationSamples, collate: Callable[[list[dict]], dict], batch_size: int, options: LoaderOptions
) -> DataLoader:
    """Batches of one process; all processes together have every sample once, apart from fillers of index -1."""
    keys = evaluation_batches(len(samples), batch_size, options.process_index, options.num_processes)
    return make_loader(samples, options, batch_sampler=keys, collate_fn=CollateSamples(collate))


def make_loader(dataset: Dataset, options: LoaderOptions, **kwargs) -> DataLoader:
    """A `DataLoader` whose workers, if any, stay alive between epochs and read ahead."""
    if options.num_workers > 0:
        kwargs = {"persistent_workers": True, "prefetch_factor": options.prefetch_factor, **kwargs}
        kwargs["worker_init_fn"] = leave_stopping_to_main_process
    else:
        kwargs.pop("persistent_workers", None)
    return DataLoader(dataset, num_workers=options.num_workers, pin_memory=torch.cuda.is_available(), **kwargs)
