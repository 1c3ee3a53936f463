# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Images per second for growing batches."""

import itertools
import statistics
from typing import Any

from torch import nn

from benchmark.measurements.attempts import attempt
from benchmark.measurements.inputs import Setting, image_like_noise
from benchmark.measurements.steps import make_step
from benchmark.measurements.timing import seconds_of
from clustr_hf.devices import free_memory, make_clock, peak_memory


# Timed passes of each batch size.
BATCH_REPEATS = 5
# Different images in a batch; larger batches repeat them, since their noise is drawn on the CPU.
MAX_DIFFERENT_IMAGES = 32


def images_per_second(
    model: nn.Module,
    size: tuple[int, int],
    pass_name: str,
    dtype: str,
    device: str,
    largest_batch: int | None,
    seed: int,
) -> dict[str, Any]:
    """
    Images per second of an eager pass in batches of 1, 2, 4, ... images, up to `largest_batch` or until memory is full.

    Returns:
        `dict[str, Any]`: `batches`, a list with `batch`, `images_per_second` and `peak_bytes` of each batch that
        fits into memory, and `stopped_by`, the message of the failure that ended the list, or `None`.
    """
    batches, stopped_by = [], None
    for batch in (2**power for power in itertools.count()):
        if largest_batch is not None and batch > largest_batch:
            break
        measured, stopped_by = attempt(_time_batch, model, Setting(*size, batch), pass_name, dtype, device, seed)
        free_memory(device)
        if stopped_by is not None:
            break
        batches.append({"batch": batch, **measured})
    return {"batches": batches, "stopped_by": stopped_by}


def _time_batch(
    model: nn.Module, setting: Setting, pass_name: str, dtype: str, device: str, seed: int
) -> dict[str, float | int | None]:
    noise = image_like_noise(setting._replace(batch=min(setting.batch, MAX_DIFFERENT_IMAGES)), seed).to(device)
    pixel_values = noise.repeat(-(-setting.batch // len(noise)), 1, 1, 1)[: setting.batch]
    step = make_step(model, pixel_values, pass_name, compiled=False, dtype=dtype)
    peak = peak_memory(lambda: (step(), step()), device)  # also serves as warm-up
    clock = make_clock(device)
    seconds = statistics.median(seconds_of(step, clock) for _ in range(BATCH_REPEATS))
    return {"images_per_second": setting.batch / seconds, "peak_bytes": peak["peak_bytes"]}
