"""Metrics against an independent implementation."""

import json
import warnings

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from transformers import EvalPrediction

from clustr_hf.keypoints import COCO, COCO_WHOLEBODY
from clustr_hf.metrics import (
    Accuracy,
    CocoAveragePrecision,
    KeypointAveragePrecision,
    MeanIoU,
    class_areas,
    coco_average_precision,
    compute_accuracy,
    keypoint_average_precision,
    summarize_areas,
    suppress_similar_poses,
)
from clustr_hf.remote_code.image_processing_clustr_detection import encode_mask


def test_accuracy_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    predictions, references = generator.integers(0, 4, (2, 500))
    found = Accuracy().compute(predictions=predictions, references=references)
    assert found == {"accuracy": pytest.approx(accuracy_score(references, predictions))}


def test_accuracy_for_trainer_takes_the_largest_logit():
    logits = np.array([[0.1, 0.9], [2.0, -1.0], [0.0, 0.5]])
    assert compute_accuracy(EvalPrediction(logits, np.array([1, 0, 0]))) == {"accuracy": pytest.approx(2 / 3)}


def test_accuracy_counts_every_batch():
    metric = Accuracy()
    metric.add_batch(predictions=[0, 1, 2], references=[0, 1, 1])
    metric.add_batch(predictions=[3], references=[0])
    assert metric.compute() == {"accuracy": 0.5}


