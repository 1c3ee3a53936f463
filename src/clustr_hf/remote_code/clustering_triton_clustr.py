# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The clustering and the aggregation on GPUs, by Triton kernels (clustering_triton_kernels_clustr.py).

Used for float32, float16 and bfloat16 tensors on CUDA and ROCm devices where the package `triton` can be imported, as
it can be with PyTorch's GPU builds. Everything else, and everything with the environment variable `CLUSTR_KERNEL=off`,
is left to tensor operations. If a kernel fails to compile, one warning says so, and tensor operations replace all of
them from then on.

Nothing here waits for the device, and no shape depends on data, so that all of it can be captured in a CUDA graph. An
image's clusters do not depend on the other images of its batch, and two runs give the same bits.

Shapes: B images, N tokens, C channels, k neighbours, M clusters, S scales.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch

from .clustering_kernel_clustr import is_plain
from .clustering_tensor_clustr import merge_gradients, merge_tokens


Result = TypeVar("Result")


def _has_triton() -> bool:
    """Finds Triton without importing it."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # a stand-in module without a specification
        return False


HAS_TRITON = _has_triton()

# Slots of the neighbour lists, so the largest k.
MAX_NEIGHBORS = 8
MAX_CHANNELS = 1024
MAX_TOKENS = 2**18

# Squared norm of tokens whose bounds are sure not to overflow.
LARGEST_NORM = 8e37

# Elements of a tile (tokens x channels) in the kernels that go over the tokens once.
TILE_ELEMENTS = 2048
GRADIENT_ELEMENTS = 1024
ORIGIN_ELEMENTS = 8192
# Tokens of a program in the kernels that need no channels.
TOKEN_BLOCK = 256


PRECISIONS = ("ieee", "tf32x3")


class Launch(NamedTuple):
    """
    How the sweeps are launched.

    Of `filter_nearest`: `rows` x `columns` is a tile of distances, `block` the channels of one matrix product, `warps`
    the warps of a program, `stages` how far Triton pipelines the blocks of channels, if there are several. Lists of
    k > 1 neighbours have at least `slots` slots: the more, the fewer rows need a second sweep, and the more insertions.
    Of `measure_nearest`: `exact_rows` x `exact_columns`, `exact_block`, `exact_warps`, and `exact_channels`, the
    channels that it measures at a time.

    `precision` is how float32 is multiplied: "ieee", or "tf32x3" (three passes of TF32) where matrix units have it.
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


# By architecture, then bits of a token's element, then the largest number of channels that an entry is for. Chosen by
# what the compiler reports (no register spills, shared memory within the chip's): nothing here has been timed.
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
# For chips that the table does not know: the least demanding.
DEFAULT_LAUNCH = Launch(rows=32, columns=32, block=32, stages=1)


def is_importable() -> bool:
    """`bool`: Whether the environment does not switch kernels off and has the package `triton`."""
    return os.environ.get("CLUSTR_KERNEL") != "off" and HAS_TRITON


def is_on_gpu(tokens: torch.Tensor) -> bool:
    """`bool`: Whether the tensor is on a CUDA or ROCm device."""
    return tokens.is_cuda


def can_cluster(tokens: torch.Tensor, num_neighbors: int) -> bool:
    """Whether [`cluster`] takes these arguments: plain tensors of at most 32 bits on a GPU, and a moderate k."""
    return _is_taken(tokens) and min(num_neighbors, tokens.shape[1]) <= MAX_NEIGHBORS


