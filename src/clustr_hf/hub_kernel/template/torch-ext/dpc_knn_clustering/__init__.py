# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
kNN-based density peaks clustering (DPC-kNN) of tokens, and their aggregation.

Triton kernels on CUDA and ROCm devices, the compiled kernel of an installed `clustr_hf` on CPUs, and tensor operations
elsewhere. All find the same clusters, except where two distances, densities or decision values differ only by the
rounding of float32.
"""

from . import layers
from .clustering_clustr import aggregate_tokens, clustering_path, count_clusters, find_clusters
from .tcformer import cluster_dpc_knn, merge_tokens


__all__ = [
    "aggregate_tokens",
    "cluster_dpc_knn",
    "clustering_path",
    "count_clusters",
    "find_clusters",
    "layers",
    "merge_tokens",
]