def random_maps(seed, num_labels=6, number=4):
    """Maps of several sizes with ignored pixels; class 2 is never labelled, class 4 neither labelled nor predicted."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(5, 40, (number, 2))
    references = [generator.choice([0, 1, 3, 5, 255], size) for size in sizes]
    predictions = [
        np.where(generator.random(size) < 0.5, reference % 255, generator.choice([0, 1, 2, 3, 5], size))
        for reference, size in zip(references, sizes)
    ]
    return predictions, references


@pytest.mark.parametrize("seed", range(5))
def test_mean_iou_agrees_with_scikit_learn(seed):
    predictions, references = random_maps(seed)
    predicted, labelled = (np.concatenate([m.ravel() for m in maps]) for maps in (predictions, references))
    predicted, labelled = predicted[labelled != 255], labelled[labelled != 255]
    result = MeanIoU().compute(predictions=predictions, references=references, num_labels=6)

    present = [0, 1, 2, 3, 5]
    iou = jaccard_score(labelled, predicted, labels=present, average=None)
    assert iou[2] == 0  # predicted but never labelled: counts as wrong
    assert result["per_category_iou"][present] == pytest.approx(iou)
    assert np.isnan(result["per_category_iou"][4])
    assert result["mean_iou"] == pytest.approx(iou.mean())
    assert result["overall_accuracy"] == pytest.approx(accuracy_score(labelled, predicted))
    matrix = confusion_matrix(labelled, predicted, labels=range(6))
    labelled_classes = matrix.sum(axis=1) > 0
    recall = matrix.diagonal()[labelled_classes] / matrix.sum(axis=1)[labelled_classes]
    assert result["per_category_accuracy"][labelled_classes] == pytest.approx(recall)
    assert np.isnan(result["per_category_accuracy"][~labelled_classes]).all()
    assert result["mean_accuracy"] == pytest.approx(recall.mean())


def test_mean_iou_counts_pixel_by_pixel():
    """Compares with a confusion matrix that loops count over two images."""
    predictions, references = random_maps(9, number=2)
    matrix = [[0] * 6 for _ in range(6)]
    for prediction, reference in zip(predictions, references):
        for row in range(prediction.shape[0]):
            for column in range(prediction.shape[1]):
                if reference[row, column] != 255:
                    matrix[reference[row, column]][prediction[row, column]] += 1
    ious = []
    for label in range(6):
        union = sum(matrix[label]) + sum(row[label] for row in matrix) - matrix[label][label]
        if union:
            ious.append(matrix[label][label] / union)
    areas = [class_areas(torch.from_numpy(p), torch.from_numpy(r), 6) for p, r in zip(predictions, references)]
    assert summarize_areas(areas)["mean_iou"] == pytest.approx(sum(ious) / len(ious))


def test_mean_iou_counts_every_batch_and_another_ignored_label():
    metric = MeanIoU()
    metric.add_batch(predictions=[[[0, 1]]], references=[[[0, -1]]])
    metric.add_batch(predictions=[[[1], [1]]], references=[[[0], [1]]])
    result = metric.compute(num_labels=2, ignore_index=-1)
    assert result["per_category_iou"].tolist() == [0.5, 0.5] and result["overall_accuracy"] == pytest.approx(2 / 3)


def test_mean_iou_of_nothing_is_nan():
    nothing = class_areas(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255), 3)
    result = summarize_areas([nothing])
    assert np.isnan([result["mean_iou"], result["mean_accuracy"], result["overall_accuracy"]]).all()


def test_maps_that_do_not_fit_are_named():
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`prediction` must have the size of `reference`, \(3, 2\), got \(2, 3\)"):
        class_areas(zeros, zeros.T, 2)
    with pytest.raises(ValueError, match=r"`reference` must be in \[0, 2\), got values from 2 to 2"):
        class_areas(zeros, zeros + 2, 2)
    with pytest.raises(ValueError, match=r"`prediction` must be in \[0, 2\), got values from -1 to -1"):
        class_areas(zeros - 1, zeros, 2)


def random_detections(seed, num_images=8, num_labels=3, size=(60, 80)):
    """Random objects, and detections: near an object, duplicated, of another class, or of nothing."""
    generator = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(num_images):
        number = int(generator.integers(0, 6))
        corners = generator.uniform(0, 40, (number, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(12, 30, (number, 2))], axis=1)
        labels = generator.integers(0, num_labels, number)
        references.append({"boxes": boxes, "labels": labels})
        near = np.repeat(boxes, 2, axis=0) + generator.normal(0, 1.5, (2 * number, 4))
        wrong = generator.uniform(0, 30, (3, 4)) + np.array([0, 0, 30, 30])
        found = np.concatenate([near, wrong])
        classes = np.concatenate([np.repeat(labels, 2), generator.integers(0, num_labels, 3)])
        predictions.append({"boxes": found, "labels": classes, "scores": generator.uniform(size=len(found))})
    for record in (*predictions, *references):
        record["masks"] = [encode_mask(fill(box, size)) for box in record["boxes"]]
    return predictions, references


def fill(box, size):
    """Mask of the pixels whose corner lies in a box."""
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    return (columns >= box[0]) & (columns < box[2]) & (rows >= box[1]) & (rows < box[3])


def box_overlap(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def average_precision_by_hand(predictions, references, label, threshold, overlap):
    """COCO's definition: detections, best first, take their best free object; precision is sampled at 101 recalls."""
    ranked = sorted(
        (-score, image, index)
        for image, record in enumerate(predictions)
        for index, (score, found) in enumerate(zip(record["scores"], record["labels"]))
        if found == label
    )
    taken, hits = set(), []
    for _, image, index in ranked:
        free = [
            (overlap(predictions[image], index, references[image], other), other)
            for other, true in enumerate(references[image]["labels"])
            if true == label and (image, other) not in taken
        ]
        best, other = max(free, default=(0, None))
        hits.append(best >= threshold)
        if hits[-1]:
            taken.add((image, other))
    total = sum(int((record["labels"] == label).sum()) for record in references)
    hits = np.cumsum(hits)
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    return np.mean([max(precision[recall >= level - 1e-12], default=0.0) for level in np.linspace(0, 1, 101)])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_agrees_with_loops(iou_type, seed):
    predictions, references = random_detections(seed)

    def overlap(prediction, index, reference, other):
        first, second = prediction["boxes"][index], reference["boxes"][other]
        if iou_type == "bbox":
            return box_overlap(first, second)
        first, second = fill(first, (60, 80)), fill(second, (60, 80))
        return (first & second).sum().item() / (first | second).sum().item()

    by_hand = np.array(
        [
            [average_precision_by_hand(predictions, references, label, t, overlap) for t in np.linspace(0.5, 0.95, 10)]
            for label in range(3)
        ]
    )
    found = coco_average_precision(predictions, references, 3, iou_type)
    assert 0.2 < found["ap"] < 0.8
    assert found["ap"] == pytest.approx(by_hand.mean(), abs=1e-6)
    assert found["ap50"] == pytest.approx(by_hand[:, 0].mean(), abs=1e-6)
    assert found["ap75"] == pytest.approx(by_hand[:, 5].mean(), abs=1e-6)
    assert found["per_category_ap"] == pytest.approx(by_hand.mean(axis=1), abs=1e-6)
    assert found["per_category_ap50"] == pytest.approx(by_hand[:, 0], abs=1e-6)


