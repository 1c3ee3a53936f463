# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows on which settings and learning rates are chosen; they are scored on images that no other table reports."""

from dataclasses import replace

from ablations.rows import EQUAL_TIME, MODELS, Row


LEARNING_RATES = (0.006, 0.012, 0.024)
MIDDLE_RATE = LEARNING_RATES[1]
# Tried as well, since the best of these rates was the lowest or the highest.
MORE_RATES = {"clustr": (0.003,), "none": (0.048,), "swin": (0.048,), "swin-equal-time": (0.003,)}
# The networks whose learning rates are chosen. Other ClusTRs have the rate of single-scale clusters.
TUNED = {
    "clustr": MODELS["single-coarse"],
    **{name: MODELS[name] for name in ("sra", "none", "pvt-v2", "swin", *EQUAL_TIME)},
}


def choice(row: Row, rate: float, reference: str) -> Row:
    """A row at a learning rate, scored on the images for choices."""
    title, arguments = f"{row.title}, learning rate {rate}", {"learning_rate": rate}
    return replace(row, title=title, paper={}, arguments=arguments, is_choice=True, reference=reference)


def tried_rates(name: str) -> list[float]:
    """The learning rates that were tried for one of the `TUNED` networks."""
    return sorted((*LEARNING_RATES, *MORE_RATES.get(name, ())))


# One row for each network and learning rate, compared with the middle rate.
LEARNING_RATE_ROWS = {
    f"{name}-rate-{rate}": choice(row, rate, f"{name}-rate-{MIDDLE_RATE}")
    for name, row in TUNED.items()
    for rate in tried_rates(name)
}

# Rows in a setting that was tried besides that of the tables, which is among the rows of the learning rates: how much
# does the network lose without attention? Compared with the control at the middle rate.
SETTING = "tokens-128"
SETTING_ROWS = {
    f"{SETTING}-{name}-{rate}": choice(TUNED[name], rate, f"{SETTING}-none-{MIDDLE_RATE}")
    for name in ("none", "sra", "clustr")
    for rate in LEARNING_RATES
}
