# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows on which settings and learning rates are chosen; they are scored on images that no other table reports."""

from typing import Any

from ablations.rows import COARSE, MODELS, NO_ATTENTION, Row, single_scale
from clustr_hf.configuration_tables_clustr import NANO_VARIANT, PER_STAGE_FIELDS


# The backbones whose learning rates are chosen, and the rates: the same trials for each.
TUNED = {"clustr": MODELS["single-coarse"], **{name: MODELS[name] for name in ("sra", "none", "pvt-v2", "swin")}}
LEARNING_RATES = (0.006, 0.012, 0.024)


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
        for name, row in TUNED.items()
        for rate in LEARNING_RATES
    }


# Settings that were tried: how much does the network lose without attention? The overrides replace the recipe's.
NANO_32 = {name: NANO_VARIANT[name] for name in PER_STAGE_FIELDS}
NANO_128 = {
    **NANO_32,
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "reduction_ratios": [[64, 16], [16, 4], [4, 1], [1]],
}
FINE_MAPS = {
    "hidden_sizes": [32, 48, 64, 128],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "patch_sizes": [3, 1, 3, 3],
    "strides": [2, 1, 2, 2],
    "reduction_ratios": [[16, 4], [16, 4], [4, 1], [1]],
}
NARROW = {"mlp_ratios": [1, 1, 1, 1]}

# With the recipe ablation_attention.json, images of 128 pixels; and with ablation_cifar10.json, images of 32 pixels.
# The setting of the tables is among the rows of the learning rates.
SETTINGS = {
    "nano": ("nano: 32 x 32 to 4 x 4 tokens, MLP ratio 4", NANO_128),
    "nano-narrow": ("nano with MLP ratio 1", {**NANO_128, **NARROW}),
}
SETTINGS_32 = {
    "nano-32": ("nano: 16 x 16 to 2 x 2 tokens, MLP ratio 4", NANO_32),
    "fine-32": ("16 x 16, 16 x 16, 8 x 8, 4 x 4 tokens, MLP ratio 1", FINE_MAPS),
    "tokens-32": ("16 x 16 tokens in all stages, MLP ratio 1", single_scale(COARSE)),
}
SETTING_RATES, SETTING_RATES_32 = (0.006, 0.012), (0.008, 0.016)


def setting_rows(settings: dict[str, tuple[str, dict[str, Any]]], rates: tuple[float, ...]) -> dict[str, Row]:
    """ClusTR and the control in each of the settings, with each of the learning rates."""
    rows = {}
    for name, (title, overrides) in settings.items():
        for rate in rates:
            own, control = f"setting-{name}-{rate}", f"setting-{name}-{rate}-none"
            common = {"arguments": {"learning_rate": rate}, "is_choice": True, "reference": own}
            rows[own] = Row(f"{title}; ClusTR, learning rate {rate}", overrides, **common)
            without = {**overrides, **NO_ATTENTION}
            rows[control] = Row(f"the same; no attention, learning rate {rate}", without, **common)
    return rows