def test_average_precision_as_a_metric_batch_by_batch():
    predictions, references = random_detections(1)
    metric = CocoAveragePrecision()
    for start in (0, 5):
        part = slice(start, start + 5)
        metric.add_batch(predictions=predictions[part], references=references[part])
    for iou_type in ("bbox", "segm"):
        expected = coco_average_precision(predictions, references, 3, iou_type)
        boxes = [{name: record[name] for name in record if name != "masks"} for record in predictions]
        found = CocoAveragePrecision().compute(
            predictions=boxes if iou_type == "bbox" else predictions,
            references=references,
            num_labels=3,
            iou_type=iou_type,
        )
        assert found["ap"] == pytest.approx(expected["ap"])
    assert metric.compute(num_labels=3)["ap"] == pytest.approx(coco_average_precision(predictions, references, 3)["ap"])


def test_average_precision_by_size_takes_the_area_that_is_given():
    boxes = [[0, 0, 20, 20], [30, 0, 80, 50], [100, 0, 300, 200]]
    reference = {"boxes": boxes, "labels": [0, 0, 0]}
    prediction = {"boxes": boxes[1:], "labels": [0, 0], "scores": [0.9, 0.8]}
    found = coco_average_precision([prediction], [reference])
    assert [found[f"ap_{size}"] for size in ("small", "medium", "large")] == [0.0, 1.0, 1.0]
    found = coco_average_precision([prediction], [{**reference, "area": [400, 400, 40000]}])
    assert found["ap_medium"] != found["ap_medium"]  # NaN: no object has that area
    assert found["ap_small"] == pytest.approx(0.5, abs=0.01) and found["ap_large"] == 1.0


def test_crowds_are_neither_demanded_nor_held_against_anyone():
    reference = {"boxes": [[0, 0, 10, 10], [20, 20, 90, 90]], "labels": [0, 0], "iscrowd": [0, 1]}
    one = {"boxes": [[0, 0, 10, 10]], "labels": [0], "scores": [0.5]}
    in_crowd = {"boxes": [[30, 30, 40, 40], [0, 0, 10, 10]], "labels": [0, 0], "scores": [0.9, 0.5]}
    elsewhere = {"boxes": [[110, 30, 130, 40], [0, 0, 10, 10]], "labels": [0, 0], "scores": [0.9, 0.5]}
    results = [coco_average_precision([found], [reference])["ap"] for found in (one, in_crowd, elsewhere)]
    assert results == pytest.approx([1.0, 1.0, 0.5], abs=0.01)


def test_only_so_many_detections_count():
    boxes = [[i * 20, 0, i * 20 + 10, 10] for i in range(6)]
    reference = {"boxes": boxes, "labels": [0] * 6}
    prediction = {**reference, "scores": [0.9 - 0.1 * i for i in range(6)]}
    assert coco_average_precision([prediction], [reference], max_detections=6)["ar"] == 1
    assert coco_average_precision([prediction], [reference], max_detections=3)["ar"] == 0.5
    boxes = [[i * 20, 0, i * 20 + 10, 10] for i in range(150)]
    reference = {"boxes": boxes, "labels": [0] * 150}
    prediction = {**reference, "scores": np.linspace(0.9, 0.5, 150)}
    assert coco_average_precision([prediction], [reference])["ar"] == pytest.approx(100 / 150)
    assert coco_average_precision([prediction], [reference], max_detections=None)["ar"] == 1
    assert np.isnan(coco_average_precision([], [], max_detections=None)["ar"])


def test_detections_that_do_not_fit_are_named():
    record = {"boxes": [[0, 0, 5, 5]], "labels": [3], "scores": [1.0]}
    with pytest.raises(ValueError, match="`iou_type` must be 'bbox' or 'segm', got 'keypoints'"):
        coco_average_precision([record], [record], iou_type="keypoints")
    with pytest.raises(
        ValueError, match="`predictions` must have one entry for each of the 2 images of `references`, got 1"
    ):
        coco_average_precision([record], [record, record])
    with pytest.raises(ValueError, match=r"'labels' of `predictions` .* must be in \[0, 3\), got values from 3 to 3"):
        coco_average_precision([record], [record], num_labels=3)
    with pytest.raises(ValueError, match="`max_detections` must be positive, got 0"):
        coco_average_precision([record], [record], max_detections=0)
    with pytest.raises(ValueError, match=r"`predictions\[0\]` must have \['labels', 'masks', 'scores'\], got"):
        coco_average_precision([record], [record], iou_type="segm")
    for key, number in (("boxes", 2), ("scores", 0), ("iscrowd", 3)):
        wrong = {**record, key: [record.get(key, [0])[0]] * number if number else []}
        name = "references" if key == "iscrowd" else "predictions"
        pair = ([record], [wrong]) if key == "iscrowd" else ([wrong], [record])
        with pytest.raises(
            ValueError, match=rf"`{name}\[0\]` must have one of '{key}' for each of its 1 labels, got {number}"
        ):
            coco_average_precision(*pair)


