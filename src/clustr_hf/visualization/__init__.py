# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures of clusters, predictions and training curves, as a matplotlib `Figure` or a PIL image."""

from .answers import draw_answers
from .classification import plot_predictions
from .cluster_maps import ClusterMap, coarsen_clusters, find_cluster_maps, prepare_image
from .clusters import draw_clusters, plot_clusters
from .colors import BLUE, GREEN, ORANGE, RED, class_colors, readable_on
from .curves import plot_compared_curves, plot_training_curves
from .detections import draw_detections, plot_detections
from .keypoints import draw_keypoints, plot_keypoints
from .model_clusters import plot_model_clusters
from .segmentation import draw_segmentation, plot_segmentation


__all__ = [
    "BLUE",
    "GREEN",
    "ORANGE",
    "RED",
    "ClusterMap",
    "class_colors",
    "coarsen_clusters",
    "draw_answers",
    "draw_clusters",
    "draw_detections",
    "draw_keypoints",
    "draw_segmentation",
    "find_cluster_maps",
    "plot_clusters",
    "plot_compared_curves",
    "plot_detections",
    "plot_keypoints",
    "plot_model_clusters",
    "plot_predictions",
    "plot_segmentation",
    "plot_training_curves",
    "prepare_image",
    "readable_on",
]
