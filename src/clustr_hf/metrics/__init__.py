# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Metrics for every task, as functions and with the interface of `evaluate`. None of them downloads anything."""

from .coco import coco_average_precision
from .evaluate_metrics import Accuracy, CocoAveragePrecision, KeypointAveragePrecision, MeanIoU, compute_accuracy
from .keypoints import keypoint_average_precision
from .pose_suppression import suppress_similar_poses
from .segmentation import class_areas, summarize_areas


__all__ = [
    "Accuracy",
    "CocoAveragePrecision",
    "KeypointAveragePrecision",
    "MeanIoU",
    "class_areas",
    "coco_average_precision",
    "compute_accuracy",
    "keypoint_average_precision",
    "summarize_areas",
    "suppress_similar_poses",
]