@pytest.mark.parametrize("counts", ["", "~~", "0", b"P", [7, 8], [-1, 17], None, [float("nan"), 16]], ids=repr)
def test_masks_that_are_broken_are_named(counts):
    """Without this check, COCO's functions would decode a part of such masks, or read past their end."""
    record = {"labels": [0], "scores": [1.0], "masks": [{"size": [4, 4], "counts": [3, 13]}]}
    broken = {**record, "masks": [{"size": [4, 4], "counts": counts}]}
    with pytest.raises(ValueError, match=r"`predictions\[0\]\['masks'\]\[0\]`: .* run lengths of 16 pixels in total"):
        coco_average_precision([broken], [record], iou_type="segm")


def test_average_precision_image_by_image_and_of_compressed_masks():
    predictions, references = random_detections(2)
    metric = CocoAveragePrecision()
    for prediction, reference in zip(predictions, references):
        masks = [coco_mask.frPyObjects(mask, *mask["size"]) for mask in prediction["masks"]]
        metric.add(prediction={**prediction, "masks": masks}, reference=reference)
    expected = coco_average_precision(predictions, references, 3, "segm")["ap"]
    assert metric.compute(num_labels=3, iou_type="segm")["ap"] == pytest.approx(expected)


PARTS = {**COCO_WHOLEBODY.parts, "wholebody": range(133)}


def random_persons(seed, num_images=12):
    """
    Annotated persons of several sizes, with missing parts, crowds, and persons without keypoints; and predictions of
    most of them, some accurate and some not, with duplicates and false positives.
    """
    generator = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(num_images):
        number = generator.integers(0, 4)
        boxes = generator.uniform(0, 300, (number, 4))
        boxes[:, 2:] = boxes[:, :2] + generator.uniform(30, 250, (number, 2))
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * generator.uniform(0.3, 0.8, number)
        keypoints = np.ones((number, 133, 3))
        for person, box in zip(keypoints, boxes):
            person[:, :2] = generator.uniform(box[:2], box[2:], (133, 2))
            person[:, 2] = generator.choice([0, 1, 2], 133)
            for part in COCO_WHOLEBODY.parts.values():
                if generator.random() < 0.3:
                    person[list(part)] = 0
        references.append(
            {"keypoints": keypoints, "boxes": boxes, "area": area, "iscrowd": generator.random(number) < 0.1}
        )
        found, persons = [], [*zip(keypoints, area)]
        for person, size in persons + persons[: generator.integers(0, 2)]:
            spread = np.array(COCO_WHOLEBODY.sigmas)[:, None] * np.sqrt(size) * generator.choice([0.2, 1, 1.5, 4])
            found.append(np.column_stack([person[:, :2] + spread * generator.normal(size=(133, 2)), np.ones(133)]))
        found += [np.column_stack([generator.uniform(0, 400, (133, 2)), np.ones(133)])] * int(generator.random() < 0.3)
        found = np.array(found).reshape(-1, 133, 3)
        found[generator.random(len(found)) < 0.1, 17:23, 2] = 0  # without feet
        scores = np.round(generator.random(len(found)), 1)  # with ties
        predictions.append({"keypoints": found, "scores": scores})
    return predictions, references


def similarity_by_hand(predicted, annotated, box, area, sigmas):
    """Object keypoint similarity; for a person without keypoints, from the distances to a box of twice the margins."""
    total, count = 0.0, 0
    x0, y0, x1, y1 = box
    for (px, py, _), (x, y, visible), sigma in zip(predicted, annotated, sigmas):
        if visible > 0:
            squared = (px - x) ** 2 + (py - y) ** 2
        elif not (annotated[:, 2] > 0).any():
            width, height = x1 - x0, y1 - y0
            dx = max(0, x0 - width - px) + max(0, px - x1 - width)
            dy = max(0, y0 - height - py) + max(0, py - y1 - height)
            squared = dx**2 + dy**2
        else:
            continue
        total, count = total + np.exp(-squared / (2 * area * (2 * sigma) ** 2)), count + 1
    return total / count


