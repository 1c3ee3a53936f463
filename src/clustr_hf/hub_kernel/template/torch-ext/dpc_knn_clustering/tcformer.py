# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Drop-in replacements for `cluster_dpc_knn` and `merge_tokens` of TCFormer (Zeng et al. 2022).

Arguments and results are those of TCFormer's functions. The differences:

- TCFormer breaks ties by adding random noise to the densities; here ties go to the lower index, and two runs agree.
- TCFormer stores the N x N distances of all images; here memory is linear in N.
- Tokens are clustered in float32, or float64 if they are float64, under any autocast.
- The result for an image does not depend on the other images of the batch. (With a mask, TCFormer's densities depend on
  the largest distance in the batch where an image has fewer than k meaningful tokens.)

Shapes: B images, N tokens, C channels, M clusters, N0 tokens of the initial grid.
"""

import torch

from .clustering_clustr import WEIGHT_EPSILON, aggregate_tokens, find_clusters


@torch.no_grad()
def cluster_dpc_knn(
    token_dict: dict, cluster_num: int, k: int = 5, token_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """
    Cluster the tokens of each image by DPC-kNN. Each token joins the nearest centre; centres keep their own cluster.

    Args:
        token_dict (`dict`):
            `token_dict["x"]` holds the tokens `(B, N, C)`. Other entries are ignored.
        cluster_num (`int`):
            M, from 1 to N.
        k (`int`, defaults to 5):
            Number of nearest neighbours for the density, the token itself included. Values above the number of
            (meaningful) tokens mean that number.
        token_mask (`torch.Tensor` of shape `(B, N)`, *optional*):
            Positive for meaningful tokens, 0 for padding. Padding does not take part in the clustering and gets the
            label 0, as in TCFormer. If an image has fewer than M meaningful tokens, clusters stay empty; TCFormer makes
            padding a centre. With a mask, the host waits for the device, and images with the same number of meaningful
            tokens are clustered together.

    Returns:
        `tuple[torch.LongTensor, int]`: the cluster of each token, `(B, N)`, and `cluster_num`. Clusters are numbered by
        the falling score of their centres.

    Raises:
        ValueError: for `cluster_num` or `k` out of range, a `token_mask` of the wrong shape, and tokens that
            [`~clustering_clustr.find_clusters`] rejects.
    """
    tokens = token_dict["x"]
    _check_arguments(tokens, cluster_num, k, token_mask)
    if token_mask is None:
        (idx_cluster,) = find_clusters(tokens, [cluster_num], k, "nearest_center")
    else:
        idx_cluster = _cluster_meaningful(tokens, cluster_num, k, token_mask > 0)
    return idx_cluster, cluster_num


def merge_tokens(
    token_dict: dict, idx_cluster: torch.Tensor, cluster_num: int, token_weight: torch.Tensor | None = None
) -> dict:
    """
    Merge the tokens of each cluster into their weighted mean.

    Args:
        token_dict (`dict`):
            `"x"`, the tokens `(B, N, C)`; `"idx_token"`, `(B, N0)`, the token of each place of the initial grid;
            `"agg_weight"`, `(B, N0, 1)` or `None` for ones; `"map_size"` and `"init_grid_size"`, which are passed on.
        idx_cluster (`torch.LongTensor` of shape `(B, N)`):
            Cluster of each token, values in `[0, cluster_num)`.
        cluster_num (`int`):
            M.
        token_weight (`torch.Tensor` of shape `(B, N, 1)`, *optional*):
            Non-negative weights. Defaults to 1. Padding needs the weight 0, or it is merged into cluster 0.

    Returns:
        `dict` with `"x"` `(B, M, C)`, `"token_num"`, `"idx_token"` `(B, N0)` and `"agg_weight"` `(B, N0, 1)`, the
        product of a place's weights so far (TCFormer computes its ratio to the largest, but returns the product), and
        `"map_size"` and `"init_grid_size"` if `token_dict` has them.

    Raises:
        ValueError: if shapes do not match.
    """
    tokens, idx_token, agg_weight = token_dict["x"], token_dict["idx_token"], token_dict["agg_weight"]
    if token_weight is None:
        token_weight = tokens.new_ones(*tokens.shape[:2], 1)
    merged = aggregate_tokens(tokens, idx_cluster, cluster_num, token_weight)
    grid_share = _share_of_cluster(token_weight, idx_cluster, cluster_num).gather(1, idx_token).unsqueeze(-1)
    return {
        "x": merged,
        "token_num": cluster_num,
        "idx_token": idx_cluster.gather(1, idx_token),
        "agg_weight": grid_share if agg_weight is None else agg_weight * grid_share,
        **{key: token_dict[key] for key in ("map_size", "init_grid_size") if key in token_dict},
    }


def _cluster_meaningful(tokens: torch.Tensor, cluster_num: int, k: int, is_meaningful: torch.Tensor) -> torch.Tensor:
    """Clusters (B, N) of the meaningful tokens, 0 for padding; images of equal length are clustered together."""
    idx_cluster = torch.zeros_like(is_meaningful, dtype=torch.long)
    lengths = is_meaningful.sum(dim=1, keepdim=True)
    for length in lengths.unique().tolist():
        if length > 0:
            chosen = is_meaningful & (lengths == length)
            (found,) = find_clusters(tokens[chosen].unflatten(0, (-1, length)), [cluster_num], k, "nearest_center")
            idx_cluster[chosen] = found.flatten()
    return idx_cluster


def _share_of_cluster(token_weight: torch.Tensor, idx_cluster: torch.Tensor, cluster_num: int) -> torch.Tensor:
    """Weight of each token divided by the sum of its cluster's weights, (B, N)."""
    weight = token_weight.reshape(idx_cluster.shape)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    total = wide.new_zeros(len(wide), cluster_num).scatter_add(1, idx_cluster, wide)
    return (wide / (total.gather(1, idx_cluster) + WEIGHT_EPSILON)).to(weight.dtype)


def _check_arguments(tokens: torch.Tensor, cluster_num: int, k: int, token_mask: torch.Tensor | None):
    if tokens.ndim != 3:
        raise ValueError(f'`token_dict["x"]` must have shape (B, N, C), got {tuple(tokens.shape)}.')
    if not 1 <= cluster_num <= tokens.shape[1]:
        raise ValueError(f"`cluster_num` must be from 1 to the {tokens.shape[1]} tokens, got {cluster_num}.")
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if token_mask is not None and token_mask.shape != tokens.shape[:2]:
        raise ValueError(f"`token_mask` must have shape {tuple(tokens.shape[:2])}, got {tuple(token_mask.shape)}.")


__all__ = ["cluster_dpc_knn", "merge_tokens"]
