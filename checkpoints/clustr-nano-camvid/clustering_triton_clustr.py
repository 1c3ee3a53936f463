# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The clustering on GPUs by Triton kernels. The files by subject:

- this one: the steps of the clustering, each the launch of a kernel or an operation of torch;
- clustering_triton_support_clustr.py: which tensors the kernels accept, and what happens when a kernel fails;
- clustering_triton_launches_clustr.py: launch configurations;
- clustering_triton_merge_clustr.py: the aggregation, forward and backward;
- clustering_triton_kernels_clustr.py: the kernels, imported when they are first needed.

Nothing here waits for the device, and no shape depends on data, so that everything can be captured in a CUDA graph. The
clusters of an image do not depend on the other images of the batch, and two runs return the same bits.

Shapes: B images, N tokens, C channels, k neighbours, M clusters, S scales.
"""

from typing import NamedTuple

import torch

from .clustering_triton_launches_clustr import (
    Launch,
    channel_block,
    error_bound,
    find_launch,
    load_kernels,
    next_power_of_two,
)
from .clustering_triton_merge_clustr import aggregate
from .clustering_triton_support_clustr import attempt, can_aggregate, can_cluster, is_importable, on_device


# Squared norm up to which the distance bounds of the tokens cannot overflow.
MAX_SQUARED_NORM = 8e37

# Elements of a tile (tokens x channels) in the kernels that pass over the tokens once, and in `find_origin`.
TILE_ELEMENTS = 2048
ORIGIN_ELEMENTS = 8192
# Tokens of a program in the kernels that read no channels.
TOKEN_BLOCK = 256


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
        num_clusters, num_neighbors, assignment: As in [`~clustering_clustr.find_clusters`], already validated.
        launch ([`Launch`], *optional*): Defaults to the configuration for the device.

    Returns:
        `torch.LongTensor` of shape `(S, B, N)`, one entry for each of `num_clusters`.
    """
    if tokens.dtype == torch.float16 and torch.version.hip is not None:
        tokens = tokens.float()  # matrix units of some AMD chips flush subnormal float16 to 0
    with on_device(tokens):
        return _Clustering(tokens, num_neighbors, launch or find_launch(tokens)).labels(num_clusters, assignment)


class _Tokens(NamedTuple):
    """Tokens as the sweeps read them, (B, N, C), and their squared norms, (B, N)."""

    tokens: torch.Tensor
    norm: torch.Tensor