def keypoint_precision_by_hand(predictions, references, part, threshold, areas=(0, 1e10)):
    """
    Average precision of a part as COCO defines it, person by person, and the maximum recall. Annotated persons outside
    the range of areas are ignored, and so are unmatched predictions whose body is outside it.
    """
    part, hits, number = list(part), [], 0
    for prediction, reference in zip(predictions, references):
        persons = [
            (
                points[part],
                box,
                area,
                bool(crowd) or not (points[part, 2] > 0).any() or not areas[0] <= area <= areas[1],
            )
            for points, box, area, crowd in zip(*(reference[key] for key in ("keypoints", "boxes", "area", "iscrowd")))
        ]
        number += sum(not ignored for *_, ignored in persons)
        found = [
            (score, points[part], areas[0] <= np.prod(np.ptp(points[:17, :2], axis=0)) <= areas[1])
            for points, score in zip(prediction["keypoints"], prediction["scores"])
            if (points[part, 2] > 0).any()
        ]
        taken = set()
        for score, points, counts in sorted(found, key=lambda pair: -pair[0]):
            best, most = None, threshold
            for index, (annotated, box, area, ignored) in sorted(enumerate(persons), key=lambda pair: pair[1][3]):
                if index in taken and not reference["iscrowd"][index]:
                    continue
                if best is not None and not persons[best][3] and ignored:
                    break
                value = similarity_by_hand(points, annotated, box, area, np.array(COCO_WHOLEBODY.sigmas)[part])
                if value >= most:
                    best, most = index, value
            taken.add(best)
            if counts if best is None else not persons[best][3]:
                hits.append((score, best is not None))
    hits = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=float)
    true = np.cumsum(hits)
    recall, precision = true / number, true / np.arange(1, len(hits) + 1)
    precision = [max(precision[i:]) for i in range(len(precision))]
    reached = [next((p for p, r in zip(precision, recall) if r >= least), 0.0) for least in np.linspace(0, 1, 101)]
    return np.mean(reached), recall[-1]


@pytest.mark.parametrize("seed", range(2))
def test_keypoint_precision_agrees_with_an_evaluation_by_hand(seed):
    predictions, references = random_persons(seed)
    found = keypoint_average_precision(predictions, references, COCO_WHOLEBODY)
    for name, part in PARTS.items():
        by_hand = np.array(
            [keypoint_precision_by_hand(predictions, references, part, t) for t in np.linspace(0.5, 0.95, 10)]
        )
        assert 0.1 < found[f"{name}_ap"] < 0.9
        for key, expected in (("ap", by_hand[:, 0].mean()), ("ap50", by_hand[0, 0]), ("ap75", by_hand[5, 0])):
            assert found[f"{name}_{key}"] == pytest.approx(expected, abs=1e-6)
        for size, areas in (("medium", (32**2, 96**2)), ("large", (96**2, 1e10))):
            by_size = [
                keypoint_precision_by_hand(predictions, references, part, t, areas)[0]
                for t in np.linspace(0.5, 0.95, 10)
            ]
            assert found[f"{name}_ap_{size}"] == pytest.approx(np.mean(by_size), abs=1e-6)
        for key, expected in (("ar", by_hand[:, 1].mean()), ("ar50", by_hand[0, 1]), ("ar75", by_hand[5, 1])):
            assert found[f"{name}_{key}"] == pytest.approx(expected, abs=1e-6)
    for key in ("ap", "ar75"):
        assert found[f"hand_{key}"] == pytest.approx((found[f"lefthand_{key}"] + found[f"righthand_{key}"]) / 2)


