# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Triton kernels of the clustering and of the aggregation; clustering_triton_clustr.py launches them, and is the only
module that imports this one, when the first tensor on a GPU is clustered.

Shapes: B images, N tokens, C channels, k neighbours, M clusters, S scales. A program of a kernel works on one image and
on a tile of its tokens. Arrays are contiguous.

Two kernels look for the nearest columns of each row, in the order of (squared distance, label):

- `filter_nearest` sweeps over products of matrix units. A product gives a *lower bound* of every distance; the columns
  with the least bounds are kept in a list and measured again from coordinate differences. If the k-th distance is less
  than every bound outside the list, the list holds the k nearest for certain. Otherwise the row is flagged.
- `measure_nearest` sweeps over the flagged rows once more and measures every distance that may be small enough.

So the choice never depends on how a matrix unit rounds, as long as its error is below `error_bound`.
"""

# In `try`, so that transformers does not count Triton among the packages that a repository's code requires.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The Triton kernels of clustr_hf need the package `triton`.") from error


# Do not recompile when the number of tokens changes.
_sized = triton.jit(
    do_not_specialize=["num_tokens", "num_rows", "num_columns", "num_used", "num_taken", "num_clusters"]
)

LARGEST_INDEX = tl.constexpr(2**31 - 1)
# Squared distances below this may have underflowed, so that no relative error bound holds for them.
LEAST_CERTAIN = tl.constexpr(1e-30)
LARGEST_VALUE = tl.constexpr(3e38)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _load_tile(tokens, rows, row_mask, channel, CHANNELS: tl.constexpr):
    """Channels `channel` of tokens `rows`, (rows, channels); 0 outside."""
    mask = row_mask[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(tokens + rows[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _locate(num_rows, ROWS: tl.constexpr):
    """The image and the first row of a program: programs are numbered image by image."""
    tiles = tl.cdiv(num_rows, ROWS)
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64), (program % tiles) * ROWS


@triton.jit
def _squared_distance(
    tokens, rows, others_tokens, others, mask, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr
):
    """Squared distance between tokens `rows` and the tokens `others`, pair by pair, from coordinate differences."""
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        left = _load_tile(tokens, rows, mask, channel, CHANNELS).to(tl.float32)
        difference = left - _load_tile(others_tokens, others, mask, channel, CHANNELS).to(tl.float32)
        total += tl.sum(difference * difference, axis=1)
    return total


@triton.jit
def _take_first(distance, label, slot, taken_from, ROWS: tl.constexpr):
    """
    The entry of each list that comes first by (distance, label), and the lists without it; `taken_from` (rows, slots)
    holds what is returned of that entry.
    """
    least = tl.min(distance, axis=1)
    first_label = tl.min(tl.where(distance == least[:, None], label, LARGEST_INDEX), axis=1)
    is_first = (distance == least[:, None]) & (label == first_label[:, None])
    # Empty places are all alike: only one of them is taken.
    place = tl.min(tl.where(is_first, slot[None, :], LARGEST_INDEX), axis=1)
    is_first = slot[None, :] == place[:, None]
    taken = tl.sum(tl.where(is_first, taken_from, 0), axis=1)
    distance = tl.where(is_first, INFINITY, distance)
    label = tl.where(is_first, LARGEST_INDEX, label)
    return least, taken, distance, label


@_sized
def find_origin(tokens, origin, num_tokens, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr):
    """
    The token that is nearest to an image's mean: tokens (B, N, C) -> origin (B), one program an image.

    Sums have one order whatever the batch is, which torch's reductions do not promise.
    """
    image = tl.program_id(0).to(tl.int64)
    tokens += image * num_tokens * CHANNELS
    channel = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, num_tokens, ROWS):
        rows = start + tl.arange(0, ROWS)
        total += tl.sum(_load_tile(tokens, rows, rows < num_tokens, channel, CHANNELS).to(tl.float32), axis=0)
    mean = total / num_tokens
    nearest = 0
    least = INFINITY
    for start in range(0, num_tokens, ROWS):
        rows = start + tl.arange(0, ROWS)
        tile = _load_tile(tokens, rows, rows < num_tokens, channel, CHANNELS).to(tl.float32)
        difference = tl.where((channel < CHANNELS)[None, :], tile - mean[None, :], 0.0)
        squared = tl.sum(difference * difference, axis=1)
        squared = tl.where((rows < num_tokens) & (squared == squared), squared, INFINITY)
        tile_least = tl.min(squared, axis=0)
        tile_nearest = tl.min(tl.where(squared == tile_least, rows, LARGEST_INDEX), axis=0)
        nearest = tl.where(tile_least < least, tile_nearest, nearest)
        least = tl.minimum(tile_least, least)
    tl.store(origin + image, nearest)


@_sized
def center_tokens(
    tokens,
    origin,
    centered,
    squared_norm,
    num_tokens,
    CHANNELS: tl.constexpr,
    CENTER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """
    Tokens minus their image's origin, and their squared norms: (B, N, C) -> (B, N, C), (B, N).

    Without `CENTER` only the norms are written: products of 16-bit tokens are exact as they are.
    """
    image, first = _locate(num_tokens, ROWS)
    rows = first + tl.arange(0, ROWS)
    mask = rows < num_tokens
    tokens += image * num_tokens * CHANNELS
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        tile = _load_tile(tokens, rows, mask, channel, CHANNELS).to(tl.float32)
        if CENTER:
            at = tl.load(origin + image) * CHANNELS + channel
            tile -= tl.load(tokens + at, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
            where = centered + image * num_tokens * CHANNELS + rows[:, None] * CHANNELS + channel[None, :]
            tl.store(where, tile, mask=mask[:, None] & (channel < CHANNELS)[None, :])
            tile = tl.where(mask[:, None], tile, 0.0)
        total += tl.sum(tile * tile, axis=1)
    tl.store(squared_norm + image * num_tokens + rows, total, mask=mask)


@_sized
def permute_tokens(
    tokens,
    squared_norm,
    order,
    permuted,
    permuted_norm,
    num_tokens,
    num_taken,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The first tokens of an order, with their norms: (B, N, C), (B, N), (B, N) -> (B, M, C), (B, M)."""
    image, first = _locate(num_taken, ROWS)
    places = first + tl.arange(0, ROWS)
    mask = places < num_taken
    rows = tl.load(order + image * num_tokens + places, mask=mask, other=0).to(tl.int32)
    tokens += image * num_tokens * CHANNELS
    permuted += image * num_taken * CHANNELS
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        tile = _load_tile(tokens, rows, mask, channel, CHANNELS)
        where = permuted + places[:, None] * CHANNELS + channel[None, :]
        tl.store(where, tile, mask=mask[:, None] & (channel < CHANNELS)[None, :])
    norm = tl.load(squared_norm + image * num_tokens + rows, mask=mask, other=0.0)
    tl.store(permuted_norm + image * num_taken + places, norm, mask=mask)


