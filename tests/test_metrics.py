"""Metrics against an independent implementation."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from transformers import EvalPrediction

from clustr_hf.metrics import Accuracy, compute_accuracy


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
