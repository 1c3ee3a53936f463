# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The tables: rows of Tables 6 and 7 of the paper, baselines, ClusTR's options, a study of why, and choices.

Every table has a control, the same network without attention. Tables of choices are scored on images that no other
table reports.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """
    A model in a table.

    Args:
        title (`str`): Title of the row.
        overrides (`dict`): Fields of the configuration that differ from the recipe's.
        baseline (`str`, *optional*): Backbone to train instead of ClusTR.
        paper (`dict`): The paper's columns for ClusTR-T: `parameters` (M), `flops` (G), `top1`, `mean_iou` (%).
        arguments (`dict`): Arguments of the classification script that differ from the recipe's.
        variant (`str`, *optional*): Change of the attention, one of `variants.VARIANTS`.
        is_choice (`bool`): Whether the row is scored on the images for choices.
        reference (`str`, *optional*): The row that it is compared with. Default: the table's.
    """

    title: str
    overrides: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    paper: dict[str, float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    is_choice: bool = False
    reference: str | None = None


@dataclass(frozen=True)
class Table:
    """
    Rows that are compared with each other.

    Args:
        title (`str`): Title of the table.
        rows (`tuple[str, ...]`): Names of the rows.
        reference (`str`): The row that the others are compared with.
        has_segmentation (`bool`): Whether the rows are also compared by mean IoU in semantic segmentation.
        is_timed (`bool`): Whether the time per image is measured.
    """

    title: str
    rows: tuple[str, ...]
    reference: str
    has_segmentation: bool = False
    is_timed: bool = True


def single_scale(ratios: list[int]) -> dict[str, Any]:
    return {"reduction_ratios": [[ratio] for ratio in ratios]}


# Grids and clusters with the coarser number of keys, and with the finer number.
COARSE, FINE = [16, 16, 16, 16], [4, 4, 4, 4]

# Widths that give the baselines the parameters of ClusTR within 3 %. Swin has two blocks in each stage, since the second
# one shifts the windows, and its maps shrink from stage to stage.
PVT_V2 = {"hidden_sizes": [30, 30, 30, 30], **single_scale(COARSE)}
SWIN = {
    "hidden_sizes": [17, 34, 68],
    "depths": [2, 2, 2],
    "num_attention_heads": [1, 2, 4],
    "mlp_ratios": [1, 1, 1],
    "patch_sizes": [2, 2, 2],
    "strides": [2, 2, 2],
    "reduction_ratios": [[1], [1], [1]],
}
NO_ATTENTION = {"attention_type": "none"}
SRA = {"attention_type": "spatial_reduction", **single_scale(COARSE)}

# The backbones whose learning rates are chosen, and the rates: the same trials for each.
BACKBONES = {
    "clustr": Row("ClusTR", single_scale(COARSE)),
    "sra": Row("SRA", SRA),
    "none": Row("no attention", NO_ATTENTION),
    "pvt-v2": Row("PVTv2", PVT_V2, baseline="pvt_v2"),
    "swin": Row("Swin", SWIN, baseline="swin"),
}
LEARNING_RATES = (0.004, 0.008, 0.016)


def learning_rate_rows() -> dict[str, Row]:
    """One row for each backbone and learning rate, compared with the middle rate."""
    return {
        f"{name}-rate-{rate}": Row(
            f"{row.title}, learning rate {rate}",
            row.overrides,
            row.baseline,
            arguments={"learning_rate": rate},
            is_choice=True,
            reference=f"{name}-rate-{LEARNING_RATES[1]}",
        )
        for name, row in BACKBONES.items()
        for rate in LEARNING_RATES
    }


# Settings that were tried: how much does the network lose without attention? The overrides replace the recipe's.
NANO = {
    "hidden_sizes": [32, 64, 128, 160],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 4, 5],
    "mlp_ratios": [4, 4, 4, 4],
    "patch_sizes": [3, 3, 3, 3],
    "strides": [2, 2, 2, 2],
    "reduction_ratios": [[16, 4], [4, 1], [1], [1]],
}
FINE_MAPS = {
    "hidden_sizes": [32, 48, 64, 128],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "patch_sizes": [3, 1, 3, 3],
    "strides": [2, 1, 2, 2],
    "reduction_ratios": [[16, 4], [16, 4], [4, 1], [1]],
}
SETTINGS = {
    "nano": ("nano: maps of 16, 8, 4, 2 tokens, feed-forward ratio 4", NANO),
    "narrow": ("nano with feed-forward ratio 1", {**NANO, "mlp_ratios": [1, 1, 1, 1]}),
    "fine": ("maps of 16, 16, 8, 4 tokens, feed-forward ratio 1", FINE_MAPS),
    "chosen": ("chosen: maps of 16 tokens in all stages, feed-forward ratio 1", {}),
}


def setting_rows() -> dict[str, Row]:
    """ClusTR and the control in each of the settings."""
    rows = {}
    for name, (title, overrides) in SETTINGS.items():
        rows[f"setting-{name}"] = Row(f"{title}: ClusTR", overrides, is_choice=True)
        rows[f"setting-{name}-none"] = Row(
            f"{title}: no attention", {**overrides, **NO_ATTENTION}, is_choice=True, reference=f"setting-{name}"
        )
    return rows


