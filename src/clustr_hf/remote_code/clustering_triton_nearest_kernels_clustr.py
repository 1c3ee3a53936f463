# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Triton kernels that find the k nearest columns of each row, in the order of (squared distance, label).

Rows and columns are tokens: for the density all tokens against all tokens, for the nearest denser token a prefix in the
order of density, for the nearest centre tokens against centres.

1. `filter_nearest` sweeps over products of matrix units. A product gives a *lower bound* of each distance. The columns
   with the smallest bounds are kept in a list and measured again from coordinate differences. If the k-th distance is
   less than every bound outside the list, the list certainly holds the k nearest columns; otherwise the row is flagged.
2. `measure_nearest` sweeps over the flagged rows once more and measures every distance that may be small enough.

The result does not depend on how a matrix unit rounds, as long as its error is below `error_bound`.

Shapes: B images, N rows, M columns, C channels, k neighbours; R x J is a tile of rows and columns, L the length of a
list. A list holds, for each row, columns with their distances and labels, in no particular order.
"""

from .clustering_triton_tiles_clustr import (
    INFINITY,
    MAX_INDEX,
    load_tile,
    locate,
    sized,
    squared_distance,
    tl,
    triton,
)


# Smaller squared distances may have underflowed, so that no relative error bound holds for them.
MIN_CERTAIN_DISTANCE = tl.constexpr(1e-30)


@sized
def filter_nearest(
    row_tokens, row_norm, column_tokens, column_norm, label, row_list, row_count,
    nearest, reach, is_flagged,
    num_rows, num_columns, num_used, error_bound,
    CHANNELS: tl.constexpr, NEIGHBORS: tl.constexpr, SLOTS: tl.constexpr, LISTED: tl.constexpr,
    PREFIX: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """
    The `NEIGHBORS` nearest columns of each row, or a flag if they are not certain.

    Rows (B, N, C) and columns (B, M, C) with their squared norms -> nearest (B, N, k), is_flagged (B, N), and reach
    (B, N), a squared distance within which there are k columns. The columns are the first `num_used`; with `PREFIX`
    those before the row itself (rows and columns are then one array in some order, and `label` breaks ties). With
    `LISTED`, only the rows of a list are searched. Infinite norms flag all rows. `error_bound`: see `_distance_bounds`.
    """
    image, first = locate(num_rows, ROWS)
    rows, mask, count = _choose_rows(row_list, row_count, image, first, num_rows, LISTED, ROWS)
    if first >= count:
        return
    row_tokens += image * num_rows * CHANNELS
    column_tokens += image * num_columns * CHANNELS
    norm = tl.load(row_norm + image * num_rows + rows, mask=mask, other=0.0)
    limit = _row_limits(rows, mask, num_used, PREFIX)
    bounds, chosen = _find_smallest_bounds(
        row_tokens, rows, mask, norm, limit, column_tokens, column_norm + image * num_columns, error_bound,
        CHANNELS, SLOTS, PRECISION, COLUMNS, BLOCK_C,
    )  # fmt: skip
    distance, labels = _measure_list(
        row_tokens, rows, mask, column_tokens, label, image * num_columns, chosen, CHANNELS, SLOTS, PREFIX, BLOCK_C
    )
    nearest += (image * num_rows + rows) * NEIGHBORS
    farthest = _store_nearest(nearest, distance, labels, chosen, mask, limit, NEIGHBORS)
    is_certain = _is_certain(bounds, chosen, farthest, limit, error_bound)
    tl.store(reach + image * num_rows + rows, farthest, mask=mask)
    tl.store(is_flagged + image * num_rows + rows, (~is_certain).to(tl.int8), mask=mask & (limit > 0))


@sized
def measure_nearest(
    row_tokens, row_norm, column_tokens, column_norm, label, row_list, row_count,
    nearest, reach,
    num_rows, num_columns, num_used, error_bound,
    CHANNELS: tl.constexpr, NEIGHBORS: tl.constexpr, SLOTS: tl.constexpr, PREFIX: tl.constexpr,
    FILL_WITH_SELF: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, MEASURED_C: tl.constexpr,
):  # fmt: skip
    """
    The result of `filter_nearest` for the rows of a list, with every distance measured from coordinate differences.

    Tiles whose columns are all farther than the `reach` of their rows are skipped; in all other tiles every distance is
    measured, `MEASURED_C` channels at a time. Columns that cannot be compared with a row (NaN, overflow) are not its
    neighbours. If fewer than k remain, the row itself (`FILL_WITH_SELF`) or column 0 fills the list.
    """
    image, first = locate(num_rows, ROWS)
    rows, mask, count = _choose_rows(row_list, row_count, image, first, num_rows, True, ROWS)
    if first >= count:
        return
    row_tokens += image * num_rows * CHANNELS
    column_tokens += image * num_columns * CHANNELS
    column_norm += image * num_columns
    norm = tl.load(row_norm + image * num_rows + rows, mask=mask, other=0.0)
    limit = _row_limits(rows, mask, num_used, PREFIX)
    last = tl.max(limit, axis=0)
    kept_rows = _keep_rows(row_tokens, rows, mask, norm, CHANNELS, BLOCK_C)
    farthest = tl.load(reach + image * num_rows + rows, mask=mask, other=0.0)
    farthest = tl.maximum(farthest * (1 + error_bound), MIN_CERTAIN_DISTANCE)
    distance, labels, chosen = _empty_list(rows, NEIGHBORS, SLOTS, FILL_WITH_SELF)
    for start in range(0, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        bound = _distance_bounds(
            row_tokens, rows, mask, kept_rows, norm, column_tokens, column_norm, columns, columns < last, error_bound,
            CHANNELS, PRECISION, BLOCK_C,
        )  # fmt: skip
        is_offered = columns[None, :] < limit[:, None]
        # Not "at most": a bound that is NaN, by overflow, excludes nothing.
        is_near = is_offered & ~(bound > farthest[:, None])
        # Once if anything is near, else not at all; a branch here does not compile with Triton before 3.4. The loop
        # carries `is_offered`, because computing it in the loop makes the compiler spill registers (sm_80, bfloat16).
        for _ in range(0, tl.max(tl.max(is_near.to(tl.int32), axis=1), axis=0)):
            distance, labels, chosen, is_offered = _offer_tile(
                row_tokens, rows, mask, column_tokens, columns, columns < last, is_offered, label, image * num_columns,
                distance, labels, chosen, CHANNELS, PREFIX, MEASURED_C,
            )  # fmt: skip
    distance = tl.where(tl.arange(0, SLOTS)[None, :] < NEIGHBORS, distance, INFINITY)
    _store_nearest(nearest + (image * num_rows + rows) * NEIGHBORS, distance, labels, chosen, mask, limit, NEIGHBORS)


# Rows and bounds, for both kernels.


@triton.jit
def _choose_rows(row_list, row_count, image, first, num_rows, LISTED: tl.constexpr, ROWS: tl.constexpr):
    """Rows of a tile, which of them exist, and the number of rows of the image."""
    places = first + tl.arange(0, ROWS)
    count = num_rows
    rows = places
    if LISTED:
        count = tl.load(row_count + image)
        rows = tl.load(row_list + image * num_rows + places, mask=places < count, other=0)
    return rows, places < count, count


@triton.jit
def _row_limits(rows, mask, num_used, PREFIX: tl.constexpr):
    """Number of columns that each row is compared with."""
    limit = tl.zeros((rows.shape[0],), tl.int32) + num_used
    if PREFIX:
        limit = rows.to(tl.int32)
    return tl.where(mask, limit, 0)


@triton.jit
def _keep_rows(row_tokens, rows, mask, norm, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Tokens of the rows if all their channels fit into one block; else a placeholder that is never read."""
    kept_rows = norm
    if CHANNELS <= BLOCK_C:
        kept_rows = load_tile(row_tokens, rows, mask, tl.arange(0, BLOCK_C), CHANNELS)
    return kept_rows


