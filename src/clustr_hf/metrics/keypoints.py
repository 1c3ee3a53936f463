# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Average precision of keypoints as COCO and COCO-WholeBody define it. K keypoints, n persons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..keypoints import CONVENTIONS, KeypointConvention
from .coco_evaluator import check_lengths, mean_of_valid, run_evaluator


# Name of the part that has all keypoints, and the names of all parts of any convention.
WHOLE_BODY = "wholebody"
PART_NAMES = tuple(dict.fromkeys([*(part for each in CONVENTIONS.values() for part in each.parts), WHOLE_BODY]))
# COCO's category of persons, and the number of persons of an image that are evaluated.
PERSON, MAX_PERSONS = 1, 20
# Name of a score of a part -> precision or recall, index of the threshold, index of the range of areas.
KEYPOINT_SCORES = {
    "ap": ("precision", slice(None), 0),
    "ap50": ("precision", 0, 0),
    "ap75": ("precision", 5, 0),
    "ap_medium": ("precision", slice(None), 1),
    "ap_large": ("precision", slice(None), 2),
    "ar": ("recall", slice(None), 0),
    "ar50": ("recall", 0, 0),
    "ar75": ("recall", 5, 0),
}


def keypoint_average_precision(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], convention: KeypointConvention
) -> dict[str, float]:
    """
    Average precision and recall of keypoints by the object keypoint similarity (OKS), for each part of the body and for
    the whole body, as computed by COCO-WholeBody's evaluator (Jin et al. 2020) and, for 17 keypoints, by COCO's.

    The scores of a part use its keypoints only, and rank the predictions by the score of the part. Matches to crowds,
    and to persons without an annotated keypoint in the part, do not affect the scores; a prediction whose keypoints of
    the part all have score 0 is left out.

    Args:
        predictions (`Sequence[Mapping]`): Persons of each image: `keypoints` `(n, K, 3)`, (x, y, score) in pixels, and
            `scores` `(n,)`. *Optionally* the scores of a part, `{part}_scores` `(n,)`, for the parts of the convention
            and for `wholebody` (or `{part}_score`, as in COCO-WholeBody's result files); a person without one, or with
            NaN, is ranked by `scores`. The 20 best persons of an image are evaluated.
        references (`Sequence[Mapping]`): Persons of each image: `keypoints` `(m, K, 3)`, (x, y, visibility), annotated
            where the visibility is positive; `boxes` `(m, 4)`, corners in pixels; `area` `(m,)` of the segmentation in
            square pixels; *optionally* `iscrowd` `(m,)`, 1 for crowds.
        convention ([`KeypointConvention`]): The K keypoints.

    Returns:
        `dict[str, float]`: for each part and, if there are several, for `wholebody`: `{part}_ap`, averaged over
        similarities from 0.5 to 0.95, `{part}_ap50`, `{part}_ap75`, `{part}_ap_medium` (area 32^2 to 96^2),
        `{part}_ap_large`, and `{part}_ar` (recall with the same average), `{part}_ar50`, `{part}_ar75`. Values are in
        [0, 1], or NaN where no person has the part. `hand_ap` etc. are the means of left and right hand.

    Raises:
        ValueError: for another number of keypoints or scores, predictions and references of different lengths, or
            scores of a part that is not in the convention.
    """
    check_lengths(predictions, references)
    predicted, annotated = (
        [_persons(record, name, index, convention) for index, record in enumerate(records)]
        for name, records in (("predictions", predictions), ("references", references))
    )
    parts = {name: list(part) for name, part in convention.parts.items()}
    if len(parts) > 1:
        parts[WHOLE_BODY] = list(range(convention.num_keypoints))
    results = {
        f"{name}_{key}": value
        for name, part in parts.items()
        for key, value in _evaluate_part(predicted, annotated, name, part, convention.sigmas).items()
    }
    if "lefthand" in parts:
        for key in KEYPOINT_SCORES:
            results[f"hand_{key}"] = (results[f"lefthand_{key}"] + results[f"righthand_{key}"]) / 2
    return results


def given_part_scores(record: Mapping[str, Any], name: str) -> dict[str, Sequence[float]]:
    """The part scores of an image's predictions, by the name of the part; parts without scores are left out."""
    given = {}
    for part in PART_NAMES:
        spellings = [key for key in (f"{part}_scores", f"{part}_score") if len(record.get(key, ())) > 0]
        if len(spellings) > 1:
            raise ValueError(f"{name} must have one of {spellings}, got both.")
        if spellings:
            given[part] = record[spellings[0]]
    return given


