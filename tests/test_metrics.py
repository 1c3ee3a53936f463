"""Metrics against an independent implementation."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from transformers import EvalPrediction

from clustr_hf.metrics import Accuracy, MeanIoU, class_areas, compute_accuracy, summarize_areas


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
    assert iou[2] == 0  # predicted, but never there: counts as wrong
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
    """A confusion matrix counted in loops, over two images at once."""
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
