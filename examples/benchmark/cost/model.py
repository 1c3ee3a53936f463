# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Minimum time of a clustering on an H100, from the sizes of its sweeps. N tokens, C channels, k neighbours."""

from typing import NamedTuple


# Operations and bytes per second of an H100 SXM, dense, from NVIDIA's data sheet.
BF16_FLOPS = 989e12
TF32_FLOPS = 495e12
# Instructions per second: the data sheet counts a fused multiply-add as two operations.
FP32_INSTRUCTIONS = 67e12 / 2
MEMORY_BYTES = 3.35e12
# Estimated instructions for a pair of tokens in `filter_nearest`: bound (4), masks (3), minimum (2), and three rounds
# of insertion in a tile; and for a pair in `measure_nearest` whose tile is not measured.
FILTER_INSTRUCTIONS, BOUND_INSTRUCTIONS = 20, 10
# Shares of the tokens that the sweeps process again, and of their tiles that are measured: the largest means found
# with `--images 224 512`, rounded up.
MISSING_SHARE, FLAGGED_SHARE, MEASURED_SHARE = 0.05, 0.14, 0.18


class Clustering(NamedTuple):
    """A call of `find_clusters`: B images of N tokens with C channels, and the number of scales."""

    batch: int
    tokens: int
    channels: int
    scales: int

    @property
    def pairs(self) -> float:
        """Pairs of tokens in both sweeps: all, and those of tokens without a denser neighbour with denser ones."""
        return self.batch * self.tokens**2 * (1 + MISSING_SHARE / 2)

    @property
    def flops(self) -> float:
        """Operations of one pass of the matrix products, including the second pass over flagged rows."""
        return 2 * self.pairs * (1 + FLAGGED_SHARE) * self.channels

    def matrix_seconds(self, is_wide: bool) -> float:
        """Three passes in TF32 for float32 tokens (`is_wide`), one in bfloat16."""
        return 3 * self.flops / TF32_FLOPS if is_wide else self.flops / BF16_FLOPS

    def vector_seconds(self) -> float:
        """A measured tile takes a difference and a multiply-add for each channel."""
        again = FLAGGED_SHARE * (BOUND_INSTRUCTIONS + MEASURED_SHARE * 2 * self.channels)
        return self.pairs * (FILTER_INSTRUCTIONS + again) / FP32_INSTRUCTIONS

    def memory_seconds(self, is_wide: bool) -> float:
        """Passes over all tokens: origin (2), centring (2), density (1 + k), order of density (2), parents (2)."""
        passes = 4 * is_wide + 6 + 4
        return passes * self.batch * self.tokens * self.channels * (4 if is_wide else 2) / MEMORY_BYTES

    def seconds(self, is_wide: bool) -> float:
        """Sum of the times, since matrix units and vector lanes rarely overlap."""
        return self.matrix_seconds(is_wide) + self.vector_seconds() + self.memory_seconds(is_wide)