@_sized
def compact(chosen, rows, count, num_tokens, BLOCK: tl.constexpr):
    """The tokens that are chosen, by rising index, and how many: (B, N) -> (B, N), (B); one program an image."""
    image = tl.program_id(0).to(tl.int64)
    before = 0
    for start in range(0, num_tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        is_chosen = tl.load(chosen + image * num_tokens + token, mask=token < num_tokens, other=0).to(tl.int32)
        place = before + tl.cumsum(is_chosen, axis=0) - is_chosen
        tl.store(rows + image * num_tokens + place, token, mask=is_chosen != 0)
        before += tl.sum(is_chosen, axis=0)
    tl.store(count + image, before)


@triton.jit
def _choose_rows(row_list, row_count, image, first, num_rows, LISTED: tl.constexpr, ROWS: tl.constexpr):
    """The rows of a tile, whether each is one, and the number of rows in all."""
    places = first + tl.arange(0, ROWS)
    count = num_rows
    rows = places
    if LISTED:
        count = tl.load(row_count + image)
        rows = tl.load(row_list + image * num_rows + places, mask=places < count, other=0)
    return rows, places < count, count


@triton.jit
def _row_limits(rows, mask, num_used, PREFIX: tl.constexpr, ROWS: tl.constexpr):
    """How many columns each row is compared with."""
    limit = tl.zeros((ROWS,), tl.int32) + num_used
    if PREFIX:
        limit = rows.to(tl.int32)
    return tl.where(mask, limit, 0)


@triton.jit
def _distance_bounds(
    row_tokens,
    rows,
    mask,
    kept_rows,
    row_norm,
    column_tokens,
    column_norm,
    columns,
    is_column,
    error_bound,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """
    Lower bounds of the squared distances of a tile, (rows, columns), from products of matrix units.

    `kept_rows` are the tokens of the rows, where all their channels fit one block. With e = `error_bound` the product
    x y is wrong by at most e |x| |y|, and |x|^2 by at most e |x|^2.
    """
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    if CHANNELS <= BLOCK_C:
        tile = _load_tile(column_tokens, columns, is_column, tl.arange(0, BLOCK_C), CHANNELS)
        product = tl.dot(kept_rows, tl.trans(tile), product, input_precision=PRECISION)
    else:
        for start in range(0, CHANNELS, BLOCK_C):
            channel = start + tl.arange(0, BLOCK_C)
            left = _load_tile(row_tokens, rows, mask, channel, CHANNELS)
            tile = _load_tile(column_tokens, columns, is_column, channel, CHANNELS)
            product = tl.dot(left, tl.trans(tile), product, input_precision=PRECISION)
    norm = tl.load(column_norm + columns, mask=is_column, other=0.0)
    error = (2 * error_bound * tl.sqrt(row_norm))[:, None] * tl.sqrt(norm)[None, :]
    return (row_norm * (1 - error_bound))[:, None] + (norm * (1 - error_bound))[None, :] - 2 * product - error


@_sized
def filter_nearest(
    row_tokens,
    row_norm,
    column_tokens,
    column_norm,
    label,
    row_list,
    row_count,
    nearest,
    reach,
    is_flagged,
    num_rows,
    num_columns,
    num_used,
    error_bound,
    CHANNELS: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    SLOTS: tl.constexpr,
    LISTED: tl.constexpr,
    PREFIX: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """
    The `NEIGHBORS` nearest columns of each row, or a flag where they are not certain.

    Rows (B, N, C), columns (B, M, C) with their squared norms -> nearest (B, N, k), is_flagged (B, N), and reach
    (B, N), a squared distance within which there are k columns. Columns are the first `num_used`, with `PREFIX` those
    before the row itself (rows and columns are then one array in an order, whose `label` breaks ties). `LISTED`: only
    the rows of a list. Where norms are infinite all rows are flagged. `error_bound`: see `_distance_bounds`.
    """
    image, first = _locate(num_rows, ROWS)
    rows, mask, count = _choose_rows(row_list, row_count, image, first, num_rows, LISTED, ROWS)
    if first >= count:
        return
    row_tokens += image * num_rows * CHANNELS
    column_tokens += image * num_columns * CHANNELS
    column_norm += image * num_columns
    norm = tl.load(row_norm + image * num_rows + rows, mask=mask, other=0.0)
    limit = _row_limits(rows, mask, num_used, PREFIX, ROWS)
    last = tl.max(limit, axis=0)
    kept_rows = norm
    if CHANNELS <= BLOCK_C:
        kept_rows = _load_tile(row_tokens, rows, mask, tl.arange(0, BLOCK_C), CHANNELS)

    slot = tl.arange(0, SLOTS)
    bounds = tl.full((ROWS, SLOTS), INFINITY, tl.float32)
    chosen = tl.full((ROWS, SLOTS), -1, tl.int32)
    for start in range(0, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        bound = _distance_bounds(
            row_tokens,
            rows,
            mask,
            kept_rows,
            norm,
            column_tokens,
            column_norm,
            columns,
            columns < last,
            error_bound,
            CHANNELS,
            PRECISION,
            ROWS,
            COLUMNS,
            BLOCK_C,
        )
        # Comparisons with NaN are false, so NaN becomes infinite too.
        bound = tl.where((columns[None, :] < limit[:, None]) & (bound < INFINITY), bound, INFINITY)
        largest = tl.max(bounds, axis=1)
        least, place = tl.min(bound, axis=1, return_indices=True)
        while tl.max((least < largest).to(tl.int32), axis=0) > 0:
            replaced = tl.argmax(bounds, axis=1)
            is_new = (least < largest)[:, None] & (slot[None, :] == replaced[:, None])
            bounds = tl.where(is_new, least[:, None], bounds)
            chosen = tl.where(is_new, (start + place)[:, None], chosen)
            bound = tl.where(columns[None, :] == (start + place)[:, None], INFINITY, bound)
            largest = tl.max(bounds, axis=1)
            least, place = tl.min(bound, axis=1, return_indices=True)

    distance = tl.full((ROWS, SLOTS), INFINITY, tl.float32)
    names = tl.full((ROWS, SLOTS), LARGEST_INDEX, tl.int32)
    for number in range(SLOTS):
        column = tl.sum(tl.where(slot[None, :] == number, chosen, 0), axis=1)
        is_filled = mask & (column >= 0)
        measured = _squared_distance(
            row_tokens, rows, column_tokens, tl.maximum(column, 0), is_filled, CHANNELS, BLOCK_C, ROWS
        )
        name = column
        if PREFIX:
            name = tl.load(label + image * num_columns + column, mask=is_filled, other=0).to(tl.int32)
        here = (slot[None, :] == number) & is_filled[:, None]
        distance = tl.where(here & (measured < INFINITY)[:, None], measured[:, None], distance)
        names = tl.where(here, name[:, None], names)

    num_filled = tl.sum((chosen >= 0).to(tl.int32), axis=1)
    farthest = tl.zeros((ROWS,), tl.float32)
    for number in tl.static_range(NEIGHBORS):
        measured, column, distance, names = _take_first(distance, names, slot, chosen, ROWS)
        exists = number < limit
        farthest = tl.where(exists, measured, farthest)
        tl.store(nearest + (image * num_rows + rows) * NEIGHBORS + number, column, mask=mask & exists)
    outside = tl.max(bounds, axis=1)  # columns outside the list are farther than this
    is_whole = num_filled == limit  # the list holds all there are
    is_apart = (farthest * (1 + error_bound) < outside) & (outside > LEAST_CERTAIN)
    is_certain = (is_whole | is_apart) & (farthest < INFINITY)
    tl.store(reach + image * num_rows + rows, farthest, mask=mask)
    tl.store(is_flagged + image * num_rows + rows, (~is_certain).to(tl.int8), mask=mask & (limit > 0))


@_sized
def measure_nearest(
    row_tokens,
    row_norm,
    column_tokens,
    column_norm,
    label,
    row_list,
    row_count,
    nearest,
    reach,
    num_rows,
    num_columns,
    num_used,
    error_bound,
    CHANNELS: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    SLOTS: tl.constexpr,
    PREFIX: tl.constexpr,
    ITSELF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MEASURED_C: tl.constexpr,
):
    """
    What `filter_nearest` finds, for the rows of a list, by (distance, label) measured from coordinate differences.

    Tiles whose columns are all farther than the `reach` of their rows are left out; of the others every distance is
    measured, `MEASURED_C` channels at a time. Columns that cannot be compared with a row (NaN, overflow) are not its
    neighbours; where there are fewer than k, the row itself (`ITSELF`) or column 0 stands instead.
    """
    image, first = _locate(num_rows, ROWS)
    rows, mask, count = _choose_rows(row_list, row_count, image, first, num_rows, True, ROWS)
    if first >= count:
        return
    row_tokens += image * num_rows * CHANNELS
    column_tokens += image * num_columns * CHANNELS
    column_norm += image * num_columns
    norm = tl.load(row_norm + image * num_rows + rows, mask=mask, other=0.0)
    limit = _row_limits(rows, mask, num_used, PREFIX, ROWS)
    last = tl.max(limit, axis=0)
    kept_rows = norm
    if CHANNELS <= BLOCK_C:
        kept_rows = _load_tile(row_tokens, rows, mask, tl.arange(0, BLOCK_C), CHANNELS)
    farthest = tl.load(reach + image * num_rows + rows, mask=mask, other=0.0)
    farthest = tl.maximum(farthest * (1 + error_bound), LEAST_CERTAIN)

    slot = tl.arange(0, SLOTS)
    distance = tl.where(slot[None, :] < NEIGHBORS, tl.full((ROWS, SLOTS), INFINITY, tl.float32), -INFINITY)
    names = tl.full((ROWS, SLOTS), LARGEST_INDEX, tl.int32)
    chosen = tl.zeros((ROWS, SLOTS), tl.int32)
    if ITSELF:
        chosen += rows[:, None]
    for start in range(0, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < last
        bound = _distance_bounds(
            row_tokens,
            rows,
            mask,
            kept_rows,
            norm,
            column_tokens,
            column_norm,
            columns,
            is_column,
            error_bound,
            CHANNELS,
            PRECISION,
            ROWS,
            COLUMNS,
            BLOCK_C,
        )
        is_offered = columns[None, :] < limit[:, None]
        # Not "at most": a bound that is NaN, by overflow, says nothing.
        is_near = is_offered & ~(bound > farthest[:, None])
        # Once if anything is near, else not at all; a branch here does not compile with Triton before 3.4.
        for _ in range(0, tl.max(tl.max(is_near.to(tl.int32), axis=1), axis=0)):
            squared = _measure_tile(
                row_tokens, rows, mask, column_tokens, columns, is_column, CHANNELS, ROWS, COLUMNS, MEASURED_C
            )
            name = columns
            if PREFIX:
                name = tl.load(label + image * num_columns + columns, mask=is_column, other=0).to(tl.int32)
            is_offered = is_offered & (squared < INFINITY)
            squared = tl.where(is_offered, squared, INFINITY)
            offers = tl.where(is_offered, name[None, :], LARGEST_INDEX)
            is_better = _is_better(squared, offers, distance, names, ROWS)
            while tl.max(is_better.to(tl.int32), axis=0) > 0:
                distance, names, chosen, squared, offers = _insert_first(
                    squared, offers, columns, distance, names, chosen, slot, is_better
                )
                is_better = _is_better(squared, offers, distance, names, ROWS)
    distance = tl.where(slot[None, :] < NEIGHBORS, distance, INFINITY)
    for number in tl.static_range(NEIGHBORS):
        _, column, distance, names = _take_first(distance, names, slot, chosen, ROWS)
        where = nearest + (image * num_rows + rows) * NEIGHBORS + number
        tl.store(where, column, mask=mask & (number < limit))


@triton.jit
def _measure_tile(
    row_tokens,
    rows,
    mask,
    column_tokens,
    columns,
    is_column,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MEASURED_C: tl.constexpr,
):
    """Squared distances of a tile, (rows, columns), from coordinate differences."""
    squared = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHANNELS, MEASURED_C):
        channel = start + tl.arange(0, MEASURED_C)
        left = _load_tile(row_tokens, rows, mask, channel, CHANNELS).to(tl.float32)
        right = _load_tile(column_tokens, columns, is_column, channel, CHANNELS).to(tl.float32)
        difference = left[:, None, :] - right[None, :, :]
        squared += tl.sum(difference * difference, axis=2)
    return squared


@triton.jit
def _is_better(squared, offers, distance, names, ROWS: tl.constexpr):
    """Whether the first offer of each row comes before the last entry of its list, by (distance, name)."""
    least = tl.min(squared, axis=1)
    least_name = tl.min(tl.where(squared == least[:, None], offers, LARGEST_INDEX), axis=1)
    largest = tl.max(distance, axis=1)
    last_name = tl.max(tl.where(distance == largest[:, None], names, -1), axis=1)
    return (least < INFINITY) & ((least < largest) | ((least == largest) & (least_name < last_name)))


@triton.jit
def _insert_first(squared, offers, columns, distance, names, chosen, slot, is_better):
    """Puts the first offer of each row in place of the last entry of its list, where it is better."""
    least = tl.min(squared, axis=1)
    least_name = tl.min(tl.where(squared == least[:, None], offers, LARGEST_INDEX), axis=1)
    is_first = (squared == least[:, None]) & (offers == least_name[:, None])
    column = tl.min(tl.where(is_first, columns[None, :], LARGEST_INDEX), axis=1)
    largest = tl.max(distance, axis=1)
    last_name = tl.max(tl.where(distance == largest[:, None], names, -1), axis=1)
    is_last = (distance == largest[:, None]) & (names == last_name[:, None])
    place = tl.min(tl.where(is_last, slot[None, :], LARGEST_INDEX), axis=1)
    is_new = is_better[:, None] & (slot[None, :] == place[:, None])
    distance = tl.where(is_new, least[:, None], distance)
    names = tl.where(is_new, least_name[:, None], names)
    chosen = tl.where(is_new, column[:, None], chosen)
    is_taken = columns[None, :] == column[:, None]
    return distance, names, chosen, tl.where(is_taken, INFINITY, squared), tl.where(is_taken, LARGEST_INDEX, offers)


@_sized
def log_density(
    tokens,
    nearest,
    density,
    num_tokens,
    CHANNELS: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """
    log rho of Eq. 1, minus the mean squared distance to the k nearest: (B, N, C), (B, N, k) -> (B, N).

    Distances are added by rising size, so that equal neighbourhoods have equal densities; NaN becomes -inf.
    """
    image, first = _locate(num_tokens, ROWS)
    rows = first + tl.arange(0, ROWS)
    mask = rows < num_tokens
    tokens += image * num_tokens * CHANNELS
    slot = tl.arange(0, SLOTS)
    distance = tl.full((ROWS, SLOTS), INFINITY, tl.float32)
    for number in range(NEIGHBORS):
        other = tl.load(nearest + (image * num_tokens + rows) * NEIGHBORS + number, mask=mask, other=0)
        squared = _squared_distance(tokens, rows, tokens, other, mask, CHANNELS, BLOCK_C, ROWS)
        distance = tl.where(slot[None, :] == number, squared[:, None], distance)
    total = tl.zeros((ROWS,), tl.float32)
    for _ in range(NEIGHBORS):
        least = tl.min(distance, axis=1)
        place = tl.argmin(distance, axis=1)
        distance = tl.where(slot[None, :] == place[:, None], INFINITY, distance)
        total += least
    value = -tl.div_rn(total, tl.zeros((ROWS,), tl.float32) + NEIGHBORS * CHANNELS)
    tl.store(density + image * num_tokens + rows, tl.where(value == value, value, -INFINITY), mask=mask)


@_sized
def rank_tokens(order, rank, num_tokens, BLOCK: tl.constexpr):
    """The place of each token in an order, (B, N) -> (B, N)."""
    image, first = _locate(num_tokens, BLOCK)
    place = first + tl.arange(0, BLOCK)
    mask = place < num_tokens
    token = tl.load(order + image * num_tokens + place, mask=mask, other=0)
    tl.store(rank + image * num_tokens + token, place, mask=mask)


@_sized
def denser_neighbor(order, rank, nearest, parent, is_missing, num_tokens, NEIGHBORS: tl.constexpr, BLOCK: tl.constexpr):
    """
    The nearest denser token among the k nearest, and whether there is none. All are places in the order of density:
    order (B, N), rank (B, N), nearest (B, N, k) by rising (distance, index) -> parent (B, N), is_missing (B, N).

    The densest token, place 0, is its own parent.
    """
    image, first = _locate(num_tokens, BLOCK)
    place = first + tl.arange(0, BLOCK)
    mask = place < num_tokens
    token = tl.load(order + image * num_tokens + place, mask=mask, other=0)
    found = tl.where(place == 0, 0, -1)
    for number in tl.static_range(NEIGHBORS):
        other = tl.load(nearest + (image * num_tokens + token) * NEIGHBORS + number, mask=mask, other=0)
        other_place = tl.load(rank + image * num_tokens + other, mask=mask, other=0)
        found = tl.where((found < 0) & (other_place < place), other_place, found)
    tl.store(parent + image * num_tokens + place, tl.maximum(found, 0), mask=mask)
    tl.store(is_missing + image * num_tokens + place, (found < 0).to(tl.int8), mask=mask)


@_sized
def log_decision(
    tokens,
    density,
    order,
    parent,
    decision,
    parent_token,
    num_tokens,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """
    log(rho delta) and the nearest denser token, by token.

    Tokens (B, N, C) and their parents (B, N) are in the order of density; density (B, N) is by token -> decision and
    parent_token (B, N). The densest token is infinite: Eq. 2 makes it the first centre. NaN becomes -inf.
    """
    image, first = _locate(num_tokens, ROWS)
    place = first + tl.arange(0, ROWS)
    mask = place < num_tokens
    tokens += image * num_tokens * CHANNELS
    order += image * num_tokens
    above = tl.load(parent + image * num_tokens + place, mask=mask, other=0)
    squared = _squared_distance(tokens, place, tokens, above, mask, CHANNELS, BLOCK_C, ROWS)
    token = tl.load(order + place, mask=mask, other=0)
    value = tl.load(density + image * num_tokens + token, mask=mask, other=0.0)
    value += tl.log(tl.sqrt_rn(tl.div_rn(squared, tl.zeros((ROWS,), tl.float32) + CHANNELS)))
    # An infinite distance must not tie with the densest token.
    value = tl.where(value == value, tl.minimum(value, LARGEST_VALUE), -INFINITY)
    tl.store(decision + image * num_tokens + token, tl.where(place == 0, INFINITY, value), mask=mask)
    above_token = tl.load(order + above, mask=mask, other=0).to(tl.int32)
    tl.store(parent_token + image * num_tokens + token, above_token, mask=mask)


@_sized
def follow_parents(rank, parent, labels, num_clusters, num_tokens, BLOCK: tl.constexpr):
    """
    The first centre on each token's way to denser tokens, for one scale: rank (of decision), parent, labels (B, N).

    The parent of a token is strictly denser, and the densest token is the first centre, so every way ends. The count
    of steps only makes sure that a fault elsewhere cannot hang the device.
    """
    image, first = _locate(num_tokens, BLOCK)
    rank += image * num_tokens
    parent += image * num_tokens
    places = first + tl.arange(0, BLOCK)
    mask = places < num_tokens
    token = places
    label = tl.load(rank + token, mask=mask, other=0)
    steps = 0
    while (tl.max(label, axis=0) >= num_clusters) & (steps < num_tokens):
        is_underway = label >= num_clusters
        token = tl.load(parent + token, mask=is_underway, other=0)
        label = tl.load(rank + token, mask=is_underway, other=0) + tl.where(is_underway, 0, label)
        steps += 1
    label = tl.minimum(label, num_clusters - 1)
    tl.store(labels + image * num_tokens + places, label.to(tl.int64), mask=mask)


@_sized
def join_centers(rank, nearest, labels, num_clusters, num_tokens, BLOCK: tl.constexpr):
    """Labels of one scale: centres keep their own, all others have that of the nearest; (B, N), (B, N) -> (B, N)."""
    image, first = _locate(num_tokens, BLOCK)
    token = first + tl.arange(0, BLOCK)
    mask = token < num_tokens
    own = tl.load(rank + image * num_tokens + token, mask=mask, other=0)
    joined = tl.load(nearest + image * num_tokens + token, mask=mask, other=0)
    label = tl.where(own < num_clusters, own, joined)
    tl.store(labels + image * num_tokens + token, label.to(tl.int64), mask=mask)


@_sized
def merge_segments(
    tokens,
    weight,
    order,
    starts,
    merged,
    weight_sum,
    num_tokens,
    num_clusters,
    epsilon,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """
    Weighted means of clusters (Eq. 3): a program for a cluster and a block of channels.

    tokens (B, N, C), weight (B, N), order (B, N) of the tokens by cluster, starts (B, M + 1) of the clusters in it
    -> merged (B, M, C), weight_sum (B, M). Members are added by rising index.

    An image with a cluster outside [0, M) becomes NaN as a whole: a check on the host would wait for the device.
    """
    blocks = tl.cdiv(CHANNELS, BLOCK_C)
    program = tl.program_id(0)
    segment = (program // blocks).to(tl.int64)
    image = segment // num_clusters
    channel = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    bounds = starts + image * (num_clusters + 1) + segment % num_clusters
    first, last = tl.load(bounds), tl.load(bounds + 1)
    tokens += image * num_tokens * CHANNELS
    total = tl.zeros((BLOCK_C,), DTYPE)
    weights = tl.zeros((ROWS,), DTYPE)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        token = tl.load(order + image * num_tokens + place, mask=place < last, other=0)
        share = tl.load(weight + image * num_tokens + token, mask=place < last, other=0.0).to(DTYPE)
        tile = _load_tile(tokens, token, place < last, channel, CHANNELS).to(DTYPE)
        total += tl.sum(share[:, None] * tile, axis=0)
        weights += share
    weights_total = tl.sum(weights, axis=0)
    image_starts = starts + image * (num_clusters + 1)
    is_valid = (tl.load(image_starts) == 0) & (tl.load(image_starts + num_clusters) == num_tokens)
    weights_total = tl.where(is_valid, weights_total, float("nan"))
    tl.store(merged + segment * CHANNELS + channel, total / (weights_total + epsilon), mask=channel < CHANNELS)
    if program % blocks == 0:
        tl.store(weight_sum + segment, weights_total)


@_sized
def split_gradients(
    tokens,
    weight,
    cluster_index,
    merged,
    weight_sum,
    merged_gradient,
    tokens_gradient,
    weight_gradient,
    num_tokens,
    num_clusters,
    epsilon,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """
    Backward pass of `merge_segments`, token by token. With g the gradient of a token's cluster h, w its weight, W the
    sum of the cluster's: g w / (W + e) for the token x, and g (x - h) / (W + e) for its weight.
    """
    image, first = _locate(num_tokens, ROWS)
    rows = first + tl.arange(0, ROWS)
    mask = rows < num_tokens
    offset = image * num_tokens
    cluster = tl.load(cluster_index + offset + rows, mask=mask, other=0)
    # Such an image's gradients are NaN anyway, by its `weight_sum`; this only keeps the reads inside.
    cluster = tl.minimum(tl.maximum(cluster, 0), num_clusters - 1)
    share = tl.load(weight + offset + rows, mask=mask, other=0.0).to(DTYPE)
    total = tl.load(weight_sum + image * num_clusters + cluster, mask=mask, other=1.0) + epsilon
    merged += image * num_clusters * CHANNELS
    merged_gradient += image * num_clusters * CHANNELS
    along = tl.zeros((ROWS,), DTYPE)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        gradient = _load_tile(merged_gradient, cluster, mask, channel, CHANNELS).to(DTYPE)
        mean = _load_tile(merged, cluster, mask, channel, CHANNELS)
        tile = _load_tile(tokens + offset * CHANNELS, rows, mask, channel, CHANNELS).to(DTYPE)
        along += tl.sum(gradient * (tile - mean), axis=1)
        where = tokens_gradient + offset * CHANNELS + rows[:, None] * CHANNELS + channel[None, :]
        is_written = mask[:, None] & (channel < CHANNELS)[None, :]
        tl.store(where, gradient * (share / total)[:, None], mask=is_written)
    tl.store(weight_gradient + offset + rows, along / total, mask=mask)
