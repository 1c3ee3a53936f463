# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows on which settings and learning rates are chosen; they are scored on images that no other table reports."""

from ablations.rows import COARSE, NO_ATTENTION, PVT_V2, SRA, SWIN, Row, single_scale


# The backbones whose learning rates are chosen, and the rates: the same trials for each.
BACKBONES = {
    "clustr": Row("ClusTR", single_scale(COARSE)),
    "sra": Row("SRA", SRA),
    "none": Row("no attention", NO_ATTENTION),
    "pvt-v2": Row("PVTv2", PVT_V2, baseline="pvt_v2"),
    "swin": Row("Swin", SWIN, baseline="swin"),
}
LEARNING_RATES = (0.006, 0.012, 0.024)
# Choices are made on half the schedule of the tables.
SHORT = {"num_train_epochs": 4}


def learning_rate_rows() -> dict[str, Row]:
    """One row for each backbone and learning rate, compared with the middle rate."""
    return {
        f"{name}-rate-{rate}": Row(
            f"{row.title}, learning rate {rate}",
            row.overrides,
            row.baseline,
            arguments={"learning_rate": rate, **SHORT},
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
    """ClusTR and the control in each of the settings, with two learning rates."""
    rows = {}
    for name, (title, overrides) in SETTINGS.items():
        for rate in LEARNING_RATES[1:]:
            settings = {"arguments": {"learning_rate": rate, **SHORT}, "is_choice": True}
            own, control = f"setting-{name}-{rate}", f"setting-{name}-{rate}-none"
            rows[own] = Row(f"{title}; ClusTR, learning rate {rate}", overrides, **settings)
            without = {**overrides, **NO_ATTENTION}
            rows[control] = Row(f"the same; no attention, learning rate {rate}", without, **settings, reference=own)
    return rows
