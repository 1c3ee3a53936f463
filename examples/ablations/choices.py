# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows on which settings and learning rates are chosen; they are scored on images that no other table reports."""

from typing import Any

from ablations.rows import EQUAL_TIME, MODELS, Row
from clustr_hf.configuration_tables_clustr import NANO_VARIANT, PER_STAGE_FIELDS


LEARNING_RATES = (0.006, 0.012, 0.024)
MIDDLE_RATE = LEARNING_RATES[1]
# Tried as well, since the best of these rates was the lowest or the highest.
MORE_RATES = {"clustr": (0.003,), "none": (0.048,), "swin": (0.048,)}
# The networks whose learning rates are chosen. Other ClusTRs have the rate of single-scale clusters.
TUNED = {
    "clustr": MODELS["single-coarse"],
    **{name: MODELS[name] for name in ("sra", "none", "pvt-v2", "swin", *EQUAL_TIME)},
}


def choice(title: str, overrides: dict[str, Any], baseline: str | None, rate: float, reference: str) -> Row:
    title = f"{title}, learning rate {rate}"
    return Row(title, overrides, baseline, arguments={"learning_rate": rate}, is_choice=True, reference=reference)


def tried_rates(name: str) -> list[float]:
    """The learning rates that were tried for one of the `TUNED` networks."""
    return sorted((*LEARNING_RATES, *MORE_RATES.get(name, ())))


def learning_rate_rows() -> dict[str, Row]:
    """One row for each backbone and learning rate, compared with the middle rate."""
    return {
        f"{name}-rate-{rate}": choice(row.title, row.overrides, row.baseline, rate, f"{name}-rate-{MIDDLE_RATE}")
        for name, row in TUNED.items()
        for rate in tried_rates(name)
    }


# Settings that were tried: how much does the network lose without attention? The overrides replace the recipe's. The
# setting of the tables is among the rows of the learning rates.
NANO = {name: NANO_VARIANT[name] for name in PER_STAGE_FIELDS}
FINE_MAPS = {
    "hidden_sizes": [32, 48, 64, 128],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "patch_sizes": [3, 1, 3, 3],
    "strides": [2, 1, 2, 2],
    "reduction_ratios": [[16, 4], [16, 4], [4, 1], [1]],
}
SETTINGS = {
    "nano": ("nano: 16 x 16 to 2 x 2 tokens, MLP ratio 4", NANO),
    "fine": ("16 x 16, 16 x 16, 8 x 8, 4 x 4 tokens, MLP ratio 1", FINE_MAPS),
}
SETTINGS_128 = {"tokens-128": ("16 x 16 tokens in all stages, MLP ratio 1", {})}


def setting_rows(settings: dict[str, tuple[str, dict[str, Any]]], attentions: dict[str, Row]) -> dict[str, Row]:
    """Each attention in each setting with each learning rate, compared with the control at the middle rate."""
    return {
        f"{setting}-{name}-{rate}": choice(
            f"{where}; {row.title}", {**overrides, **row.overrides}, None, rate, f"{setting}-none-{MIDDLE_RATE}"
        )
        for setting, (where, overrides) in settings.items()
        for name, row in attentions.items()
        for rate in LEARNING_RATES
    }