def can_aggregate(tokens: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Whether [`aggregate`] takes these tokens and weights. Not under forward-mode differentiation, of which the operators
    know nothing.
    """
    if not _is_taken(tokens):
        return False
    return torch.compiler.is_compiling() or (is_plain(weight) and torch.autograd.forward_ad._current_level < 0)


def _is_taken(tokens: torch.Tensor) -> bool:
    batch_size, num_tokens, channels = tokens.shape
    is_small = tokens.dtype in (torch.float32, torch.float16, torch.bfloat16)
    is_small = is_small and channels <= MAX_CHANNELS and 0 < num_tokens <= MAX_TOKENS and batch_size > 0
    if not (is_on_gpu(tokens) and is_small and is_importable()) or str(tokens.device) in _FAILURES:
        return False
    return torch.compiler.is_compiling() or is_plain(tokens)


# Why the kernels are not used any more, for each device on which one has failed.
_FAILURES: dict[str, str] = {}


def attempt(function: Callable[..., Result], tokens: torch.Tensor, *arguments: Any) -> Result | None:
    """
    What the function returns, or `None` where a Triton kernel fails: a warning says so once for each device, and
    [`can_cluster`] and [`can_aggregate`] are false there from then on. Running out of memory is no such failure, nor is
    anything while a CUDA graph is captured, which would record a part of the work.
    """
    device = str(tokens.device)
    if device in _FAILURES:
        return None
    try:
        return function(tokens, *arguments)
    except torch.OutOfMemoryError:
        raise
    # Without a C compiler, with a driver that is too old, ...: the kinds of failure are as many as machines.
    except Exception as error:
        if tokens.is_cuda and torch.cuda.is_current_stream_capturing():
            raise
        _FAILURES[device] = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"clustr_hf clusters by tensor operations on {device}, because a Triton kernel failed: "
            f"{_FAILURES[device][:500]}",
            stacklevel=2,
        )
        return None


def cluster(
    tokens: torch.Tensor,
    num_clusters: list[int],
    num_neighbors: int,
    assignment: str,
    launch: Launch | None = None,
) -> torch.Tensor:
    """
    The Triton form of [`~clustering_clustr.find_clusters`].

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): float32, float16 or bfloat16, see [`can_cluster`]; any strides.
        num_clusters, num_neighbors, assignment: As in [`~clustering_clustr.find_clusters`], already checked.
        launch ([`Launch`], *optional*): Default is that of the device.

    Returns:
        `torch.LongTensor` of shape `(S, B, N)`, one entry for each of `num_clusters`.
    """
    if tokens.dtype == torch.float16 and torch.version.hip is not None:
        tokens = tokens.float()  # matrix units of some AMD chips take subnormal float16 as 0
    with _on_device(tokens):
        return _Clustering(tokens, num_neighbors, launch or find_launch(tokens)).labels(num_clusters, assignment)


class _Clustering:
    """The tensors that the kernels hand on to each other; those named `*_place` are in the order of density."""

    def __init__(self, tokens: torch.Tensor, num_neighbors: int, launch: Launch):
        self.batch_size, self.num_tokens, self.channels = tokens.shape
        self.device = tokens.device
        self.k = min(num_neighbors, self.num_tokens)
        self.launch = launch
        self.kernels = _kernels()
        self.block = _channel_block(self.channels)
        self.rows = TILE_ELEMENTS // self.block
        self.tokens, self.norm = self._center(tokens.contiguous())
        # Bounds of such large tokens may overflow. With infinite norms every distance is measured.
        largest = self.norm.nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=1, keepdim=True)
        self.norm.masked_fill_(largest > LARGEST_NORM, torch.inf)

    def labels(self, num_clusters: list[int], assignment: str) -> torch.Tensor:
        density = self._densities()
        density_order, density_rank = self._rank_descending(density)
        sorted_tokens, sorted_norm = self._permute(density_order, self.num_tokens)
        parent_place = self._parents(density_order, density_rank, sorted_tokens, sorted_norm)
        decision, parent = torch.empty_like(density), self._empty(self.num_tokens)
        self.kernels.log_decision[self._tiles(self.rows)](
            sorted_tokens, density, density_order, parent_place, decision, parent, self.num_tokens, **self._shape()
        )
        decision_order, decision_rank = self._rank_descending(decision)
        if assignment == "nearest_center":
            return self._join_centers(decision_order, decision_rank, num_clusters)
        return self._follow_parents(decision_rank, parent, num_clusters)

    def _center(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens as the sweeps read them, (B, N, C), and their squared norms, (B, N)."""
        norm = self._empty(self.num_tokens, torch.float32)
        is_wide = tokens.dtype == torch.float32
        centered = torch.empty_like(tokens) if is_wide else tokens
        origin = self._empty(1)
        if is_wide:
            block = max(16, _power_of_two(self.channels))
            rows = ORIGIN_ELEMENTS // block
            self.kernels.find_origin[(self.batch_size,)](
                tokens, origin, self.num_tokens, CHANNELS=self.channels, BLOCK_C=block, ROWS=rows, num_warps=8
            )
        self.kernels.center_tokens[self._tiles(self.rows)](
            tokens, origin, centered, norm, self.num_tokens, CENTER=is_wide, **self._shape()
        )
        return centered, norm

    def _densities(self) -> torch.Tensor:
        """log rho of every token, (B, N); leaves the k nearest tokens in `self.nearest`."""
        self.nearest = self._empty(self.num_tokens * self.k)
        self._find_nearest(self.tokens, self.norm, self.tokens, self.norm, self.nearest, self.k, itself=True)
        density = self._empty(self.num_tokens, torch.float32)
        slots = _power_of_two(self.k)
        self.kernels.log_density[self._tiles(self.rows)](
            self.tokens, self.nearest, density, self.num_tokens, NEIGHBORS=self.k, SLOTS=slots, **self._shape()
        )
        return density

    def _parents(self, order, rank, sorted_tokens, sorted_norm) -> torch.Tensor:
        """The nearest denser token of every token, (B, N), as places in the order of density."""
        parent_place, is_missing = self._empty(self.num_tokens), self._empty(self.num_tokens, torch.int8)
        self.kernels.denser_neighbor[self._tiles(TOKEN_BLOCK)](
            order, rank, self.nearest, parent_place, is_missing, self.num_tokens, NEIGHBORS=self.k, BLOCK=TOKEN_BLOCK
        )
        columns = (sorted_tokens, sorted_norm)
        self._find_nearest(*columns, *columns, parent_place, 1, label=order, rows=self._compact(is_missing))
        return parent_place

    def _find_nearest(
        self,
        row_tokens: torch.Tensor,
        row_norm: torch.Tensor,
        column_tokens: torch.Tensor,
        column_norm: torch.Tensor,
        nearest: torch.Tensor,
        k: int,
        num_used: int | None = None,
        label: torch.Tensor | None = None,
        rows: tuple[torch.Tensor, torch.Tensor] | None = None,
        itself: bool = False,
    ):
        """
        Writes the k nearest columns of each row into `nearest`: by `filter_nearest`, then by `measure_nearest` for
        those that the filter is not certain of. With `label`, rows and columns are one array in the order of density,
        and a row's columns are those before it.
        """
        is_flagged = torch.zeros(row_norm.shape, dtype=torch.int8, device=self.device)
        reach = torch.empty_like(row_norm)
        num_rows, num_columns = row_tokens.shape[1], column_tokens.shape[1]
        num_used = num_columns if num_used is None else num_used
        launch, is_prefix = self.launch, label is not None
        # More slots than neighbours: the further the bounds outside the list, the fewer rows are flagged.
        slots = 4 if k == 1 else max(launch.slots, _power_of_two(k + 2))
        # Products of 16-bit tokens are exact as they are.
        precision = launch.precision if row_tokens.dtype == torch.float32 else "ieee"
        limits = (num_rows, num_columns, num_used, error_bound(precision, self.channels))
        settings = dict(
            CHANNELS=self.channels,
            NEIGHBORS=k,
            PREFIX=is_prefix,
            PRECISION=precision,
        )
        self.kernels.filter_nearest[self._tiles(launch.rows, num_rows)](
            row_tokens,
            row_norm,
            column_tokens,
            column_norm,
            label,
            *(rows or (None, None)),
            nearest,
            reach,
            is_flagged,
            *limits,
            SLOTS=slots,
            LISTED=rows is not None,
            ROWS=launch.rows,
            COLUMNS=launch.columns,
            BLOCK_C=min(launch.block, self.block),
            num_warps=launch.warps,
            num_stages=launch.stages,
            **settings,
        )
        self.kernels.measure_nearest[self._tiles(launch.exact_rows, num_rows)](
            row_tokens,
            row_norm,
            column_tokens,
            column_norm,
            label,
            *self._compact(is_flagged),
            nearest,
            reach,
            *limits,
            SLOTS=_power_of_two(k),
            ITSELF=itself,
            ROWS=launch.exact_rows,
            COLUMNS=launch.exact_columns,
            BLOCK_C=min(launch.exact_block, self.block),
            MEASURED_C=launch.exact_channels,
            num_warps=launch.exact_warps,
            **settings,
        )

    def _rank_descending(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens by falling value, ties by index, and each token's place in that order; (B, N) each."""
        order = values.sort(dim=1, descending=True, stable=True).indices
        rank = self._empty(self.num_tokens)
        self.kernels.rank_tokens[self._tiles(TOKEN_BLOCK)](order, rank, self.num_tokens, BLOCK=TOKEN_BLOCK)
        return order, rank

    def _permute(self, order: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first tokens of an order, (B, M, C), and their norms, (B, M)."""
        tokens = self.tokens.new_empty(self.batch_size, number, self.channels)
        norm = self._empty(number, torch.float32)
        self.kernels.permute_tokens[self._tiles(self.rows, number)](
            self.tokens, self.norm, order, tokens, norm, self.num_tokens, number, **self._shape()
        )
        return tokens, norm

    def _compact(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, count = self._empty(self.num_tokens), self._empty(1)
        self.kernels.compact[(self.batch_size,)](chosen, rows, count, self.num_tokens, BLOCK=4 * TOKEN_BLOCK)
        return rows, count

    def _follow_parents(self, rank: torch.Tensor, parent: torch.Tensor, num_clusters: list[int]) -> torch.Tensor:
        labels = self._labels(num_clusters)
        grid = self._tiles(TOKEN_BLOCK)
        for scale, number in zip(labels, num_clusters):
            self.kernels.follow_parents[grid](rank, parent, scale, number, self.num_tokens, BLOCK=TOKEN_BLOCK)
        return labels

    def _join_centers(self, order: torch.Tensor, rank: torch.Tensor, num_clusters: list[int]) -> torch.Tensor:
        # The centres of a coarse scale come first among a fine one's.
        centers = self._permute(order, min(max(num_clusters), self.num_tokens))
        nearest, labels = self._empty(self.num_tokens), self._labels(num_clusters)
        for scale, number in zip(labels, num_clusters):
            used = min(number, self.num_tokens)
            self._find_nearest(self.tokens, self.norm, *centers, nearest, 1, num_used=used)
            self.kernels.join_centers[self._tiles(TOKEN_BLOCK)](
                rank, nearest, scale, used, self.num_tokens, BLOCK=TOKEN_BLOCK
            )
        return labels

    def _labels(self, num_clusters: list[int]) -> torch.Tensor:
        shape = (len(num_clusters), self.batch_size, self.num_tokens)
        return torch.empty(shape, dtype=torch.long, device=self.device)

    def _empty(self, number: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(self.batch_size, number, dtype=dtype, device=self.device)

    def _tiles(self, rows: int, number: int | None = None) -> tuple[int]:
        """The grid: a program for every tile of every image."""
        return (self.batch_size * -(-(number or self.num_tokens) // rows),)

    def _shape(self) -> dict[str, int]:
        return dict(CHANNELS=self.channels, BLOCK_C=self.block, ROWS=self.rows)


def error_bound(precision: str, channels: int) -> float:
    """
    An upper bound e of the error of a sweep's products, |computed - x y| <= e |x| |y|, with room for the rounding of
    the norms and of the bounds themselves.

    Operands: TF32 keeps 10 bits after the leading one, so the sum of two TF32 numbers differs from a float32 by at most
    2^-20 of it, and the product of the two smaller parts, which three passes leave out, is at most 2^-20 of the whole.
    These are 3 * 2^-20, taken as 2^-18. IEEE products and those of 16-bit tokens have no such error.

    Sums: a step of a matrix unit aligns up to 16 products and the sum so far with the largest of them and cuts each off
    below 2^-24 of it, which |x| |y| bounds (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores", find at
    least one bit more than float32 keeps since Turing). Three passes in steps of 8 products are 3 C / 8 steps with 9
    terms, less than C 2^-22; one pass of C products, in steps or one by one, is less than C 2^-23 with room for the
    norms.
    """
    if precision == "tf32x3":
        return 2**-18 + channels * 2**-22
    return 2**-20 + channels * 2**-23


def find_launch(tokens: torch.Tensor) -> Launch:
    """
    The [`Launch`] for these tokens: from a file `launch_configs/<name of the device>.json` beside this one, if there is
    one, else from `LAUNCHES`. The file has the table's form, `{"32": {"64": {"rows": 64, ...}, ...}, ...}`.
    """
    launches = _launches(tokens.device.type, tokens.device.index)
    return choose_launch(launches, 8 * tokens.element_size(), tokens.shape[-1])


def choose_launch(launches: dict[int, dict[int, Launch]], bits: int, channels: int) -> Launch:
    """The entry with the smallest number of channels that is large enough."""
    by_channels = launches.get(bits, {})
    return next((by_channels[most] for most in sorted(by_channels) if channels <= most), DEFAULT_LAUNCH)


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
    The table of launches for a device, by its product's name and its architecture (such as "sm_90" or "gfx942").

    NVIDIA's chips after sm_80 that have no entry of their own take that of sm_80, whose demands they all meet.
    """
    tuned = Path(__file__).parent / "launch_configs" / f"{re.sub('[^A-Za-z0-9]+', '_', name)}.json"
    if tuned.is_file():
        return read_launches(tuned)
    if architecture.startswith("sm_") and int(architecture[3:]) >= 80:
        return LAUNCHES.get(architecture, LAUNCHES["sm_80"])
    return LAUNCHES.get(architecture, {})


def read_launches(path: Path) -> dict[int, dict[int, Launch]]:
    """
    The table of launches in a JSON file.

    Raises:
        ValueError: if its form is another one, or a precision is unknown, whose error nothing would bound.
    """
    try:
        launches = {
            int(bits): {int(most): Launch(**values) for most, values in by_channels.items()}
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


def aggregate(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> torch.Tensor:
    """
    The Triton form of [`~clustering_clustr.aggregate_tokens`]: the same bits on every run, forward and backward.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): Floating point tokens.
        weight (`torch.Tensor` of shape `(B, N)`): Their weights, in float32 (float64 for float64 tokens).
        cluster_index (`torch.LongTensor` of shape `(B, N)`): The cluster of each token.
        num_clusters (`int`): M.
        epsilon (`float`): What is added to the sum of a cluster's weights.

    Returns:
        `torch.Tensor` of shape `(B, M, C)` in the dtype of `weight`.
    """
    return torch.ops.clustr_hf.merge_tokens(tokens, weight, cluster_index, num_clusters, epsilon)[0]


@torch.library.custom_op("clustr_hf::merge_tokens", mutates_args=())
def _merge_tokens(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = (tokens, weight, cluster_index, num_clusters, epsilon)
    merged = attempt(launch_merge, *arguments)
    return merge_tokens(*arguments) if merged is None else merged


def launch_merge(
    tokens: torch.Tensor, weight: torch.Tensor, cluster_index: torch.Tensor, num_clusters: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`~clustering_tensor_clustr.merge_tokens`] by sorted segments instead of atomic additions."""
    batch_size, num_tokens, channels = tokens.shape
    # Half as many bits to sort by.
    sorted_index, order = cluster_index.to(torch.int32).sort(dim=1, stable=True)
    clusters = torch.arange(num_clusters + 1, dtype=torch.int32, device=tokens.device)
    clusters = clusters.expand(batch_size, -1).contiguous()
    starts = torch.searchsorted(sorted_index, clusters)
    merged, weight_sum = _empty_merged(tokens, weight, num_clusters)
    block = _channel_block(channels)
    with _on_device(tokens):
        _kernels().merge_segments[(batch_size * num_clusters * -(-channels // block),)](
            tokens.contiguous(),
            weight.contiguous(),
            order,
            starts,
            merged,
            weight_sum,
            num_tokens,
            num_clusters,
            epsilon,
            CHANNELS=channels,
            BLOCK_C=block,
            ROWS=16,
            DTYPE=_accumulator(weight),
        )
    return merged, weight_sum


@_merge_tokens.register_fake
def _(tokens, weight, cluster_index, num_clusters, epsilon):
    return _empty_merged(tokens, weight, num_clusters)


def _empty_merged(tokens: torch.Tensor, weight: torch.Tensor, num_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (tokens.shape[0], num_clusters)
    return weight.new_empty(*shape, tokens.shape[2]), weight.new_empty(shape)


@torch.library.custom_op("clustr_hf::merge_tokens_backward", mutates_args=())
def _merge_tokens_backward(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    cluster_index: torch.Tensor,
    merged: torch.Tensor,
    weight_sum: torch.Tensor,
    gradient: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = (tokens, weight, cluster_index, merged, weight_sum, gradient, epsilon)
    gradients = attempt(launch_merge_gradients, *arguments)
    return merge_gradients(*arguments) if gradients is None else gradients


def launch_merge_gradients(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    cluster_index: torch.Tensor,
    merged: torch.Tensor,
    weight_sum: torch.Tensor,
    gradient: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`~clustering_tensor_clustr.merge_gradients`] in one pass over the tokens."""
    batch_size, num_tokens, channels = tokens.shape
    tokens_gradient = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    weight_gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
    block = _channel_block(channels)
    rows = GRADIENT_ELEMENTS // block
    with _on_device(tokens):
        _kernels().split_gradients[(batch_size * -(-num_tokens // rows),)](
            tokens.contiguous(),
            weight.contiguous(),
            cluster_index.contiguous(),
            merged,
            weight_sum,
            gradient.contiguous(),
            tokens_gradient,
            weight_gradient,
            num_tokens,
            merged.shape[1],
            epsilon,
            CHANNELS=channels,
            BLOCK_C=block,
            ROWS=rows,
            DTYPE=_accumulator(weight),
        )
    return tokens_gradient, weight_gradient


@_merge_tokens_backward.register_fake
def _(tokens, weight, cluster_index, merged, weight_sum, gradient, epsilon):
    contiguous = torch.contiguous_format
    return torch.empty_like(tokens, memory_format=contiguous), torch.empty_like(weight, memory_format=contiguous)


def _save_for_backward(ctx, inputs, output):
    tokens, weight, cluster_index, _, ctx.epsilon = inputs
    ctx.save_for_backward(tokens, weight, cluster_index, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, gradient, _):
    return (*_merge_tokens_backward(*ctx.saved_tensors, gradient, ctx.epsilon), None, None, None)


_merge_tokens.register_autograd(_backward, setup_context=_save_for_backward)


def _accumulator(weight: torch.Tensor):
    language = _kernels().tl
    return language.float64 if weight.dtype == torch.float64 else language.float32


def _power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << (number - 1).bit_length()


def _channel_block(channels: int) -> int:
    """Channels that a program reads at a time: at least the 16 that a matrix product needs."""
    return min(64, max(16, _power_of_two(channels)))


def _on_device(tokens: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tokens."""
    return torch.cuda.device(tokens.device) if tokens.is_cuda else contextlib.nullcontext()


@functools.cache
def _kernels() -> ModuleType:
    # In this form transformers finds the file among the relative imports of remote code.
    from .clustering_triton_kernels_clustr import __name__ as name

    return sys.modules[name]


__all__ = ["Launch", "aggregate", "attempt", "can_aggregate", "can_cluster", "cluster", "is_importable"]
