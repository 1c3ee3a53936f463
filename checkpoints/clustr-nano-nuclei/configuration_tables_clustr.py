# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Tables of the configuration: named variants, kinds of fields and their allowed values, fields of each head."""

from typing import Any


# Table A1 of the paper. The defaults of MLP ratios and patch embeddings, which it omits, are the authors' release's.
PAPER_VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [1, 2, 6, 1],
        "num_attention_heads": [1, 2, 4, 8],
    },
    "small": {
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [3, 5, 13, 2],
        "num_attention_heads": [1, 2, 4, 8],
    },
    "base": {
        "hidden_sizes": [64, 128, 320, 512],
        "depths": [3, 5, 18, 3],
        "num_attention_heads": [1, 2, 5, 8],
    },
}

# Not from the paper: about 1.1 million parameters for images of 32 to 128 pixels, for demos, tests and CPUs.
NANO_VARIANT: dict[str, Any] = {
    "hidden_sizes": [32, 64, 128, 160],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 4, 5],
    "mlp_ratios": [4, 4, 4, 4],
    "patch_sizes": [3, 3, 3, 3],
    "strides": [2, 2, 2, 2],
    "reduction_ratios": [[16, 4], [4, 1], [1], [1]],
    "fpn_hidden_size": 64,
    "decoder_hidden_size": 64,
    "upernet_hidden_size": 64,
    "auxiliary_hidden_size": 64,
    "box_head_hidden_size": 128,
    "mask_head_hidden_size": 64,
    "deconv_hidden_sizes": [128, 128, 128],
}

CLUSTER_ASSIGNMENTS = ("density_parent", "nearest_center")
GRID_TYPES = ("spatial_reduction", "spatial_reduction_knn")
ATTENTION_TYPES = ("clustered", *GRID_TYPES, "none")

# Fields with a fixed set of values, and fields in [0, 1).
CHOICES = {
    "attention_type": ATTENTION_TYPES,
    "cluster_assignment": CLUSTER_ASSIGNMENTS,
    "cluster_sharing": ("block", "stage"),
    "cluster_count": ("ratio", "content"),
    "segmentation_head": ("semantic_fpn", "upernet"),
}
PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "classifier_dropout_prob",
    "detection_score_threshold",
)
# Fields with positive values.
POSITIVES = (
    "num_channels",
    "num_neighbors",
    "attention_top_k",
    "layer_norm_eps",
    "embedding_layer_norm_eps",
    "fpn_hidden_size",
    "decoder_hidden_size",
    "upernet_hidden_size",
    "auxiliary_hidden_size",
    "detections_per_image",
    "roi_batch_size",
    "box_head_hidden_size",
    "mask_head_hidden_size",
)
# Fields with lists of positive values.
POSITIVE_LISTS = ("pool_scales", "anchor_sizes", "anchor_aspect_ratios", "deconv_hidden_sizes")

# Fields that only clustered attention uses, with the values that the other attention types require.
CLUSTERS_ONLY = {
    "num_neighbors": 5,
    "cluster_assignment": "density_parent",
    "cluster_window": None,
    "cluster_sharing": "block",
    "max_clusters": None,
    "cluster_count": "ratio",
}

# Fields with one entry per stage.
PER_STAGE_FIELDS = (
    "hidden_sizes",
    "depths",
    "num_attention_heads",
    "mlp_ratios",
    "patch_sizes",
    "strides",
    "reduction_ratios",
)

SEGMENTATION_FIELDS = (
    "segmentation_head",
    "fpn_hidden_size",
    "decoder_hidden_size",
    "upernet_hidden_size",
    "pool_scales",
    "auxiliary_hidden_size",
    "auxiliary_loss_weight",
    "classifier_dropout_prob",
    "semantic_loss_ignore_index",
    "semantic_class_weights",
)
DETECTION_FIELDS = (
    "fpn_hidden_size",
    "anchor_sizes",
    "anchor_aspect_ratios",
    "detection_score_threshold",
    "detection_nms_threshold",
    "detections_per_image",
    "roi_batch_size",
    "box_head_hidden_size",
    "mask_head_hidden_size",
)
POSE_FIELDS = ("deconv_hidden_sizes", "flip_pairs", "edges")

# Class of a model -> the fields of its head. Fields that no head has belong to the backbone, which every model has.
HEAD_FIELDS: dict[str, tuple[str, ...]] = {
    "ClusTRModel": (),
    "ClusTRBackbone": (),
    "ClusTRForImageClassification": (),
    "ClusTRForSemanticSegmentation": SEGMENTATION_FIELDS,
    "ClusTRForObjectDetection": DETECTION_FIELDS,
    "ClusTRForInstanceSegmentation": DETECTION_FIELDS,
    "ClusTRForPoseEstimation": POSE_FIELDS,
}
