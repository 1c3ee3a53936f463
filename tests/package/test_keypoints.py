"""The keypoint conventions agree with COCO's own files and are consistent in themselves."""

import json

import numpy as np
import pytest

from clustr_hf.keypoints import COCO, COCO_WHOLEBODY, CONVENTIONS
from clustr_hf.remote_code.modeling_clustr_pose import mirror_order


def test_parts_of_the_whole_body():
    parts = {name: len(part) for name, part in COCO_WHOLEBODY.parts.items()}
    assert parts == {"body": 17, "foot": 6, "face": 68, "lefthand": 21, "righthand": 21}
    assert [index for part in COCO_WHOLEBODY.parts.values() for index in part] == list(range(133))
    assert COCO_WHOLEBODY.names[:17] == COCO.names and COCO_WHOLEBODY.sigmas[:17] == COCO.sigmas
    for name, side in (("lefthand", "left"), ("righthand", "right")):
        assert {COCO_WHOLEBODY.names[i].split("_")[0] for i in COCO_WHOLEBODY.parts[name]} == {side}


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)
def test_every_keypoint_has_a_name_a_sigma_and_a_place_in_the_mirror(convention):
    number = convention.num_keypoints
    assert len(set(convention.names)) == len(convention.sigmas) == number and min(convention.sigmas) > 0
    paired = [index for pair in convention.flip_pairs for index in pair]
    assert len(set(paired)) == len(paired) and set(paired) <= set(range(number))
    for first, second in convention.flip_pairs:
        sides = [convention.names[index].split("_")[0] for index in (first, second)]
        assert sides == ["left", "right"] or sides == ["face", "face"]
    lonely = {convention.names[index] for index in set(range(number)) - set(paired)}
    middle = {f"face_{index}" for index in (8, 27, 28, 29, 30, 33, 51, 57, 62, 66)}
    assert lonely == ({"nose"} if convention is COCO else {"nose", *middle})
    mirror = dict(convention.flip_pairs) | {second: first for first, second in convention.flip_pairs}
    edges = {frozenset(edge) for edge in convention.edges}
    assert len(edges) == len(convention.edges)
    assert {frozenset(mirror.get(index, index) for index in edge) for edge in edges} == edges
    lower = {convention.names[index].partition("_")[2] for index in convention.lower_body}
    assert lower == {"hip", "knee", "ankle"} | (set() if convention is COCO else {"big_toe", "small_toe", "heel"})


# Sigmas of COCO-WholeBody's evaluator in thousandths, ten in a row.
SIGMAS = """
26 25 25 35 35 79 79 72 72 62
62 107 107 87 87 89 89 68 66 66
92 94 94 42 43 44 43 40 35 31
25 20 23 29 32 37 38 43 41 45
13 12 11 11 12 12 11 11 13 15
9 7 7 7 12 9 8 16 10 17
11 9 11 9 7 13 8 11 12 10
34 8 8 9 8 8 7 10 8 9
9 9 7 7 8 11 8 8 8 10
8 29 22 35 37 47 26 25 24 35
18 24 22 26 17 21 21 32 20 19
22 31 29 22 35 37 47 26 25 24
35 18 24 22 26 17 21 21 32 20
19 22 31
"""
# Index of the mirrored point for each point of a face, as in mmpose.
FACE_IN_A_MIRROR = [
    *(16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
    *(26, 25, 24, 23, 22, 21, 20, 19, 18, 17),
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60, 67, 66, 65),
]


def test_sigmas_and_mirror_are_those_of_the_evaluator():
    assert [round(1000 * sigma) for sigma in COCO_WHOLEBODY.sigmas] == list(map(int, SIGMAS.split()))
    order = mirror_order(COCO_WHOLEBODY.flip_pairs, 133)
    assert [index - 23 for index in order[23:91]] == FACE_IN_A_MIRROR


def test_fields_of_a_configuration():
    fields = COCO.config_fields()
    assert fields["id2label"][16] == "right_ankle" and fields["label2id"]["nose"] == 0
    assert [1, 2] in fields["flip_pairs"] and [5, 7] in fields["edges"]


def test_names_and_skeleton_are_those_of_cocos_files(shared):
    path = shared / "data" / "coco-mini" / "annotations" / "person_keypoints_val.json"
    [category] = json.loads(path.read_text())["categories"]
    assert category["keypoints"] == list(COCO.names)
    assert {frozenset(edge) for edge in COCO.edges} == {frozenset(i - 1 for i in edge) for edge in category["skeleton"]}


def test_mirrored_faces_look_like_themselves_only_if_points_change_places(shared):
    path = shared / "data" / "coco-wholebody-sample" / "test_coco_wholebody.json"
    persons = json.loads(path.read_text())["annotations"]
    faces = [np.array(p["face_kpts"]).reshape(-1, 3)[:, :2] for p in persons if p["face_valid"]]
    order = np.arange(133)
    for first, second in COCO_WHOLEBODY.flip_pairs:
        order[first], order[second] = second, first
    order = order[23:91] - 23
    assert len(faces) > 2
    for face in faces:
        face = face - face.mean(axis=0)
        distances = {}
        for name, mirrored in (("exchanged", face[order] * (-1, 1)), ("as they were", face * (-1, 1))):
            # The best rotation without reflection removes the tilt of the head (Procrustes).
            u, _, v = np.linalg.svd(mirrored.T @ face)
            rotation = u @ np.diag([1, np.linalg.det(u @ v)]) @ v
            distances[name] = np.linalg.norm(mirrored @ rotation - face, axis=1)
        assert distances["exchanged"].mean() < 0.5 * distances["as they were"].mean()
