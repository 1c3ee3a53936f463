# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
All Triton kernels of the clustering and the aggregation, by name.

These files need the package `triton`, so only clustering_triton_launches_clustr.py imports this one, when the first
tensor on a GPU is clustered.

A program of a kernel works on one image and on a tile of its tokens.
"""

from .clustering_triton_merge_kernels_clustr import merge_segments, split_gradients
from .clustering_triton_nearest_kernels_clustr import filter_nearest, measure_nearest
from .clustering_triton_order_kernels_clustr import (
    center_tokens,
    compact,
    find_origin,
    permute_tokens,
    rank_tokens,
)
from .clustering_triton_peaks_kernels_clustr import (
    denser_neighbor,
    follow_parents,
    join_centers,
    log_decision,
    log_density,
)
from .clustering_triton_tiles_clustr import tl


__all__ = [
    "center_tokens",
    "compact",
    "denser_neighbor",
    "filter_nearest",
    "find_origin",
    "follow_parents",
    "join_centers",
    "log_decision",
    "log_density",
    "measure_nearest",
    "merge_segments",
    "permute_tokens",
    "rank_tokens",
    "split_gradients",
    "tl",
]
