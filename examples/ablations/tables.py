# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The tables of the ablations.

Every table has a control, the same network without attention. Tables of choices are scored on images that no other
table reports.
"""

from dataclasses import dataclass
from typing import Any

from ablations.choices import (
    LEARNING_RATES,
    SETTING_RATES,
    SETTING_RATES_32,
    SETTINGS,
    SETTINGS_32,
    learning_rate_rows,
    setting_rows,
)
from ablations.photographs import PHOTOGRAPHS
from ablations.rows import MODELS, Row
from ablations.study import study_rows


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
    """

    title: str
    rows: tuple[str, ...]
    reference: str
    has_segmentation: bool = False
    is_timed: bool = True
    image_size: int | None = None


SETTING_ROWS = setting_rows(SETTINGS, SETTING_RATES)
SETTING_ROWS_32 = setting_rows(SETTINGS_32, SETTING_RATES_32)
ROWS: dict[str, Row] = {
    **learning_rate_rows(),
    **SETTING_ROWS,
    **SETTING_ROWS_32,
    **study_rows(),
    **MODELS,
    **PHOTOGRAPHS,
}

CONTROL = "none"
EQUAL_TIME = ("pvt-v2-equal-time", "swin-equal-time")
BACKBONES = ("none", "none-equal-parameters", "pvt-v2", "swin", *EQUAL_TIME, "clustr")
OPTIONS = ("nearest-128", "window-128", "capped-128")
SHARING = ("deep-none-128", "deep-128", "deep-sharing-128", "deep-options-128")
SEGMENTERS = ("none-128", "pvt-v2-128", "swin-128", "single-coarse-128", "single-fine-128", "clustr-128")

SETTING_TABLES = {
    "settings": Table("Settings, 128 pixels", tuple(SETTING_ROWS), next(iter(SETTING_ROWS)), False, False, 128),
    "settings-32": Table("Settings, 32 pixels", tuple(SETTING_ROWS_32), next(iter(SETTING_ROWS_32)), False, False, 32),
}
TABLES = {
    **SETTING_TABLES,
    "learning-rates": Table(
        "Learning rates", tuple(learning_rate_rows()), f"clustr-rate-{LEARNING_RATES[1]}", is_timed=False
    ),
    "6": Table("Table 6: sparse attentions", ("none", "sra", "sra-knn", "single-coarse"), "single-coarse"),
    "7": Table("Table 7: single scale, multi-scale", ("none", "single-coarse", "single-fine", "clustr"), "clustr"),
    "baselines": Table("Backbones", BACKBONES, "clustr", image_size=128),
    "study": Table("Why", ("none", "sra", *study_rows(), "single-coarse"), "single-coarse"),
    "photographs": Table("Photographs", SEGMENTERS, "clustr-128", has_segmentation=True),
    "options": Table("The price of options", ("none-128", *OPTIONS, "clustr-128"), "clustr-128", image_size=128),
    "sharing": Table("The price of sharing clusters", SHARING, "deep-128", image_size=128),
}


def row_overrides(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """Fields of a row's configuration: the `config_overrides` of the recipe, updated by those of the row."""
    return {**recipe.get("config_overrides", {}), **ROWS[name].overrides}