@triton.jit
def _distance_bounds(
    row_tokens, rows, mask, kept_rows, row_norm, column_tokens, column_norm, columns, is_column, error_bound,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """
    Lower bounds of the squared distances of a tile, (R, J), from products of matrix units.

    With e = `error_bound` the error of the product x y is at most e |x| |y|, and that of |x|^2 at most e |x|^2.
    """
    product = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    if CHANNELS <= BLOCK_C:
        tile = load_tile(column_tokens, columns, is_column, tl.arange(0, BLOCK_C), CHANNELS)
        product = tl.dot(kept_rows, tl.trans(tile), product, input_precision=PRECISION)
    else:
        for start in range(0, CHANNELS, BLOCK_C):
            channel = start + tl.arange(0, BLOCK_C)
            left = load_tile(row_tokens, rows, mask, channel, CHANNELS)
            tile = load_tile(column_tokens, columns, is_column, channel, CHANNELS)
            product = tl.dot(left, tl.trans(tile), product, input_precision=PRECISION)
    norm = tl.load(column_norm + columns, mask=is_column, other=0.0)
    error = (2 * error_bound * tl.sqrt(row_norm))[:, None] * tl.sqrt(norm)[None, :]
    return (row_norm * (1 - error_bound))[:, None] + (norm * (1 - error_bound))[None, :] - 2 * product - error


@triton.jit
def _store_nearest(nearest, distance, labels, chosen, mask, limit, NEIGHBORS: tl.constexpr):
    """Stores the first columns of each list by (distance, label); returns the distance of the last one stored, (R,)."""
    farthest = tl.zeros((mask.shape[0],), tl.float32)
    for number in tl.static_range(NEIGHBORS):
        measured, column, distance, labels = _take_first(distance, labels, chosen)
        exists = number < limit
        farthest = tl.where(exists, measured, farthest)
        tl.store(nearest + number, column, mask=mask & exists)
    return farthest


@triton.jit
def _take_first(distance, labels, chosen):
    """Distance and column of the entry of each list that comes first by (distance, label); the lists without it."""
    slot = tl.arange(0, distance.shape[1])
    smallest = tl.min(distance, axis=1)
    first_label = tl.min(tl.where(distance == smallest[:, None], labels, MAX_INDEX), axis=1)
    is_first = (distance == smallest[:, None]) & (labels == first_label[:, None])
    # Empty slots are all alike: only one of them is taken.
    place = tl.min(tl.where(is_first, slot[None, :], MAX_INDEX), axis=1)
    is_first = slot[None, :] == place[:, None]
    column = tl.sum(tl.where(is_first, chosen, 0), axis=1)
    distance = tl.where(is_first, INFINITY, distance)
    labels = tl.where(is_first, MAX_INDEX, labels)
    return smallest, column, distance, labels


# Steps of `filter_nearest`.


@triton.jit
def _find_smallest_bounds(
    row_tokens, rows, mask, norm, limit, column_tokens, column_norm, error_bound,
    CHANNELS: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The smallest bounds of each row and the columns that they belong to (-1 for an empty slot), (R, L) each."""
    last = tl.max(limit, axis=0)
    kept_rows = _keep_rows(row_tokens, rows, mask, norm, CHANNELS, BLOCK_C)
    slot = tl.arange(0, SLOTS)
    bounds = tl.full((rows.shape[0], SLOTS), INFINITY, tl.float32)
    chosen = tl.full((rows.shape[0], SLOTS), -1, tl.int32)
    for start in range(0, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        bound = _distance_bounds(
            row_tokens, rows, mask, kept_rows, norm, column_tokens, column_norm, columns, columns < last, error_bound,
            CHANNELS, PRECISION, BLOCK_C,
        )  # fmt: skip
        # Comparisons with NaN are false, so NaN becomes infinite too.
        bound = tl.where((columns[None, :] < limit[:, None]) & (bound < INFINITY), bound, INFINITY)
        largest = tl.max(bounds, axis=1)
        smallest, place = tl.min(bound, axis=1, return_indices=True)
        while tl.max((smallest < largest).to(tl.int32), axis=0) > 0:
            replaced = tl.argmax(bounds, axis=1)
            is_new = (smallest < largest)[:, None] & (slot[None, :] == replaced[:, None])
            bounds = tl.where(is_new, smallest[:, None], bounds)
            chosen = tl.where(is_new, (start + place)[:, None], chosen)
            bound = tl.where(columns[None, :] == (start + place)[:, None], INFINITY, bound)
            largest = tl.max(bounds, axis=1)
            smallest, place = tl.min(bound, axis=1, return_indices=True)
    return bounds, chosen


@triton.jit
def _measure_list(
    row_tokens, rows, mask, column_tokens, label, label_offset, chosen,
    CHANNELS: tl.constexpr, SLOTS: tl.constexpr, PREFIX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Squared distances of the chosen columns and their labels, (R, L) each; infinite for empty slots and NaN."""
    slot = tl.arange(0, SLOTS)
    distance = tl.full((rows.shape[0], SLOTS), INFINITY, tl.float32)
    labels = tl.full((rows.shape[0], SLOTS), MAX_INDEX, tl.int32)
    for number in range(SLOTS):
        column = tl.sum(tl.where(slot[None, :] == number, chosen, 0), axis=1)
        is_filled = mask & (column >= 0)
        measured = squared_distance(
            row_tokens, rows, column_tokens, tl.maximum(column, 0), is_filled, CHANNELS, BLOCK_C
        )
        name = column
        if PREFIX:
            name = tl.load(label + label_offset + column, mask=is_filled, other=0).to(tl.int32)
        here = (slot[None, :] == number) & is_filled[:, None]
        distance = tl.where(here & (measured < INFINITY)[:, None], measured[:, None], distance)
        labels = tl.where(here, name[:, None], labels)
    return distance, labels


@triton.jit
def _is_certain(bounds, chosen, farthest, limit, error_bound):
    """Whether the list of each row holds its nearest columns, the last of them at the distance `farthest`."""
    num_filled = tl.sum((chosen >= 0).to(tl.int32), axis=1)
    outside = tl.max(bounds, axis=1)  # columns outside the list are farther than this
    is_whole = num_filled == limit  # the list holds all columns
    is_apart = (farthest * (1 + error_bound) < outside) & (outside > MIN_CERTAIN_DISTANCE)
    return (is_whole | is_apart) & (farthest < INFINITY)


# Steps of `measure_nearest`.


@triton.jit
def _empty_list(rows, NEIGHBORS: tl.constexpr, SLOTS: tl.constexpr, FILL_WITH_SELF: tl.constexpr):
    """Lists of k empty slots, (R, L) each: distances, labels, columns. Slots beyond k can never be replaced."""
    slot = tl.arange(0, SLOTS)
    distance = tl.where(slot[None, :] < NEIGHBORS, tl.full((rows.shape[0], SLOTS), INFINITY, tl.float32), -INFINITY)
    labels = tl.full((rows.shape[0], SLOTS), MAX_INDEX, tl.int32)
    chosen = tl.zeros((rows.shape[0], SLOTS), tl.int32)
    if FILL_WITH_SELF:
        chosen += rows[:, None]
    return distance, labels, chosen


@triton.jit
def _offer_tile(
    row_tokens, rows, mask, column_tokens, columns, is_column, is_offered, label, label_offset,
    distance, labels, chosen, CHANNELS: tl.constexpr, PREFIX: tl.constexpr, MEASURED_C: tl.constexpr,
):  # fmt: skip
    """Measures the distances of a tile and inserts its columns into the lists; the last result excludes NaN columns."""
    squared = _measure_tile(row_tokens, rows, mask, column_tokens, columns, is_column, CHANNELS, MEASURED_C)
    name = columns
    if PREFIX:
        name = tl.load(label + label_offset + columns, mask=is_column, other=0).to(tl.int32)
    is_offered = is_offered & (squared < INFINITY)
    squared = tl.where(is_offered, squared, INFINITY)
    offered = tl.where(is_offered, name[None, :], MAX_INDEX)
    is_better = _is_better(squared, offered, distance, labels)
    while tl.max(is_better.to(tl.int32), axis=0) > 0:
        distance, labels, chosen, squared, offered = _insert_first(
            squared, offered, columns, distance, labels, chosen, is_better
        )
        is_better = _is_better(squared, offered, distance, labels)
    return distance, labels, chosen, is_offered


@triton.jit
def _measure_tile(
    row_tokens, rows, mask, column_tokens, columns, is_column, CHANNELS: tl.constexpr, MEASURED_C: tl.constexpr
):
    """Squared distances of a tile, (R, J), from coordinate differences."""
    squared = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, CHANNELS, MEASURED_C):
        channel = start + tl.arange(0, MEASURED_C)
        left = load_tile(row_tokens, rows, mask, channel, CHANNELS).to(tl.float32)
        right = load_tile(column_tokens, columns, is_column, channel, CHANNELS).to(tl.float32)
        difference = left[:, None, :] - right[None, :, :]
        squared += tl.sum(difference * difference, axis=2)
    return squared


@triton.jit
def _is_better(squared, offered, distance, labels):
    """Whether the first offer of each row comes before the last entry of its list, by (distance, label)."""
    smallest = tl.min(squared, axis=1)
    first_label = tl.min(tl.where(squared == smallest[:, None], offered, MAX_INDEX), axis=1)
    largest = tl.max(distance, axis=1)
    last_label = tl.max(tl.where(distance == largest[:, None], labels, -1), axis=1)
    return (smallest < INFINITY) & ((smallest < largest) | ((smallest == largest) & (first_label < last_label)))


@triton.jit
def _insert_first(squared, offered, columns, distance, labels, chosen, is_better):
    """Replaces the last entry of each list by the row's first offer, where that is better; removes the offer."""
    slot = tl.arange(0, distance.shape[1])
    smallest = tl.min(squared, axis=1)
    first_label = tl.min(tl.where(squared == smallest[:, None], offered, MAX_INDEX), axis=1)
    is_first = (squared == smallest[:, None]) & (offered == first_label[:, None])
    column = tl.min(tl.where(is_first, columns[None, :], MAX_INDEX), axis=1)
    largest = tl.max(distance, axis=1)
    last_label = tl.max(tl.where(distance == largest[:, None], labels, -1), axis=1)
    is_last = (distance == largest[:, None]) & (labels == last_label[:, None])
    place = tl.min(tl.where(is_last, slot[None, :], MAX_INDEX), axis=1)
    is_new = is_better[:, None] & (slot[None, :] == place[:, None])
    distance = tl.where(is_new, smallest[:, None], distance)
    labels = tl.where(is_new, first_label[:, None], labels)
    chosen = tl.where(is_new, column[:, None], chosen)
    is_taken = columns[None, :] == column[:, None]
    return distance, labels, chosen, tl.where(is_taken, INFINITY, squared), tl.where(is_taken, MAX_INDEX, offered)


__all__ = ["filter_nearest", "measure_nearest"]