def with_part_scores(predictions, seed):
    """The same predictions with scores for some parts, so that each part ranks the persons differently."""
    generator = np.random.default_rng(seed)
    result = []
    for prediction in predictions:
        number = len(prediction["scores"])
        scores = {part: np.round(generator.random(number), 1) for part in ("face", "lefthand", "wholebody")}
        result.append({**prediction, **{f"{part}_scores": values for part, values in scores.items()}})
    return result


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spelling", ["scores", "score"])
def test_parts_are_ranked_by_scores_of_their_own_in_one_call(seed, spelling):
    """The results equal one call per part with only its scores, and the evaluation by hand."""
    predictions, references = random_persons(seed)
    predictions = with_part_scores(predictions, seed)
    given = [{key.replace("_scores", f"_{spelling}"): value for key, value in record.items()} for record in predictions]
    found = keypoint_average_precision(given, references, COCO_WHOLEBODY)
    assert KeypointAveragePrecision().compute(predictions=given, references=references) == pytest.approx(found)
    plain = [{"keypoints": record["keypoints"], "scores": record["scores"]} for record in predictions]
    without = keypoint_average_precision(plain, references, COCO_WHOLEBODY)
    for name, part in PARTS.items():
        own = [{**record, "scores": record.get(f"{name}_scores", record["scores"])} for record in predictions]
        precision, recall = keypoint_precision_by_hand(own, references, part, 0.5)
        assert found[f"{name}_ap50"] == pytest.approx(precision, abs=1e-6)
        assert found[f"{name}_ar50"] == pytest.approx(recall, abs=1e-6)
        alone = [{"keypoints": record["keypoints"], "scores": record["scores"]} for record in own]
        alone = keypoint_average_precision(alone, references, COCO_WHOLEBODY)
        keys = [key for key in alone if key.startswith(f"{name}_")]
        assert {key: found[key] for key in keys} == {key: pytest.approx(alone[key], nan_ok=True) for key in keys}
        changes = name in ("face", "lefthand", "wholebody")
        assert (found[f"{name}_ap"] != pytest.approx(without[f"{name}_ap"], abs=1e-9)) == changes, name
    assert found["hand_ap"] == pytest.approx((found["lefthand_ap"] + found["righthand_ap"]) / 2)


def test_a_persons_score_stands_in_where_a_part_has_none():
    """Part scores may be missing in whole images, in a batch, or be None for single persons."""
    predictions, references = random_persons(1)
    scored = with_part_scores(predictions, 1)
    some = [record if index % 2 else scored[index] for index, record in enumerate(predictions)]
    filled = [{**record, "face_scores": record.get("face_scores", record["scores"])} for record in some]
    keys = ("face_ap", "face_ap50", "face_ar")
    expected = keypoint_average_precision(filled, references, COCO_WHOLEBODY)
    metric = KeypointAveragePrecision()
    metric.add_batch(predictions=some[:5], references=references[:5])
    metric.add_batch(predictions=some[5:], references=references[5:])
    found = metric.compute()
    assert [found[key] for key in keys] == [pytest.approx(expected[key]) for key in keys]
    holes = [{**record, "face_scores": [None] * len(record["scores"])} for record in predictions]
    without = keypoint_average_precision(predictions, references, COCO_WHOLEBODY)
    assert keypoint_average_precision(holes, references, COCO_WHOLEBODY) == pytest.approx(without)
    assert KeypointAveragePrecision().compute(predictions=holes, references=references) == pytest.approx(without)


def test_a_batch_may_begin_with_an_image_without_persons():
    """The keypoints of that image are an array without rows."""
    predictions, references = random_persons(1)
    order = sorted(range(12), key=lambda index: len(predictions[index]["keypoints"]))
    assert predictions[order[0]]["keypoints"].shape == (0, 133, 3)
    data = {"predictions": [predictions[i] for i in order], "references": [references[i] for i in order]}
    expected = keypoint_average_precision(**data, convention=COCO_WHOLEBODY)
    assert KeypointAveragePrecision().compute(**data) == pytest.approx(expected, nan_ok=True)


def test_scores_of_parts_that_do_not_fit_are_named():
    predictions, references = random_persons(1)
    index = next(index for index, record in enumerate(predictions) if len(record["scores"]) > 0)
    found, truth = predictions[index], references[index]
    number = len(found["scores"])
    for convention, others, message in (
        (COCO_WHOLEBODY, {"face_scores": np.ones(number + 1)}, f"must have {number} of 'face_scores', .* got"),
        (COCO_WHOLEBODY, {"face_scores": np.ones(number), "face_score": np.ones(number)}, "'face_score'], got both"),
        (COCO, {"face_scores": np.ones(number)}, r"scores of the part 'face', but the convention has only \['body'\]"),
    ):
        size = convention.num_keypoints
        prediction = {**found, "keypoints": found["keypoints"][:, :size], **others}
        reference = {**truth, "keypoints": truth["keypoints"][:, :size]}
        with pytest.raises(ValueError, match=message):
            keypoint_average_precision([prediction], [reference], convention)


