# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Random numbers of Python, numpy and torch as functions of given numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix_seeds(*numbers: int) -> int:
    """A 32-bit seed from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_everything(*numbers: int):
    """Seed Python, numpy and torch with a mix of the numbers."""
    seed = mix_seeds(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Make the random numbers of a block a function of the given numbers, and restore all generators afterwards."""
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
