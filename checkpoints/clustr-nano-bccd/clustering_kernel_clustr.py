# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The compiled kernels for tokens of at most 32 bits on CPUs: the clustering, and the merging of clusters.

The kernels (csrc/clustering_kernel.cpp, csrc/merging_kernel.cpp) are built when the package is installed on a machine
with a C++ compiler. Without them, for other dtypes and devices, and with the environment variable `CLUSTR_KERNEL=off`,
the tensor operations of clustering_tensor_clustr.py and clustering_content_clustr.py are used instead; a missing kernel
is logged once, at info level. Remote code contains this file too, and finds the kernels of an installed package by
their path, without importing the package.

Shapes: B images, N tokens, C channels, k neighbours, S scales.
"""

import ctypes
import functools
import importlib.util
import logging
import os
from pathlib import Path

import torch


logger = logging.getLogger(__name__)

# The file name that setup.py uses. The library is plain C, so one build works with every version of Python.
LIBRARY_FILE = "_clustering_kernel.dll" if os.name == "nt" else "_clustering_kernel.so"
# Suffix of the exported functions, so that remote code never calls the kernel of an incompatible release.
INTERFACE = "v1"
INSTRUCTION_SETS = ("avx512", "avx2", "portable")
# The kernel indexes tokens, padding included, by 32-bit integers.
MAX_TOKENS = 2**30
# Rows of a block in which the symmetric products of means are computed.
PRODUCT_ROWS = 256
# Numbers after each row of products, so that the rows of 1024 clusters do not share cache lines.
PADDING = 16


def is_available() -> bool:
    """`bool`: Whether the compiled kernel was built and the environment does not switch it off."""
    return os.environ.get("CLUSTR_KERNEL") != "off" and _library() is not None


def supported_instruction_sets() -> tuple[str, ...]:
    """`tuple[str, ...]`: The `INSTRUCTION_SETS` that this processor and build support, fastest first."""
    if not is_available():
        return ()
    supports = _function("supports")
    return tuple(name for name in INSTRUCTION_SETS if supports(name.encode()))


def can_cluster(tokens: torch.Tensor, num_neighbors: int) -> bool:
    """
    Whether [`cluster`] accepts these arguments: plain tensors ([`is_plain`]) of at most 32 bits and 2**30 tokens on a
    CPU, and k of at most 8.
    """
    return (
        tokens.is_cpu
        and tokens.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and is_plain(tokens)
        and is_available()
        and min(num_neighbors, tokens.shape[1]) <= _function("max_neighbors")()
        and tokens.shape[1] <= MAX_TOKENS
    )


def is_plain(tokens: torch.Tensor) -> bool:
    """
    Whether a kernel can read the values of a tensor from its memory.

    False for subclasses, while tracing (which would store the clusters of the example as constants), for the wrapped
    tensors of torch.func's transforms and the zeros of automatic differentiation, which have no memory, and for
    negative views, whose memory holds the values with the opposite sign.
    """
    if type(tokens) is not torch.Tensor or torch.jit.is_tracing() or tokens.is_neg():
        return False
    try:
        return tokens.is_meta or tokens.data_ptr() != 0 or tokens.numel() == 0
    except RuntimeError:
        return False


def cluster(
    tokens: torch.Tensor,
    num_clusters: list[int],
    num_neighbors: int,
    assignment: str,
    instruction_set: str = "best",
) -> torch.Tensor:
    """
    The compiled form of [`~clustering_clustr.find_clusters`].

    It runs on at most as many threads as torch, and on a single one for less than about a millisecond of work.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, C)`): On a CPU, see [`can_cluster`]; clustered in float32.
        num_clusters, num_neighbors, assignment: As in [`~clustering_clustr.find_clusters`], already validated; numbers
            are less than 2**63.
        instruction_set (`str`, defaults to `"best"`): One of [`supported_instruction_sets`], or `"best"`.

    Returns:
        `torch.LongTensor` of shape `(S, B, N)`, one entry for each of `num_clusters`.

    Raises:
        ValueError: if the processor or the build does not support the instruction set.
        MemoryError: if the kernel runs out of memory.
    """
    tokens = tokens.to(torch.float32).contiguous()
    batch_size, num_tokens, channels = tokens.shape
    labels = torch.empty(len(num_clusters), batch_size, num_tokens, dtype=torch.long, device="cpu")
    status = _function("find_clusters")(
        tokens.data_ptr(),
        batch_size,
        num_tokens,
        channels,
        (ctypes.c_int64 * len(num_clusters))(*num_clusters),
        len(num_clusters),
        num_neighbors,
        assignment == "nearest_center",
        torch.get_num_threads(),
        instruction_set.encode(),
        labels.data_ptr(),
    )
    _check(status, f"Clustering tokens of shape {tuple(tokens.shape)}", instruction_set)
    return labels


def can_merge(means: torch.Tensor) -> bool:
    """Whether [`merge`] accepts means: plain float32 tensors ([`is_plain`]) on a CPU."""
    is_suitable = means.is_cpu and means.dtype == torch.float32 and is_plain(means) and is_available()
    return is_suitable and hasattr(_library(), f"clustr_merge_clusters_{INTERFACE}")


def merge(
    means: torch.Tensor, size: torch.Tensor, max_cost: torch.Tensor, instruction_set: str = "best"
) -> torch.Tensor:
    """
    Merge the clusters of each image, cheapest first, by the formula of Lance and Williams for Ward's criterion.

    Args:
        means (`torch.Tensor` of shape `(B, M, C)`): Means of the clusters, see [`can_merge`].
        size (`torch.Tensor` of shape `(B, M)`): Number of tokens of each cluster, float32.
        max_cost (`torch.Tensor` of shape `(B,)`): Cost at which merging ends, float32.
        instruction_set (`str`, defaults to `"best"`): One of [`supported_instruction_sets`], or `"best"`.

    Returns:
        `torch.LongTensor` of shape `(B, M)`: for each cluster the first of those that it is merged with, or itself.

    Raises:
        ValueError: if the processor or the build does not support the instruction set.
        MemoryError: if the kernel runs out of memory.
    """
    products = _products(means)
    size, max_cost = size.contiguous(), max_cost.contiguous()
    owner = torch.empty(size.shape, dtype=torch.long, device="cpu")
    status = _function("merge_clusters")(
        products.data_ptr(),
        products.shape[-1],
        size.data_ptr(),
        max_cost.data_ptr(),
        *size.shape,
        torch.get_num_threads(),
        instruction_set.encode(),
        owner.data_ptr(),
    )
    _check(status, f"Merging clusters with means of shape {tuple(means.shape)}", instruction_set)
    return owner


def _products(means: torch.Tensor) -> torch.Tensor:
    """
    Products of all pairs of means (B, M, C) -> (B, P, P + PADDING), with P as the kernel requires. Of the symmetric
    products, only those on and above the blocks on the diagonal are set.
    """
    tile = _function("merge_tile")()
    means = torch.nn.functional.pad(means, (0, 0, 0, -means.shape[1] % tile))
    num_rows = means.shape[1]
    products = means.new_empty(means.shape[0], num_rows, num_rows + PADDING)
    for start in range(0, num_rows, PRODUCT_ROWS):
        rows, columns = slice(start, start + PRODUCT_ROWS), slice(start, num_rows)
        torch.bmm(means[:, rows], means[:, columns].mT, out=products[:, rows, columns])
    return products


def _check(status: int, task: str, instruction_set: str):
    """Raise the error that a kernel reports."""
    if status == 1:
        raise ValueError(f"`instruction_set` must be one of {supported_instruction_sets()}, got {instruction_set!r}.")
    if status == 2:
        raise MemoryError(f"{task} ran out of memory.")


@functools.cache
def _library() -> ctypes.CDLL | None:
    package = importlib.util.find_spec("clustr_hf")
    if package is None:
        _log_missing("the package clustr_hf is not installed")
        return None
    for folder in package.submodule_search_locations or ():
        path = Path(folder, LIBRARY_FILE)
        if path.is_file():
            return _load(path)
    _log_missing("it was not built when clustr_hf was installed")
    return None


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path))
        int64, pointer, text = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
        signature = [pointer, int64, int64, int64, pointer, int64, int64, ctypes.c_int, ctypes.c_int, text, pointer]
        getattr(library, f"clustr_find_clusters_{INTERFACE}").argtypes = signature
        getattr(library, f"clustr_supports_{INTERFACE}").argtypes = [text]
        if hasattr(library, f"clustr_merge_clusters_{INTERFACE}"):  # missing in builds before `cluster_count`
            signature = [pointer, int64, pointer, pointer, int64, int64, ctypes.c_int, text, pointer]
            getattr(library, f"clustr_merge_clusters_{INTERFACE}").argtypes = signature
    except (OSError, AttributeError) as error:  # built for another system, or by another release
        _log_missing(f"{path} cannot be used ({error})")
        return None
    return library


def _log_missing(reason: str):
    logger.info(
        "ClusTR's compiled clustering kernel is missing: %s. On the CPU, clustering runs as PyTorch operations, which "
        "give the same clusters but take several times as long. To build the kernel, install a C++ compiler (g++ with "
        "OpenMP) and then (re)install clustr_hf with `pip install --force-reinstall --no-deps`.",
        reason,
    )


def _function(name: str):
    return getattr(_library(), f"clustr_{name}_{INTERFACE}")


__all__ = ["can_cluster", "can_merge", "cluster", "is_available", "is_plain", "merge", "supported_instruction_sets"]