def _persons(record: Mapping[str, Any], kind: str, index: int, convention: KeypointConvention) -> list[dict[str, Any]]:
    """The persons of an image of predictions or references as COCO annotations without ids; keypoints (K, 3)."""
    name = f"`{kind}[{index}]`"
    keypoints, columns = _checked_columns(record, kind, name, convention)
    part_scores = _part_scores(record, name, convention, len(keypoints)) if kind == "predictions" else {}
    persons = []
    for position, points in enumerate(keypoints):
        values = {key: record[key][position] for key in columns}
        person = {"keypoints": points, "category_id": PERSON, "iscrowd": int(values.get("iscrowd", 0))}
        if kind == "references":
            x0, y0, x1, y1 = map(float, values["boxes"])
            person |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(values["area"])}
        else:  # COCO derives the box of a prediction from the keypoints of the body
            body = points[list(convention.parts["body"]), :2]
            (x0, y0), (width, height) = body.min(axis=0).tolist(), np.ptp(body, axis=0).tolist()
            person |= {"bbox": [x0, y0, width, height], "area": width * height, "score": float(values["scores"])}
            person["part_scores"] = {part: scores[position] for part, scores in part_scores.items()}
        persons.append(person)
    return persons


def _checked_columns(
    record: Mapping[str, Any], kind: str, name: str, convention: KeypointConvention
) -> tuple[np.ndarray, list[str]]:
    """Keypoints (n, K, 3) of an image, and the names of its other columns, all of length n."""
    columns = {"predictions": ["scores"], "references": ["boxes", "area"]}[kind]
    if any(key not in record for key in ("keypoints", *columns)):
        raise ValueError(f"{name} must have {['keypoints', *columns]}, got {list(record)}.")
    number = len(record["keypoints"])
    keypoints = np.asarray(record["keypoints"], dtype=np.float64)
    if number and keypoints.shape != (number, convention.num_keypoints, 3):
        raise ValueError(
            f"'keypoints' of {name} must have shape (n, {convention.num_keypoints}, 3), got {keypoints.shape}."
        )
    if kind == "references" and len(record.get("iscrowd", ())) > 0:
        columns = [*columns, "iscrowd"]
    for key in columns:
        if len(record[key]) != number:
            raise ValueError(f"{name} must have {number} of {key!r}, as of 'keypoints', got {len(record[key])}.")
    return keypoints, columns


def _part_scores(
    record: Mapping[str, Any], name: str, convention: KeypointConvention, number: int
) -> dict[str, list[float]]:
    """The part scores of an image; a person's own score replaces missing ones. Parts without scores are left out."""
    parts = [*convention.parts, *([WHOLE_BODY] if len(convention.parts) > 1 else [])]
    result = {}
    for part, given in given_part_scores(record, name).items():
        if part not in parts:
            raise ValueError(f"{name} has scores of the part {part!r}, but the convention has only {parts}.")
        if len(given) != number:
            raise ValueError(f"{name} must have {number} of '{part}_scores', as of 'keypoints', got {len(given)}.")
        scores = np.asarray(given, dtype=np.float64)  # None becomes NaN
        result[part] = np.where(np.isnan(scores), record["scores"], scores).tolist()
    return result


def _evaluate_part(
    predicted: list[list[dict]], annotated: list[list[dict]], name: str, part: list[int], sigmas: Sequence[float]
) -> dict[str, float]:
    """[`KEYPOINT_SCORES`] of the part of this name, whose keypoints have the indices `part`."""
    truth = _part_annotations(annotated, name, part)
    found = [annotation for annotation in _part_annotations(predicted, name, part) if annotation["num_keypoints"] > 0]
    settings = (len(annotated), [PERSON], "keypoints", MAX_PERSONS)
    evaluator = run_evaluator(truth, found, *settings, kpt_oks_sigmas=np.asarray(sigmas)[part])
    # precision (thresholds, recalls, categories, areas, 1), recall (thresholds, categories, areas, 1)
    return {
        name: mean_of_valid(evaluator.eval[kind][threshold][..., areas, -1])
        for name, (kind, threshold, areas) in KEYPOINT_SCORES.items()
    }


def _part_annotations(persons: list[list[dict]], name: str, part: list[int]) -> list[dict[str, Any]]:
    """COCO annotations of the persons of images 1, 2, ..., with the keypoints of one part."""
    annotations = []
    for image_id, of_image in enumerate(persons, start=1):
        for person in of_image:
            points = person["keypoints"][part]
            number = int((points[:, 2] > 0).sum())
            fields = {"id": len(annotations) + 1, "image_id": image_id, "num_keypoints": number}
            if name in person.get("part_scores", ()):
                fields["score"] = person["part_scores"][name]
            annotations.append({**person, **fields, "keypoints": points.ravel().tolist()})
    return annotations
