# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Clustering within windows of the token grid, an option that the paper does not have.

The windows are the fewest of nearly equal sides that cover the grid, so their heights and widths differ by at most one
token. Each window receives its share of the M clusters.

Shapes: B images, N = h w tokens, C channels, M clusters.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


class _Region(NamedTuple):
    """A rectangle of the grid that is filled by windows of one size."""

    rows: slice
    columns: slice
    windows: tuple[int, int]  # number of windows, (down, across)
    side: tuple[int, int]  # tokens of a window, (height, width)

    @property
    def num_windows(self) -> int:
        return math.prod(self.windows)

    def share(self, num_clusters: int, num_tokens: int) -> int:
        """Clusters of each window, in proportion to its number of tokens."""
        return max(1, num_clusters * math.prod(self.side) // num_tokens)


def count_clusters(num_clusters: int, size: tuple[int, int], window: int | None = None) -> int:
    """
    Number of clusters that [`~clustering_clustr.find_clusters`] finds in a grid.

    Args:
        num_clusters (`int`): M, as requested.
        size (`tuple[int, int]`): (height, width) of the grid in tokens.
        window (`int`, *optional*): Longest side of a window in tokens.

    Returns:
        `int`: `num_clusters`, or the sum of the windows' shares.
    """
    if window is None:
        return num_clusters
    return sum(
        region.num_windows * region.share(num_clusters, math.prod(size)) for region in _split_into_regions(size, window)
    )


def find_clusters_in_windows(
    cluster: Callable[[torch.Tensor, list[int]], list[torch.Tensor]],
    tokens: torch.Tensor,
    num_clusters: list[int],
    size: tuple[int, int],
    window: int,
) -> list[torch.Tensor]:
    """
    Cluster each window by itself: the windows of one size form a batch.

    Args:
        cluster (`Callable`): Maps a batch of windows and the numbers of clusters to labels, one tensor per scale.
        tokens (`torch.Tensor` of shape `(B, N, C)`): Tokens of the grid in row-major order.
        num_clusters (`list[int]`): M for each scale.
        size (`tuple[int, int]`): (height, width) of the grid in tokens.
        window (`int`): Longest side of a window in tokens.

    Returns:
        `list[torch.LongTensor]`: for each scale the cluster of every token, shape `(B, N)`, numbered window by window.
    """
    batch_size, num_tokens, _ = tokens.shape
    grid = tokens.unflatten(1, size)
    labels = [torch.empty(batch_size, *size, dtype=torch.long, device=tokens.device) for _ in num_clusters]
    first_label = [0] * len(num_clusters)
    for region in _split_into_regions(size, window):
        (down, across), (height, width) = region.windows, region.side
        parts = grid[:, region.rows, region.columns].unflatten(1, (down, height)).unflatten(3, (across, width))
        windows = parts.transpose(2, 3).flatten(3, 4).flatten(0, 2)
        shares = [region.share(number, num_tokens) for number in num_clusters]
        for scale, found in enumerate(cluster(windows, shares)):
            offset = torch.arange(region.num_windows, device=tokens.device).view(down, across, 1, 1) * shares[scale]
            found = found.view(batch_size, down, across, height, width) + (first_label[scale] + offset)
            labels[scale][:, region.rows, region.columns] = found.transpose(2, 3).flatten(3, 4).flatten(1, 2)
            first_label[scale] += region.num_windows * shares[scale]
    return [label.flatten(1) for label in labels]


def check_window(num_tokens: int, size: tuple[int, int] | None, window: int) -> None:
    """Raise a `ValueError` unless the window is valid and `size` is that of a grid of `num_tokens` tokens."""
    if window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}.")
    if size is None or math.prod(size) != num_tokens:
        raise ValueError(f"`size` must be (height, width) of a grid of {num_tokens} tokens, got {size}.")


def _split_into_regions(size: tuple[int, int], window: int) -> list[_Region]:
    """One to four regions that cover a grid: windows have at most two heights and two widths."""
    return [
        _Region(rows, columns, (down, across), (height, width))
        for rows, down, height in _split_evenly(size[0], window)
        for columns, across, width in _split_evenly(size[1], window)
    ]


def _split_evenly(length: int, max_side: int) -> list[tuple[slice, int, int]]:
    """
    Split a length into the fewest parts of at most `max_side`: for each of the one or two sides (the longer first), the
    range that parts of this side cover, their number and the side.
    """
    num_parts = -(-length // max_side)
    side, num_longer = divmod(length, num_parts)
    border = num_longer * (side + 1)
    shorter = (slice(border, length), num_parts - num_longer, side)
    return [(slice(0, border), num_longer, side + 1), shorter] if num_longer else [shorter]


__all__ = ["check_window", "count_clusters", "find_clusters_in_windows"]
