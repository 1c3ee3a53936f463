# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The tables of the ablations.

Every table has a control, the same network without attention. Tables of choices are scored on images that no other
table reports.
"""

from dataclasses import dataclass, replace
from typing import Any

from ablations.choices import LEARNING_RATE_ROWS, MIDDLE_RATE, SETTING, SETTING_ROWS
from ablations.photographs import PHOTOGRAPHS
from ablations.rows import EQUAL_TIME, MODELS, Row
from ablations.study import POSITION_ROWS, STUDY_ROWS


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
        image_size (`int`, *optional*): Image size in pixels that the rows are designed for; default: any.
        recipe (`str`): Name of the recipe of the classification runs, in the folder `recipes`.
    """

    title: str
    rows: tuple[str, ...]
    reference: str
    has_segmentation: bool = False
    is_timed: bool = True
    image_size: int | None = None
    recipe: str = "ablation_cifar10"


ROWS: dict[str, Row] = {
    **LEARNING_RATE_ROWS,
    **SETTING_ROWS,
    **STUDY_ROWS,
    **POSITION_ROWS,
    **MODELS,
    **PHOTOGRAPHS,
}

CONTROL = "none"
BACKBONES = ("none", "pvt-v2", "swin", *EQUAL_TIME, "clustr")
OPTIONS = ("nearest-128", "window-128", "capped-128")
SHARING = ("deep-none-128", "deep-128", "deep-sharing-128", "deep-options-128")
SEGMENTERS = ("none-128", "pvt-v2-128", "swin-128", "single-coarse-128", "single-fine-128", "clustr-128")

CHOICES = {
    "settings": Table(
        "Settings, Imagenette",
        tuple(SETTING_ROWS),
        f"{SETTING}-none-{MIDDLE_RATE}",
        image_size=128,
        recipe="ablation_imagenette_tokens",
    ),
    "learning-rates": Table("Learning rates", tuple(LEARNING_RATE_ROWS), f"clustr-rate-{MIDDLE_RATE}"),
}
ON_PHOTOGRAPHS = {
    "photographs": Table("Photographs", SEGMENTERS, "clustr-128", has_segmentation=True),
    "options": Table("The price of options", ("none-128", *OPTIONS, "clustr-128"), "clustr-128", image_size=128),
    "sharing": Table("The price of sharing clusters", SHARING, "deep-128", image_size=128),
}
TABLES = {
    **{name: replace(table, is_timed=False) for name, table in CHOICES.items()},
    "6": Table("Table 6: sparse attentions", ("none", "sra", "sra-knn", "single-coarse"), "single-coarse"),
    "7": Table("Table 7: single scale, multi-scale", ("none", "single-coarse", "single-fine", "clustr"), "clustr"),
    "baselines": Table("Backbones", BACKBONES, "clustr", image_size=32),
    "study": Table("Why", ("none", "sra", *STUDY_ROWS, "single-coarse"), "single-coarse"),
    "positions": Table("With position embeddings", tuple(POSITION_ROWS), "single-coarse-position"),
    **{name: replace(table, recipe="ablation_imagenette") for name, table in ON_PHOTOGRAPHS.items()},
}


def row_overrides(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """Fields of a row's configuration: the `config_overrides` of the recipe, updated by those of the row."""
    return {**recipe.get("config_overrides", {}), **ROWS[name].overrides}
