# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Keypoint conventions of data sets: names, sides, skeleton, parts, and sigmas of the object keypoint similarity.

Keypoints are numbered from 0 in the order of the annotations. "Left" is the person's left.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class KeypointConvention:
    """
    The K keypoints that a data set annotates.

    Args:
        names (`tuple[str, ...]` of length K): Names of the keypoints; those on one side begin with `left_` or `right_`.
        sigmas (`tuple[float, ...]` of length K): Spread of annotations, as a share of a person's size (the square root
            of the area). COCO's object keypoint similarity measures distances in units of twice the sigma.
        edges (`tuple[tuple[int, int], ...]`): Pairs of keypoints that a line of the skeleton connects.
        parts (`dict[str, range]`): Keypoints of each part that is evaluated separately.
        other_flip_pairs (`tuple[tuple[int, int], ...]`): Pairs that a horizontal flip swaps, besides those whose names
            begin with their sides.
        lower_body (`frozenset[int]`): Keypoints from the hips down, which half-body augmentation separates from the
            others.
    """

    names: tuple[str, ...]
    sigmas: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]
    parts: dict[str, range]
    other_flip_pairs: tuple[tuple[int, int], ...] = ()
    lower_body: frozenset[int] = field(default_factory=frozenset)

    @property
    def num_keypoints(self) -> int:
        return len(self.names)

    @property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of keypoints that a horizontal flip swaps, the left one first."""
        indices = {name: index for index, name in enumerate(self.names)}
        sides = [
            (index, indices["right_" + name.removeprefix("left_")])
            for name, index in indices.items()
            if name.startswith("left_")
        ]
        return (*sides, *self.other_flip_pairs)

    def config_fields(self) -> dict[str, Any]:
        """Fields of the configuration of a model for these keypoints: names, `flip_pairs`, `edges`."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "edges": [list(edge) for edge in self.edges],
        }


def _both_sides(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for name in names for side in ("left", "right"))