def study_rows() -> dict[str, Row]:
    """Changes of single-scale clusters, which differ from grids in one thing at a time."""
    titles = {
        "grid-means": "grid cells in place of clusters, weighted means",
        "random-clusters": "random clusters, the same for all images",
        "plain-means": "clusters, plain means",
        "position-in-distance": "clusters of tokens with coordinates",
        "position-in-keys": "clusters, mean position features in the keys and values",
        "weights-in-softmax": "clusters, their weights in the softmax",
        "position-in-tokens": "clusters, position features in the tokens",
        "position-and-weights": "clusters, mean position features in the keys and values, weights in the softmax",
        "clusters-in-stage-1": "clusters in stage 1, grids in stages 2 to 4",
        "clusters-in-stage-4": "clusters in stage 4, grids in stages 1 to 3",
    }
    rows = {name: Row(title, single_scale(COARSE), variant=name) for name, title in titles.items()}
    return {
        **rows,
        "neighbors-3": Row("clusters, k = 3", {**single_scale(COARSE), "num_neighbors": 3}),
        "neighbors-15": Row("clusters, k = 15", {**single_scale(COARSE), "num_neighbors": 15}),
        "nearest-coarse": Row(
            "clusters of nearest centres", {**single_scale(COARSE), "cluster_assignment": "nearest_center"}
        ),
        "multi-scale-changed": Row("two scales of clusters, position and weights", variant="position-and-weights"),
        "sra-with-position": Row("SRA, position features in the tokens", SRA, variant="sra-with-position"),
        "none-with-position": Row(
            "no attention, position features in the tokens", NO_ATTENTION, variant="none-with-position"
        ),
    }


ROWS = {
    **learning_rate_rows(),
    **setting_rows(),
    **study_rows(),
    "none": Row("no attention", NO_ATTENTION),
    "none-equal-parameters": Row(
        "no attention, wider feed-forward networks", {**NO_ATTENTION, "mlp_ratios": [3.75, 3.75, 3.75, 3.75]}
    ),
    "sra": Row("SRA: grid", SRA, paper={"parameters": 13.2, "flops": 2.1, "top1": 76.7}),
    # Half of the 16 keys. With the 100 keys of the method's authors, the row would equal SRA, here and in the paper's
    # setting, where 224 pixels give 49 keys.
    "sra-knn": Row(
        "SRA + k-NN attention, top 8 keys: grid",
        {**SRA, "attention_type": "spatial_reduction_knn", "attention_top_k": 8},
        paper={"parameters": 13.2, "flops": 2.1, "top1": 76.8},
    ),
    "single-coarse": Row(
        "ClusTR, single-scale 16",
        single_scale(COARSE),
        paper={"parameters": 10.8, "flops": 2.0, "top1": 77.2, "mean_iou": 41.2},
    ),
    "single-fine": Row(
        "ClusTR, single-scale 4",
        single_scale(FINE),
        paper={"parameters": 10.8, "flops": 2.1, "top1": 77.4, "mean_iou": 41.8},
    ),
    "clustr": Row(
        "ClusTR, multi-scale {16, 4}",
        paper={"parameters": 11.7, "flops": 2.2, "top1": 77.9, "mean_iou": 42.6},
    ),
    "pvt-v2": Row("PVTv2, equal parameters", PVT_V2, baseline="pvt_v2"),
    "swin": Row("Swin, equal parameters", SWIN, baseline="swin"),
    "nearest": Row("cluster_assignment nearest_center", {"cluster_assignment": "nearest_center"}),
    "window": Row("cluster_window 8 (of 16 x 16 tokens)", {"cluster_window": 8}),
    "capped": Row("max_clusters 32 (of 64)", {"max_clusters": 32}),
}

TABLES = {
    "settings": Table(
        "Settings", tuple(setting_rows()), "setting-chosen", is_timed=False
    ),
    "learning-rates": Table(
        "Learning rates", tuple(learning_rate_rows()), f"clustr-rate-{LEARNING_RATES[1]}", is_timed=False
    ),
    "6": Table("Table 6: sparse attentions", ("none", "sra", "sra-knn", "single-coarse"), "single-coarse"),
    "7": Table(
        "Table 7: single scale, multi-scale", ("none", "single-coarse", "single-fine", "clustr"), "clustr", True
    ),
    "baselines": Table(
        "Backbones",
        ("none", "none-equal-parameters", "pvt-v2", "swin", "clustr"),
        "clustr",
        True,
    ),
    "options": Table("The price of options", ("none", "nearest", "window", "capped", "clustr"), "clustr"),
    "study": Table("Why", ("none", "sra", *study_rows(), "single-coarse"), "single-coarse"),
}


def row_overrides(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """Fields of a row's configuration: the `config_overrides` of the recipe, updated by those of the row."""
    return {**recipe.get("config_overrides", {}), **ROWS[name].overrides}