def test_classes_and_parts_that_do_not_occur_are_named():
    """Means exclude them: a model that predicts 0 everywhere scores 100 % if nothing else is labelled."""
    maps = {"predictions": [np.zeros((4, 4), int)], "references": [np.diag([255] * 4)]}
    with pytest.warns(UserWarning, match="no pixels of 1 classes or parts, which the scores therefore exclude: 1"):
        assert MeanIoU().compute(**maps, num_labels=2)["mean_iou"] == 1.0
    boxes = {"boxes": [[10.0, 10.0, 50.0, 50.0]], "labels": [0]}
    crowd = {"boxes": [[0.0, 0.0, 9.0, 9.0]], "labels": [2]}
    reference = {key: boxes[key] + crowd[key] for key in boxes} | {"iscrowd": [0, 1]}
    data = {"predictions": [{**boxes, "scores": [0.9]}], "references": [reference]}
    with pytest.warns(UserWarning, match="no objects of 2 classes or parts, which the scores therefore exclude: 1, 2"):
        assert CocoAveragePrecision().compute(**data, num_labels=3)["ap"] == 1.0
    _, references = random_persons(4)
    for reference in references:
        reference["keypoints"][:, 17:91] = 0
    data = {"predictions": truth_as_prediction(references), "references": references}
    with pytest.warns(UserWarning, match="no annotated keypoints of 2 classes or parts, .*: foot, face"):
        KeypointAveragePrecision().compute(**data)


def test_nothing_is_said_where_all_classes_occur():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        MeanIoU().compute(predictions=[[[0, 1]]], references=[[[0, 1]]], num_labels=2)
        _, references = random_persons(1)
        KeypointAveragePrecision().compute(predictions=truth_as_prediction(references), references=references)


def truth_as_prediction(references):
    return [{"keypoints": r["keypoints"], "scores": np.ones(len(r["keypoints"]))} for r in references]


def test_the_truth_is_worth_all_there_is():
    _, references = random_persons(3)
    found = keypoint_average_precision(truth_as_prediction(references), references, COCO_WHOLEBODY)
    assert [found[f"{name}_{key}"] for name in PARTS for key in ("ap", "ar", "ap_large")] == [1.0] * 18


