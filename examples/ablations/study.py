# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows of the study of why clusters win or lose."""

from dataclasses import replace

from ablations.rows import MODELS


# Single-scale clusters, changed in one thing in which they differ from grids.
STUDY_ROWS = {
    "grid-means": replace(
        MODELS["single-coarse"],
        title="grid cells in place of clusters, weighted means",
        paper={},
        variant="grid-means",
    )
}

# Grids, clusters and the control, in networks whose tokens know their position.
POSITIONS = {"use_absolute_position_embeddings": True}
POSITION_ROWS = {
    f"{name}-position": replace(MODELS[name], overrides={**MODELS[name].overrides, **POSITIONS}, paper={})
    for name in ("none", "sra", "single-coarse", "clustr")
}
