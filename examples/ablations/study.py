# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows of the study of why clusters win or lose."""

from dataclasses import replace

from ablations.rows import COARSE, MODELS, Row, at_chosen_rates, single_scale


POSITIONS = {"use_absolute_position_embeddings": True}


def study_rows() -> dict[str, Row]:
    """Changes of single-scale clusters, which differ from grids in one thing at a time."""
    titles = {
        "grid-means": "grid cells in place of clusters, weighted means",
        "plain-means": "clusters, plain means",
        "weights-in-softmax": "clusters, their weights in the softmax",
        "position-in-keys": "clusters, position embeddings in their keys and values",
        "clusters-in-stage-1": "clusters in stage 1, grids in stages 2 to 4",
        "clusters-in-stage-4": "clusters in stage 4, grids in stages 1 to 3",
    }
    rows = {name: Row(title, single_scale(COARSE), variant=name) for name, title in titles.items()}
    rows |= {
        "neighbors-15": Row("clusters, k = 15", {**single_scale(COARSE), "num_neighbors": 15}),
        "nearest-coarse": Row(
            "clusters of nearest centres", {**single_scale(COARSE), "cluster_assignment": "nearest_center"}
        ),
    }
    return at_chosen_rates(rows)


def position_rows() -> dict[str, Row]:
    """Grids, clusters and the control, in networks whose tokens know their position."""
    rows = {name: MODELS[name] for name in ("none", "sra", "single-coarse", "clustr")}
    return {
        f"{name}-position": replace(row, overrides={**row.overrides, **POSITIONS}, paper={})
        for name, row in rows.items()
    }
