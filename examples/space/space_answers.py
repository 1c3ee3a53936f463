# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Tables of a model's predictions."""

import html
from typing import Any

import numpy as np

from clustr_hf.visualization import (
    class_colors,
)


SWATCH = '<div style="width: 1.2em; height: 1.2em; background: rgb({}, {}, {})"></div>'


def describe(answers: list[dict], names: list[str]) -> str:
    """
    A table (HTML) with a row for each class, best score first: colour, number of objects and range of their scores.

    Semantic segments have a share of the image instead of scores. Instances and persons are not drawn in the colour of
    their class, so it is left out.
    """
    if not answers:
        return "Nothing was found."
    groups: dict[str, list[dict]] = {}
    for answer in answers:
        groups.setdefault(answer.get("label", "person"), []).append(answer)
    has_scores = answers[0].get("score") is not None
    values = {
        label: [answer["score"] if has_scores else _share_of(answer["mask"]) for answer in group]
        for label, group in groups.items()
    }
    has_colors = "keypoints" not in answers[0] and not (has_scores and "mask" in answers[0])
    rows = [
        _row(label, values[label], has_scores, names if has_colors else [])
        for label in sorted(values, key=lambda label: -max(values[label]))
    ]
    columns = ("", "Class", "Number", "Score") if has_scores else ("", "Class", "Share of the image")
    head = "".join(f"<th>{name}</th>" for name in columns)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _share_of(mask: Any) -> float:
    return np.asarray(mask).astype(bool).mean().item()


def _row(label: str, values: list[float], has_scores: bool, names: list[str]) -> str:
    swatch = SWATCH.format(*class_colors(len(names))[names.index(label)]) if label in names else ""
    if has_scores:
        lowest, highest = f"{min(values):.2f}", f"{max(values):.2f}"
        cells = [str(len(values)), highest if lowest == highest else f"{lowest} to {highest}"]
    else:
        cells = [f"{100 * sum(values):.1f} %"]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in (swatch, html.escape(label), *cells)) + "</tr>"
