# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows of the study of why clusters win or lose."""

from ablations.rows import COARSE, NO_ATTENTION, SRA, Row, at_chosen_rates, single_scale


def study_rows() -> dict[str, Row]:
    """Changes of single-scale clusters, which differ from grids in one thing at a time."""
    titles = {
        "grid-means": "grid cells in place of clusters, weighted means",
        "plain-means": "clusters, plain means",
        "weights-in-softmax": "clusters, their weights in the softmax",
        "position-in-tokens": "clusters, position embeddings in all tokens",
        "clusters-in-stage-1": "clusters in stage 1, grids in stages 2 to 4",
        "clusters-in-stage-4": "clusters in stage 4, grids in stages 1 to 3",
    }
    rows = {name: Row(title, single_scale(COARSE), variant=name) for name, title in titles.items()}
    rows |= {
        "position-in-keys": Row(
            "clusters, use_key_position_embeddings", {**single_scale(COARSE), "use_key_position_embeddings": True}
        ),
        "neighbors-15": Row("clusters, k = 15", {**single_scale(COARSE), "num_neighbors": 15}),
        "nearest-coarse": Row(
            "clusters of nearest centres", {**single_scale(COARSE), "cluster_assignment": "nearest_center"}
        ),
        "sra-with-position": Row("SRA, position embeddings in all tokens", SRA, variant="sra-with-position"),
        "none-with-position": Row(
            "no attention, position embeddings in all tokens", NO_ATTENTION, variant="none-with-position"
        ),
    }
    return at_chosen_rates(rows)
