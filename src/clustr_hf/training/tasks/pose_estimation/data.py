# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Data, model and image processor of the pose estimation script."""

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Image
from transformers import AutoModelForPoseEstimation

from .... import ClusTRForPoseEstimation, ClusTRPoseImageProcessor
from ....keypoints import COCO, CONVENTIONS, KeypointConvention
from ....remote_code.annotations_clustr import clean_annotation
from ....remote_code.image_reading_clustr import MAX_COORDINATE
from ...data.class_names import KnownNames, shorten
from ...data.coco_files import ANNOTATIONS, IMAGE, IMAGE_ID, CocoFile, make_rows
from ...sources import (
    ModelArguments,
    by_split,
    check_pattern,
    choose_samples,
    known_names,
    load_model,
    name_labels,
)


# Where COCO-WholeBody's annotations have the keypoints of each part, in the order of the convention.
KEYPOINT_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
PERSON_KEYS = ("bbox", "area", "iscrowd", *KEYPOINT_KEYS)
# Column of the rows: the id of the category of persons in the annotation file.
PERSON_ID = "person_id"
# What the names of classes with a head for the task have in them.
HEADS = ("ForPoseEstimation",)


@dataclass
class DataArguments:
    """Which persons to train and evaluate on: folders of images with annotations of COCO or COCO-WholeBody."""

    train_dir: str | None = field(default=None, metadata={"help": "Folder with the training images."})
    train_annotation_file: str | None = field(
        default=None, metadata={"help": "Annotations (JSON) of the images in --train_dir."}
    )
    validation_dir: str | None = field(default=None, metadata={"help": "Folder with the images to evaluate on."})
    validation_annotation_file: str | None = field(default=None, metadata={"help": "The same for --validation_dir."})
    validation_boxes_file: str | None = field(
        default=None,
        metadata={"help": "Boxes of a person detector (COCO's results, JSON); default: those of the annotations."},
    )
    keypoints: str = field(
        default="coco_wholebody", metadata={"help": f"What is annotated, one of {tuple(CONVENTIONS)}."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled validation images."})
    exclude_train_names: str | None = field(
        default=None,
        metadata={"help": "Leave out training images whose file name matches this regular expression."},
    )

    # For `choose_samples`; no annotation, hence no argument.
    image_column_name = IMAGE

    def __post_init__(self):
        check_pattern(self.exclude_train_names)
        if self.keypoints not in CONVENTIONS:
            raise ValueError(f"--keypoints must be one of {tuple(CONVENTIONS)}, got {self.keypoints!r}")

    def check_training(self):
        """Raise a `ValueError` unless there is something to train on, and something to evaluate on."""
        self._check_given("train")
        self._check_given("validation")

    def leave_training_out(self):
        """Forget what to train on; raise a `ValueError` if there is nothing to evaluate on."""
        self._check_given("validation")
        self.train_dir = self.train_annotation_file = self.exclude_train_names = self.max_train_samples = None

    def _check_given(self, split: str):
        missing = [name for name in (f"{split}_dir", f"{split}_annotation_file") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{' and '.join(f'--{name}' for name in missing)} must be given, got none")

    @property
    def convention(self) -> KeypointConvention:
        return CONVENTIONS[self.keypoints]


@dataclass
class Persons:
    """
    The persons of an image.

    Args:
        keypoints (`np.ndarray` of shape `(n, K, 3)`): (x, y, visibility) in pixels, annotated where that is positive.
        boxes (`np.ndarray` of shape `(n, 4)`): (x, y, width, height) in pixels.
        area (`np.ndarray` of shape `(n,)`): In square pixels.
        iscrowd (`np.ndarray` of shape `(n,)`): 1 for crowds.
    """

    keypoints: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray

    @property
    def can_be_cropped(self) -> np.ndarray:
        """Which are persons with an annotated keypoint and a box: those to train on."""
        is_annotated = (self.keypoints[..., 2] > 0).any(axis=1)
        return is_annotated & (self.iscrowd == 0) & (self.boxes[:, 2:] > 0).all(axis=1)


def load_data(args: DataArguments, seed: int) -> DatasetDict:
    """
    Training images, if there are any, and validation images with the annotations of their persons, whose keypoints are
    in the convention's order.

    Raises:
        ValueError: if a file cannot be read, an image is missing, or it is not clear which category is that of persons,
            or which keypoints it has.
    """
    folders = by_split(args.train_dir, args.validation_dir)
    files = by_split(args.train_annotation_file, args.validation_annotation_file)
    data = {split: read_persons(folders[split], files[split], args.convention) for split in folders}
    data = choose_samples(DatasetDict(data), args, seed)
    return data.cast_column(IMAGE, Image(decode=False))


def read_persons(folder: str, annotation_file: str, convention: KeypointConvention) -> Dataset:
    """
    Rows of the images of a folder with the annotations of their persons; objects of other categories are left out.

    Args:
        folder (`str`): Where the images lie.
        annotation_file (`str`): COCO's JSON. Where its category of persons names the keypoints, these are brought into
            the convention's order.
        convention ([`KeypointConvention`]): What is annotated.
    """
    file = CocoFile.read(annotation_file)
    person_id = find_persons(file)
    order = find_keypoints(file, file.categories[person_id].get("keypoints"), convention)
    annotations = []
    for index, row in enumerate(file.annotations):
        if row["category_id"] != person_id:
            continue
        try:
            kept = check_person({name: row[name] for name in PERSON_KEYS if name in row}, index, convention)
        except ValueError as error:
            name = f"{annotation_file}: annotation {row.get('id')} of image {row['image_id']}"
            raise ValueError(f"{name}: {error}") from error
        values = kept.get("keypoints")
        if order is not None and isinstance(values, list) and len(values) == 3 * len(order):
            kept["keypoints"] = [value for place in order for value in values[3 * place : 3 * place + 3]]
        annotations.append((row["image_id"], kept))
    rows = make_rows(folder, file, annotations)
    return rows.add_column(PERSON_ID, [person_id] * len(rows))


def check_person(annotation: dict[str, Any], index: int, convention: KeypointConvention) -> dict[str, Any]:
    """
    An annotation of a person whose numbers are checked, without what is None.

    Args:
        annotation (`dict`): What is kept of COCO's.
        index (`int`): Its place in the file, for errors.
        convention ([`KeypointConvention`]): What is annotated.

    Raises:
        ValueError: if its box, its area or `iscrowd` is malformed, or its keypoints are not those of the convention:
            three numbers each, (x, y, visibility), finite where the visibility is positive.
    """
    annotation = {name: value for name, value in annotation.items() if value is not None}
    keys = KEYPOINT_KEYS[:1] if convention is COCO else KEYPOINT_KEYS
    missing = [key for key in ("bbox", *keys) if key not in annotation]
    if missing:
        raise ValueError(f"an annotation must have {missing}, got {sorted(annotation)}")
    cleaned = clean_annotation({**annotation, "category_id": 0}, index)
    for key in keys:
        if not isinstance(annotation[key], (list, tuple)):
            raise ValueError(f"`annotations[{index}]['{key}']` must be a list, got {reprlib.repr(annotation[key])}")
    values = list(chain.from_iterable(annotation[key] for key in keys))
    if len(values) != 3 * convention.num_keypoints:
        raise ValueError(
            f"an annotation must have {convention.num_keypoints} keypoints (x, y, visibility), got {len(values)} values"
        )
    if not all(isinstance(value, Real) for value in values):
        wrong = next(value for value in values if not isinstance(value, Real))
        raise ValueError(f"`annotations[{index}]['keypoints']` must be numbers, got {reprlib.repr(wrong)}")
    points = np.asarray(values, dtype=np.float64).reshape(-1, 3)
    visible = points[points[:, 2] > 0]
    if not ((abs(visible[:, :2]) <= MAX_COORDINATE).all() and np.isfinite(points[:, 2]).all()):
        raise ValueError(
            f"`annotations[{index}]['keypoints']` must be finite, at most {MAX_COORDINATE}, got "
            f"{reprlib.repr(visible.tolist())}"
        )
    return {name: cleaned[name] for name in annotation}


def find_persons(file: CocoFile) -> Any:
    """The id of the category of persons: the one of that name, or the only one."""
    found = [key for key, row in file.categories.items() if str(row["name"]).lower() == "person"]
    candidates = found or list(file.categories)
    if len(candidates) != 1:
        raise ValueError(f"{file.path} must have one category 'person', or one only, got {shorten(file.names)}")
    return candidates[0]


def find_keypoints(file: CocoFile, names: Sequence[str] | None, convention: KeypointConvention) -> Sequence[int] | None:
    """
    The place in a file of each of the body's keypoints; None where they are in the convention's order, or have no
    names. COCO-WholeBody's files name those of the body only.

    Raises:
        ValueError: if the file names others.
    """
    if not names:
        return None
    body = [_plain(name) for name in COCO.names]
    given = [_plain(name) for name in names]
    if given in (body, [_plain(name) for name in convention.names]):
        return None
    if sorted(given) == sorted(body):
        return [given.index(name) for name in body]
    raise ValueError(
        f"{file.path} must have the keypoints {shorten(COCO.names)}, got {shorten(names)}: they cannot be matched by "
        "name; without `keypoints` in its category they are taken in the convention's order"
    )


def _plain(name: str) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def parse_persons(row: dict[str, Any], convention: KeypointConvention) -> Persons:
    """The persons of a row of [`load_data`], which has checked them."""
    annotations = json.loads(row[ANNOTATIONS])
    keys = KEYPOINT_KEYS[:1] if convention is COCO else KEYPOINT_KEYS
    keypoints = [list(chain.from_iterable(annotation[key] for key in keys)) for annotation in annotations]
    boxes = [annotation["bbox"] for annotation in annotations]
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas = [row.get("area", width * height) for row, (_, _, width, height) in zip(annotations, boxes)]
    return Persons(
        keypoints=np.asarray(keypoints, dtype=np.float64).reshape(-1, convention.num_keypoints, 3),
        boxes=boxes,
        area=np.asarray(areas, dtype=np.float64),
        iscrowd=np.asarray([row.get("iscrowd", 0) for row in annotations], dtype=np.int64),
    )


@dataclass(frozen=True)
class Place:
    """Where a sample lies: the row of its image; the person in it, or none for a box of a detector; box and score."""

    row: int
    person: int | None
    box: tuple[float, float, float, float]
    score: float = 1.0


def annotated_places(rows: Dataset, convention: KeypointConvention) -> list[Place]:
    """The persons to train on, and to evaluate with their true boxes: annotated, not crowds."""
    places = []
    for index, row in enumerate(rows):
        persons = parse_persons(row, convention)
        kept = np.nonzero(persons.can_be_cropped)[0].tolist()
        places += [Place(index, person, tuple(persons.boxes[person].tolist())) for person in kept]
    return places


def detected_places(rows: Dataset, boxes_file: str) -> list[Place]:
    """
    The boxes of a detector in the images of the rows: those of persons, by the category's id in the annotations. Boxes
    without area are left out.

    Raises:
        ValueError: if the file cannot be read, or is no list of detections.
    """
    index = {image_id: row for row, image_id in enumerate(rows[IMAGE_ID])}
    person_id = rows[0][PERSON_ID]
    try:
        content = json.loads(Path(boxes_file).read_text())
        kept = [
            (index[found["image_id"]], _clean_detection(found, place))
            for place, found in enumerate(content)
            if found["image_id"] in index and found.get("category_id", person_id) == person_id
        ]
        places = [Place(row, None, tuple(found["bbox"]), float(found["score"])) for row, found in kept]
    except OSError as error:
        raise ValueError(f"{boxes_file} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{boxes_file} must hold COCO's detections (image_id, bbox, score): {error!r}") from error
    return [place for place in places if min(place.box[2:]) > 0]


def _clean_detection(found: dict[str, Any], place: int) -> dict[str, Any]:
    score = found["score"]
    if not isinstance(score, Real) or not np.isfinite(score):
        raise ValueError(f"detection {place} of image {found['image_id']} must have a finite score, got {score!r}")
    return {**clean_annotation({"bbox": found["bbox"], "category_id": 0}, place), "score": score}


def load_pose_estimator(
    args: ModelArguments, convention: KeypointConvention, known: KnownNames | None = None, **fields: Any
) -> tuple[ClusTRForPoseEstimation, ClusTRPoseImageProcessor]:
    """
    Model of the convention's keypoints, and its image processor; `fields` are those of the configuration.

    `--image_size` is the height of the crops, which are three quarters as wide. `known` are the keypoints of the
    checkpoint that is trained further or evaluated; default: that of `args`.
    """
    known = known_names(args, HEADS) if known is None else known
    names = list(convention.names) if known is None else known.match(convention.names)
    fields = {**{name: convention.config_fields()[name] for name in ("flip_pairs", "edges")}, **fields}
    processor = ClusTRPoseImageProcessor()
    model, loaded = load_model(args, names, ClusTRForPoseEstimation, AutoModelForPoseEstimation, processor, **fields)
    order_keypoints(model, names, convention)
    if not hasattr(loaded, "post_process_pose_estimation"):  # a classifier's
        loaded = processor
    changes = {"keypoint_heatmap_downscale_factor": max(1, round(model.heatmap_stride))}
    if changes["keypoint_heatmap_downscale_factor"] != model.heatmap_stride:
        raise ValueError(f"heat maps must be smaller than crops by a whole number, got {model.heatmap_stride}")
    if args.image_size is not None:
        changes["size"] = {"height": args.image_size, "width": round(0.75 * args.image_size)}
    return model, type(loaded).from_dict({**loaded.to_dict(), **changes})


def order_keypoints(model: ClusTRForPoseEstimation, names: Sequence[str], convention: KeypointConvention):
    """Bring the heat maps of a model, which are of keypoints with the given names, into the convention's order."""
    if list(names) == list(convention.names):
        return
    layer = model.head[-1]
    order = torch.tensor([list(names).index(name) for name in convention.names], device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[order])
    for name, value in name_labels(list(convention.names)).items():
        setattr(model.config, name, value)
