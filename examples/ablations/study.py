# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows of the study of why clusters win or lose."""

from dataclasses import replace

from ablations.rows import COARSE, MODELS, Row, at_chosen_rates, single_scale


POSITIONS = {"use_absolute_position_embeddings": True}


def study_rows() -> dict[str, Row]:
    """Changes of single-scale clusters, in one thing in which they differ from grids."""
    title = "grid cells in place of clusters, weighted means"
    return at_chosen_rates({"grid-means": Row(title, single_scale(COARSE), variant="grid-means")})


def position_rows() -> dict[str, Row]:
    """Grids, clusters and the control, in networks whose tokens know their position."""
    rows = {name: MODELS[name] for name in ("none", "sra", "single-coarse", "clustr")}
    return {
        f"{name}-position": replace(row, overrides={**row.overrides, **POSITIONS}, paper={})
        for name, row in rows.items()
    }
