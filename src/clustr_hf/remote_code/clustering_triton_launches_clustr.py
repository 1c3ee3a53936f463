# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Launch configurations of the Triton kernels: tile sizes, warps and precision by architecture, dtype and channels.

The kernels themselves are imported on demand, by [`load_kernels`].
"""

import functools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch


PRECISIONS = ("ieee", "tf32x3")

# Channels of one block in the kernels that pass over the tokens once: at least 16, which a matrix product needs.
MIN_BLOCK, MAX_BLOCK = 16, 64


class Launch(NamedTuple):
    """
    Configuration of the two kernels that search for nearest tokens (clustering_triton_nearest_kernels_clustr.py).

    Args:
        rows, columns (`int`): Tile of `filter_nearest`.
        block (`int`): Channels of one of its matrix products.
        warps (`int`): Warps of its programs.
        stages (`int`): Stages of Triton's software pipeline, if the channels fill several blocks.
        slots (`int`):
            Smallest length of its lists for k > 1. Longer lists flag fewer rows for a second sweep, but need more
            insertions.
        exact_rows, exact_columns, exact_block, exact_warps (`int`): The same for `measure_nearest`.
        exact_channels (`int`): Channels that `measure_nearest` measures at a time.
        precision (`str`):
            Product of float32 numbers: `"ieee"`, or `"tf32x3"` (three passes of TF32) on matrix units that have it.
    """

    rows: int = 64
    columns: int = 64
    block: int = 64
    warps: int = 4
    stages: int = 2
    slots: int = 8
    exact_rows: int = 32
    exact_columns: int = 32
    exact_block: int = 32
    exact_channels: int = 8
    exact_warps: int = 4
    precision: str = "ieee"

    def filter_settings(self, max_block: int) -> dict[str, int]:
        """Keyword arguments of `filter_nearest`."""
        return dict(
            ROWS=self.rows,
            COLUMNS=self.columns,
            BLOCK_C=min(self.block, max_block),
            num_warps=self.warps,
            num_stages=self.stages,
        )

    def measure_settings(self, max_block: int) -> dict[str, int]:
        """Keyword arguments of `measure_nearest`."""
        return dict(
            ROWS=self.exact_rows,
            COLUMNS=self.exact_columns,
            BLOCK_C=min(self.exact_block, max_block),
            MEASURED_C=self.exact_channels,
            num_warps=self.exact_warps,
        )


# By architecture, bits of a token's element, and the largest number of channels that an entry is for. Chosen from the
# compiler's report (no register spills, shared memory within the chip's limit); not tuned by timing.
LAUNCHES: dict[str, dict[int, dict[int, Launch]]] = {
    "sm_80": {
        32: {1024: Launch(columns=32, block=32, precision="tf32x3", exact_rows=16)},
        16: {1024: Launch(warps=8, exact_rows=16)},
    },
    "sm_90": {
        32: {
            64: Launch(precision="tf32x3", exact_rows=64, exact_warps=8),
            1024: Launch(columns=32, block=32, precision="tf32x3", exact_rows=64, exact_warps=8),
        },
        16: {1024: Launch(exact_rows=64, exact_warps=8)},
    },
    "gfx942": {32: {1024: Launch(warps=8)}, 16: {1024: Launch()}},
}
# The least demanding configuration, for architectures without an entry.
DEFAULT_LAUNCH = Launch(rows=32, columns=32, block=32, stages=1)


def find_launch(tokens: torch.Tensor) -> Launch:
    """
    The [`Launch`] for these tokens: from the file `launch_configs/<name of the device>.json` beside this one if it
    exists, else from `LAUNCHES`. One underscore replaces each run of characters in the name that are neither letters
    nor digits. The file has the form of an entry of `LAUNCHES`, `{"32": {"64": {"rows": 64, ...}, ...}, ...}`.
    """
    launches = _launches(tokens.device.type, tokens.device.index)
    return choose_launch(launches, 8 * tokens.element_size(), tokens.shape[-1])


def choose_launch(launches: dict[int, dict[int, Launch]], bits: int, channels: int) -> Launch:
    """The entry with the smallest sufficient number of channels."""
    by_channels = launches.get(bits, {})
    return next((by_channels[limit] for limit in sorted(by_channels) if channels <= limit), DEFAULT_LAUNCH)


@functools.cache
def _launches(device_type: str, device_index: int | None) -> dict[int, dict[int, Launch]]:
    if device_type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device_index)
    is_amd = torch.version.hip is not None
    architecture = properties.gcnArchName.split(":")[0] if is_amd else f"sm_{properties.major}{properties.minor}"
    return launches_of(properties.name, architecture)


def launches_of(name: str, architecture: str) -> dict[int, dict[int, Launch]]:
    """
    The launch configurations of a device, by its product name and its architecture (such as "sm_90" or "gfx942").

    NVIDIA architectures after sm_80 that have no entry use that of sm_80, whose requirements they all meet.
    """
    tuned = Path(__file__).parent / "launch_configs" / f"{re.sub('[^A-Za-z0-9]+', '_', name)}.json"
    if tuned.is_file():
        return read_launches(tuned)
    if architecture.startswith("sm_") and int(architecture[3:]) >= 80:
        return LAUNCHES.get(architecture, LAUNCHES["sm_80"])
    return LAUNCHES.get(architecture, {})


def read_launches(path: Path) -> dict[int, dict[int, Launch]]:
    """
    Read launch configurations from a JSON file.

    Raises:
        ValueError: if the file does not have the form of `LAUNCHES`' entries, or names a precision without an error
            bound.
    """
    try:
        launches = {
            int(bits): {int(limit): Launch(**values) for limit, values in by_channels.items()}
            for bits, by_channels in json.loads(path.read_text()).items()
        }
        precisions = {launch.precision for by_channels in launches.values() for launch in by_channels.values()}
        if unknown := precisions - set(PRECISIONS):
            raise ValueError(f"`precision` must be one of {PRECISIONS}, got {sorted(unknown)}")
        return launches
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} must hold {{bits: {{channels: {{{', '.join(Launch._fields)}}}}}}}, got: {error}"
        ) from error


def error_bound(precision: str, channels: int) -> float:
    """
    An upper bound e of the error of a sweep's products, |computed - x y| <= e |x| |y|. It leaves room for the rounding
    of the norms and of the bounds themselves.

    Operands: TF32 keeps 10 bits after the leading one, so the sum of two TF32 numbers differs from a float32 by at most
    2^-20 of it, and the product of the two smaller parts, which three passes leave out, is at most 2^-20 of the whole.
    The total of 3 * 2^-20 is rounded up to 2^-18. IEEE products and those of 16-bit tokens have no such error.

    Sums: a step of a matrix unit aligns up to 16 products and the sum so far with the largest of them and cuts each off
    below 2^-24 of it, which |x| |y| bounds (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores", find at
    least one bit more than float32 keeps since Turing). Three passes in steps of 8 products are 3 C / 8 steps with 9
    terms, less than C 2^-22; one pass of C products, in steps or one by one, is less than C 2^-23 with room for the
    norms.
    """
    if precision == "tf32x3":
        return 2**-18 + channels * 2**-22
    return 2**-20 + channels * 2**-23


@functools.cache
def load_kernels() -> ModuleType:
    """The module of all kernels, which needs the package `triton`."""
    # In this form transformers finds the file among the relative imports of remote code.
    from .clustering_triton_kernels_clustr import __name__ as name

    return sys.modules[name]


def channel_block(channels: int) -> int:
    """Channels that a program reads at a time."""
    return min(MAX_BLOCK, max(MIN_BLOCK, next_power_of_two(channels)))


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


__all__ = [
    "Launch",
    "channel_block",
    "choose_launch",
    "error_bound",
    "find_launch",
    "launches_of",
    "load_kernels",
    "next_power_of_two",
    "read_launches",
]
