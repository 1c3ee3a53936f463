# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Training batches from a stream of `datasets`.

Resuming reads the stream from its start and skips decoding. `IterableDataset.state_dict` would be faster, but it drops
the shuffle buffer, so that a resumed run would not see the batches of an uninterrupted one.
"""

from collections.abc import Callable, Iterator
from itertools import chain, count, islice, repeat
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from .data_files import naming_broken_files
from .samples import MAX_ATTEMPTS, SHUFFLE_BUFFER, read_first, transform_named
from .seeds import seeded


class StreamedBatches(IterableDataset):
    """
    Endless training batches of one process from a stream, which is reshuffled each time it ends.

    Args:
        stream (`datasets.IterableDataset`): Rows. Shards, and samples within a buffer, are reshuffled every epoch.
        read, transform, collate (`Callable`): Row -> decoded sample -> transformed sample; list of samples -> batch.
        batch_size (`int`): Samples per batch.
        shuffle_buffer (`int`): Number of samples from which the next one is drawn.

    The order depends on the seed, the epoch and the numbers of processes and workers. When a run resumes, batches
    before the given position are read but not decoded, and are None.
    """

    def __init__(
        self,
        stream: Any,
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

    def set_position(self, epoch: int, first_batch: int) -> None:
        """Set the epoch of the next iteration, and the batch that the iteration starts with."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[dict | None]:
        worker = get_worker_info()
        worker_index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self._rows()
        # Unreadable samples are replaced by others of the batch or by the first rows of the epoch, also after resuming.
        stand_ins = list(islice(rows, MAX_ATTEMPTS - 1))
        rows = chain(stand_ins, rows)
        for batch in count():
            drawn = list(islice(rows, self.batch_size))
            if batch * num_workers + worker_index < self.first_batch:
                yield None
                continue
            seeds = (self.seed, self.epoch, self.process_index, worker_index, batch)
            yield self.collate(
                [self._sample([row, *drawn, *stand_ins], *seeds, number) for number, row in enumerate(drawn)]
            )

    def _rows(self) -> Iterator[dict]:
        shuffled = self.stream.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        for turn in count():
            shuffled.set_epoch(self.epoch + 1_000_003 * turn)
            read_any = False
            with naming_broken_files(self.stream):
                for row in shuffled:
                    read_any = True
                    yield from repeat(row, self.repeats)
            if not read_any:
                raise RuntimeError(
                    "the stream has no samples for a worker: --dataloader_num_workers must not exceed its shards"
                )

    def _sample(self, candidates: list[dict], *seeds: int) -> dict:
        sample, row, skipped = read_first(self.read, candidates)
        with seeded(*seeds):
            transformed = transform_named(self.transform, sample, self.read, row)
        return {"sample": transformed, "index": -1, "skipped": skipped}