class _Clustering:
    """
    The clustering of one batch. Methods launch the kernels; attributes hold the values that several methods use.

    Tensors named `*_place` index tokens by their place in the order of density.
    """

    def __init__(self, tokens: torch.Tensor, num_neighbors: int, launch: Launch):
        self.batch_size, self.num_tokens, self.channels = tokens.shape
        self.device = tokens.device
        self.k = min(num_neighbors, self.num_tokens)
        self.launch = launch
        self.kernels = load_kernels()
        self.block = channel_block(self.channels)
        self.rows = TILE_ELEMENTS // self.block
        self.tokens = self._center(tokens.contiguous())
        # Bounds of larger tokens may overflow. With infinite norms every distance is measured.
        largest = self.tokens.norm.nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=1, keepdim=True)
        self.tokens.norm.masked_fill_(largest > MAX_SQUARED_NORM, torch.inf)

    def labels(self, num_clusters: list[int], assignment: str) -> torch.Tensor:
        """Cluster of each token for every scale, (S, B, N)."""
        density, nearest = self._densities()
        density_order, density_rank = self._rank_descending(density)
        by_density = self._permute(density_order, self.num_tokens)
        parent_place = self._parents(density_order, density_rank, nearest, by_density)
        decision, parent = torch.empty_like(density), self._empty(self.num_tokens)
        self.kernels.log_decision[self._tiles(self.rows)](
            by_density.tokens, density, density_order, parent_place, decision, parent, self.num_tokens, **self._shape()
        )
        decision_order, decision_rank = self._rank_descending(decision)
        if assignment == "nearest_center":
            return self._join_centers(decision_order, decision_rank, num_clusters)
        return self._follow_parents(decision_rank, parent, num_clusters)

    def _center(self, tokens: torch.Tensor) -> _Tokens:
        """float32 tokens minus the one nearest to their mean; 16-bit tokens, whose products are exact, as they are."""
        norm = self._empty(self.num_tokens, torch.float32)
        is_wide = tokens.dtype == torch.float32
        centered = torch.empty_like(tokens) if is_wide else tokens
        origin = self._empty(1)
        if is_wide:
            block = max(16, next_power_of_two(self.channels))
            rows = ORIGIN_ELEMENTS // block
            self.kernels.find_origin[(self.batch_size,)](
                tokens, origin, self.num_tokens, CHANNELS=self.channels, BLOCK_C=block, ROWS=rows, num_warps=8
            )
        self.kernels.center_tokens[self._tiles(self.rows)](
            tokens, origin, centered, norm, self.num_tokens, CENTER=is_wide, **self._shape()
        )
        return _Tokens(centered, norm)

    def _densities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log rho of every token, (B, N), and its k nearest tokens, (B, N k)."""
        nearest = self._empty(self.num_tokens * self.k)
        self._find_nearest(self.tokens, self.tokens, nearest, self.k, fill_with_self=True)
        density = self._empty(self.num_tokens, torch.float32)
        slots = next_power_of_two(self.k)
        self.kernels.log_density[self._tiles(self.rows)](
            self.tokens.tokens, nearest, density, self.num_tokens, NEIGHBORS=self.k, SLOTS=slots, **self._shape()
        )
        return density, nearest

    def _parents(
        self, order: torch.Tensor, rank: torch.Tensor, nearest: torch.Tensor, by_density: _Tokens
    ) -> torch.Tensor:
        """The nearest denser token of every token, (B, N); rows and values are places in the order of density."""
        parent_place, is_missing = self._empty(self.num_tokens), self._empty(self.num_tokens, torch.int8)
        self.kernels.denser_neighbor[self._tiles(TOKEN_BLOCK)](
            order, rank, nearest, parent_place, is_missing, self.num_tokens, NEIGHBORS=self.k, BLOCK=TOKEN_BLOCK
        )
        self._find_nearest(by_density, by_density, parent_place, 1, label=order, row_list=self._compact(is_missing))
        return parent_place

    def _find_nearest(
        self,
        rows: _Tokens,
        columns: _Tokens,
        nearest: torch.Tensor,
        k: int,
        num_used: int | None = None,
        label: torch.Tensor | None = None,
        row_list: tuple[torch.Tensor, torch.Tensor] | None = None,
        fill_with_self: bool = False,
    ):
        """
        Writes the k nearest of the first `num_used` columns of each row into `nearest`: by `filter_nearest`, then by
        `measure_nearest` for the rows that it flags.

        With `label`, rows and columns are one array in the order of density, a row is compared with the columns before
        it, and labels break ties. `row_list` restricts the search to some rows.
        """
        num_rows, num_columns = rows.tokens.shape[1], columns.tokens.shape[1]
        is_flagged = torch.zeros(rows.norm.shape, dtype=torch.int8, device=self.device)
        reach = torch.empty_like(rows.norm)
        # Products of 16-bit tokens are exact in any precision.
        precision = self.launch.precision if rows.tokens.dtype == torch.float32 else "ieee"
        limits = (num_rows, num_columns, num_used or num_columns, error_bound(precision, self.channels))
        settings = dict(CHANNELS=self.channels, NEIGHBORS=k, PREFIX=label is not None, PRECISION=precision)
        arrays = (*rows, *columns, label)
        self.kernels.filter_nearest[self._tiles(self.launch.rows, num_rows)](
            *arrays,
            *(row_list or (None, None)),
            *(nearest, reach, is_flagged),
            *limits,
            # More slots than neighbours: the larger the bounds outside the list, the fewer rows are flagged.
            SLOTS=4 if k == 1 else max(self.launch.slots, next_power_of_two(k + 2)),
            LISTED=row_list is not None,
            **self.launch.filter_settings(self.block),
            **settings,
        )
        self.kernels.measure_nearest[self._tiles(self.launch.exact_rows, num_rows)](
            *arrays,
            *self._compact(is_flagged),
            *(nearest, reach),
            *limits,
            SLOTS=next_power_of_two(k),
            FILL_WITH_SELF=fill_with_self,
            **self.launch.measure_settings(self.block),
            **settings,
        )

    def _rank_descending(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens by falling value, ties by index, and each token's place in that order; (B, N) each."""
        order = values.sort(dim=1, descending=True, stable=True).indices
        rank = self._empty(self.num_tokens)
        self.kernels.rank_tokens[self._tiles(TOKEN_BLOCK)](order, rank, self.num_tokens, BLOCK=TOKEN_BLOCK)
        return order, rank

    def _permute(self, order: torch.Tensor, number: int) -> _Tokens:
        """The first `number` tokens of an order."""
        tokens = self.tokens.tokens.new_empty(self.batch_size, number, self.channels)
        norm = self._empty(number, torch.float32)
        self.kernels.permute_tokens[self._tiles(self.rows, number)](
            *self.tokens, order, tokens, norm, self.num_tokens, number, **self._shape()
        )
        return _Tokens(tokens, norm)

    def _compact(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen tokens by rising index, (B, N), and their number, (B, 1)."""
        rows, count = self._empty(self.num_tokens), self._empty(1)
        self.kernels.compact[(self.batch_size,)](chosen, rows, count, self.num_tokens, BLOCK=4 * TOKEN_BLOCK)
        return rows, count

    def _follow_parents(self, rank: torch.Tensor, parent: torch.Tensor, num_clusters: list[int]) -> torch.Tensor:
        labels = self._empty_labels(num_clusters)
        grid = self._tiles(TOKEN_BLOCK)
        for scale, number in zip(labels, num_clusters):
            self.kernels.follow_parents[grid](rank, parent, scale, number, self.num_tokens, BLOCK=TOKEN_BLOCK)
        return labels

    def _join_centers(self, order: torch.Tensor, rank: torch.Tensor, num_clusters: list[int]) -> torch.Tensor:
        # The centres of a coarse scale are the first of a fine scale's.
        centers = self._permute(order, min(max(num_clusters), self.num_tokens))
        nearest, labels = self._empty(self.num_tokens), self._empty_labels(num_clusters)
        for scale, number in zip(labels, num_clusters):
            used = min(number, self.num_tokens)
            self._find_nearest(self.tokens, centers, nearest, 1, num_used=used)
            self.kernels.join_centers[self._tiles(TOKEN_BLOCK)](
                rank, nearest, scale, used, self.num_tokens, BLOCK=TOKEN_BLOCK
            )
        return labels

    def _empty_labels(self, num_clusters: list[int]) -> torch.Tensor:
        shape = (len(num_clusters), self.batch_size, self.num_tokens)
        return torch.empty(shape, dtype=torch.long, device=self.device)

    def _empty(self, number: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(self.batch_size, number, dtype=dtype, device=self.device)

    def _tiles(self, rows: int, number: int | None = None) -> tuple[int]:
        """The grid: one program per tile of each image."""
        return (self.batch_size * -(-(number or self.num_tokens) // rows),)

    def _shape(self) -> dict[str, int]:
        return dict(CHANNELS=self.channels, BLOCK_C=self.block, ROWS=self.rows)


__all__ = ["Launch", "aggregate", "attempt", "can_aggregate", "can_cluster", "cluster", "is_importable"]