def _edges(names: Sequence[str], lines: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Edges along lines of names; a `*` stands for both sides."""
    indices, edges = {name: index for index, name in enumerate(names)}, {}
    for line in lines:
        for side in ("left", "right"):
            for edge in pairwise(indices[name.replace("*", side)] for name in line.split()):
                edges[edge] = None  # a dictionary, since lines without a side occur twice
    return tuple(edges)


_BODY_NAMES = (
    "nose",
    *_both_sides(("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")),
)
_BODY_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
_BODY_LINES = (
    "*_shoulder *_elbow *_wrist",
    "*_shoulder *_hip *_knee *_ankle",
    "left_shoulder right_shoulder",
    "left_hip right_hip",
    "nose *_eye *_ear *_shoulder",
    "left_eye right_eye",
)
_HIPS_TO_ANKLES = frozenset(range(11, 17))

# COCO's person keypoints (Lin et al. 2014).
COCO = KeypointConvention(
    names=_BODY_NAMES,
    sigmas=_BODY_SIGMAS,
    edges=_edges(_BODY_NAMES, _BODY_LINES),
    parts={"body": range(17)},
    lower_body=_HIPS_TO_ANKLES,
)

_FOOT_NAMES = tuple(f"{side}_{name}" for side in ("left", "right") for name in ("big_toe", "small_toe", "heel"))
_FACE_NAMES = tuple(f"face_{index}" for index in range(68))
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_HAND_NAMES = ("hand_root", *(f"{finger}{joint}" for finger in _FINGERS for joint in range(1, 5)))
_WHOLE_BODY_NAMES = (
    *_BODY_NAMES,
    *_FOOT_NAMES,
    *_FACE_NAMES,
    *(f"left_{name}" for name in _HAND_NAMES),
    *(f"right_{name}" for name in _HAND_NAMES),
)
_FOOT_SIGMAS = (0.068, 0.066, 0.066, 0.092, 0.094, 0.094)
_FACE_SIGMAS = (
    *(0.042, 0.043, 0.044, 0.043, 0.040, 0.035, 0.031, 0.025, 0.020),  # jaw
    *(0.023, 0.029, 0.032, 0.037, 0.038, 0.043, 0.041, 0.045),
    *(0.013, 0.012, 0.011, 0.011, 0.012, 0.012, 0.011, 0.011, 0.013, 0.015),  # brows
    *(0.009, 0.007, 0.007, 0.007, 0.012, 0.009, 0.008, 0.016, 0.010),  # nose
    *(0.017, 0.011, 0.009, 0.011, 0.009, 0.007, 0.013, 0.008, 0.011, 0.012, 0.010, 0.034),  # eyes
    *(0.008, 0.008, 0.009, 0.008, 0.008, 0.007, 0.010, 0.008, 0.009, 0.009, 0.009, 0.007),  # outer lips
    *(0.007, 0.008, 0.011, 0.008, 0.008, 0.008, 0.010, 0.008),  # inner lips
)
_HAND_SIGMAS = (
    0.029,
    *(0.022, 0.035, 0.037, 0.047),
    *(0.026, 0.025, 0.024, 0.035),
    *(0.018, 0.024, 0.022, 0.026),
    *(0.017, 0.021, 0.021, 0.032),
    *(0.020, 0.019, 0.022, 0.031),
)
# The 68 points of a face (300-W, Sagonas et al. 2013): open lines, and loops that return to their first point.
_FACE_LINES = (range(17), range(17, 22), range(22, 27), range(27, 31), range(31, 36))
_FACE_LOOPS = (range(36, 42), range(42, 48), range(48, 60), range(60, 68))
# Points that a horizontal flip swaps: runs, paired from their outer ends inwards (jaw, brows, nose), and pairs.
_FACE_MIRRORED_RUNS = ((0, 16), (17, 26), (31, 35))
_FACE_MIRRORED_PAIRS = (
    *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),  # eyes
    *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)),  # lips
)
_FACE_START = 23


def _face_flip_pairs() -> tuple[tuple[int, int], ...]:
    in_runs = [
        (first + step, last - step) for first, last in _FACE_MIRRORED_RUNS for step in range((last - first + 1) // 2)
    ]
    pairs = (*in_runs, *_FACE_MIRRORED_PAIRS)
    return tuple((_FACE_START + first, _FACE_START + second) for first, second in pairs)


def _face_edges() -> tuple[tuple[int, int], ...]:
    lines = [*_FACE_LINES, *([*loop, loop[0]] for loop in _FACE_LOOPS)]
    return tuple((_FACE_START + first, _FACE_START + second) for line in lines for first, second in pairwise(line))


# COCO-WholeBody (Jin et al. 2020): 17 keypoints of the body, 6 of the feet, 68 of the face, 21 of each hand.
COCO_WHOLEBODY = KeypointConvention(
    names=_WHOLE_BODY_NAMES,
    sigmas=(*_BODY_SIGMAS, *_FOOT_SIGMAS, *_FACE_SIGMAS, *_HAND_SIGMAS, *_HAND_SIGMAS),
    edges=(
        *COCO.edges,
        *_edges(
            _WHOLE_BODY_NAMES,
            (
                *(f"*_ankle *_{name}" for name in ("big_toe", "small_toe", "heel")),
                *(" ".join(["*_hand_root", *(f"*_{finger}{joint}" for joint in range(1, 5))]) for finger in _FINGERS),
            ),
        ),
        *_face_edges(),
    ),
    parts={
        "body": range(17),
        "foot": range(17, 23),
        "face": range(23, 91),
        "lefthand": range(91, 112),
        "righthand": range(112, 133),
    },
    other_flip_pairs=_face_flip_pairs(),
    lower_body=_HIPS_TO_ANKLES | frozenset(range(17, 23)),
)

CONVENTIONS = {"coco": COCO, "coco_wholebody": COCO_WHOLEBODY}

__all__ = ["COCO", "COCO_WHOLEBODY", "CONVENTIONS", "KeypointConvention"]