def test_a_part_that_nobody_has_is_worth_nothing_known_and_its_predictions_do_no_harm():
    _, references = random_persons(4)
    for reference in references:
        reference["keypoints"][:, 23:91] = 0
    found = keypoint_average_precision(truth_as_prediction(references), references, COCO_WHOLEBODY)
    assert found["face_ap"] != found["face_ap"] and found["face_ar"] != found["face_ar"]  # NaN
    assert found["body_ap"] == found["wholebody_ap"] == 1.0
    nobody = [{"keypoints": np.zeros((0, 133, 3)), "scores": []}] * len(references)
    found = keypoint_average_precision(nobody, references, COCO_WHOLEBODY)
    assert found["body_ap"] == found["wholebody_ar"] == 0.0 and found["face_ap"] != found["face_ap"]
    empty = keypoint_average_precision([], [], COCO)
    assert set(empty) == {f"body_{k}" for k in ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75")}
    assert all(value != value for value in empty.values())


def test_keypoint_precision_as_a_metric_batch_by_batch():
    predictions, references = random_persons(5)
    metric = KeypointAveragePrecision()
    for start in (0, 6):
        part = slice(start, start + 6)
        metric.add_batch(predictions=predictions[part], references=references[part])
    expected = keypoint_average_precision(predictions, references, COCO_WHOLEBODY)
    assert metric.compute() == pytest.approx(expected, nan_ok=True)
    for record in references:
        del record["iscrowd"]
    for prediction, reference in zip(predictions, references):
        metric.add(prediction=prediction, reference=reference)
    without_crowds = keypoint_average_precision(predictions, references, COCO_WHOLEBODY)
    assert metric.compute(convention="coco_wholebody") == pytest.approx(without_crowds, nan_ok=True)


def test_ground_truth_of_the_sample_is_worth_all_there_is(shared):
    content = json.loads((shared / "data" / "coco-wholebody-sample" / "test_coco_wholebody.json").read_text())
    keys = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
    references = []
    for image in content["images"]:
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        keypoints = np.array([sum((row[key] for key in keys), []) for row in rows]).reshape(-1, 133, 3)  # noqa: RUF017
        references.append({"keypoints": keypoints, "boxes": boxes, "area": [row["area"] for row in rows]})
    found = keypoint_average_precision(truth_as_prediction(references), references, COCO_WHOLEBODY)
    assert [found[f"{name}_ap"] for name in (*PARTS, "hand")] == [1.0] * 7


def test_persons_that_do_not_fit_are_named():
    person = {"keypoints": np.ones((1, 17, 3)), "boxes": [[0, 0, 5, 5]], "area": [25]}
    found = {"keypoints": np.ones((1, 17, 3)), "scores": [1.0]}
    for predictions, references, message in (
        ([{"keypoints": []}], [person], r"`predictions\[0\]` must have \['keypoints', 'scores'\], got \['keypoints'\]"),
        ([found], [found], r"`references\[0\]` must have \['keypoints', 'boxes', 'area'\], got"),
        ([{"scores": []}], [person], r"`predictions\[0\]` must have \['keypoints', 'scores'\], got \['scores'\]"),
        ([], [person], "`predictions` must have one entry for each of the 1 images of `references`, got 0"),
        ([{**found, "keypoints": np.ones((1, 17, 2))}], [person], r"`predictions\[0\]` must have shape \(n, 17, 3\)"),
        ([found], [{**person, "keypoints": np.ones((1, 16, 3))}], r"`references\[0\]` must have shape \(n, 17, 3\)"),
        ([{**found, "scores": []}], [person], r"`predictions\[0\]` must have 1 of 'scores', .* got 0"),
        ([found], [{**person, "area": [1, 2]}], r"`references\[0\]` must have 1 of 'area', .* got 2"),
        ([found], [{**person, "iscrowd": [1, 2]}], r"`references\[0\]` must have 1 of 'iscrowd', .* got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            keypoint_average_precision(predictions, references, COCO)


def test_what_a_prediction_has_beside_keypoints_and_scores_does_not_matter():
    _, references = random_persons(3)
    found = [{**reference, "scores": np.ones(len(reference["keypoints"]))} for reference in references]
    assert keypoint_average_precision(found, references, COCO_WHOLEBODY)["wholebody_ap"] == 1.0
    whole = KeypointAveragePrecision().compute(predictions=found, references=references)
    assert whole["wholebody_ap"] == 1.0
    with pytest.raises(ValueError, match=r"`convention` must be one of \['coco', 'coco_wholebody'\], got 'mpii'"):
        KeypointAveragePrecision().compute(predictions=found[:1], references=references[:1], convention="mpii")


def test_only_the_twenty_best_persons_of_an_image_count():
    keypoints = np.concatenate(
        [100 * np.arange(25)[:, None, None] + np.zeros((25, 17, 2)), np.ones((25, 17, 1))], axis=2
    )
    keypoints[:, :, :2] += np.arange(17)[:, None]
    boxes = np.concatenate([keypoints[:, 0, :2], keypoints[:, -1, :2]], axis=1)
    reference = {"keypoints": keypoints, "boxes": boxes, "area": np.full(25, 150.0)}
    prediction = {"keypoints": keypoints, "scores": np.linspace(1, 0.5, 25)}
    assert keypoint_average_precision([prediction], [reference], COCO)["body_ar"] == pytest.approx(20 / 25)


def test_similar_poses_are_suppressed():
    generator = np.random.default_rng(0)
    keypoints = generator.uniform(0, 100, (6, 17, 2))
    keypoints[3] = keypoints[1] + 0.1
    keypoints[4] = keypoints[1] + 0.2
    scores, areas = np.array([0.5, 0.6, 0.4, 0.9, 0.7, 0.6]), np.full(6, 5000.0)
    assert suppress_similar_poses(keypoints, scores, areas, COCO.sigmas).tolist() == [3, 5, 0, 2]
    assert sorted(suppress_similar_poses(keypoints, scores, areas, COCO.sigmas, threshold=1.0)) == [0, 1, 2, 3, 4, 5]
    assert suppress_similar_poses(keypoints[:0], scores[:0], areas[:0], COCO.sigmas).tolist() == []
