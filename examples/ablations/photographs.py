# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Rows for photographs of 128 pixels (`ablation_imagenette.json`), whose classifiers also learn to segment (CamVid)."""

from ablations.rows import NO_ATTENTION, Row, single_scale


COARSE = [64, 16, 4, 1]
# Depths, heads and widths that give the baselines the parameters of ClusTR nano within 3 %, as in `rows.py`. On the
# larger images of segmentation, the last stage of Swin has several windows, which do not exchange information.
PVT_V2 = {"hidden_sizes": [32, 64, 120, 144], "num_attention_heads": [1, 2, 4, 6], **single_scale(COARSE)}
SWIN = {"depths": [2, 2, 2, 1], "num_attention_heads": [1, 2, 4, 8], "hidden_sizes": [28, 56, 112, 224]}
# Only stages with several blocks can share clusters.
DEEP = {"depths": [2, 2, 2, 1]}

PHOTOGRAPHS = {
    "none-128": Row("no attention", NO_ATTENTION),
    "pvt-v2-128": Row("PVTv2, equal parameters", PVT_V2, baseline="pvt_v2"),
    "swin-128": Row("Swin, equal parameters", SWIN, baseline="swin"),
    "single-coarse-128": Row("ClusTR, single-scale 64, 16, 4, 1", single_scale(COARSE)),
    "single-fine-128": Row("ClusTR, single-scale 16, 4, 1, 1", single_scale([16, 4, 1, 1])),
    "clustr-128": Row("ClusTR, multi-scale {64, 16}, {16, 4}, {4, 1}, 1"),
    "nearest-128": Row("cluster_assignment nearest_center", {"cluster_assignment": "nearest_center"}),
    "window-128": Row("cluster_window 16 (of 32 x 32 tokens)", {"cluster_window": 16}),
    "capped-128": Row("max_clusters 32 (of 64)", {"max_clusters": 32}),
    "deep-none-128": Row("no attention, two blocks in stages 1 to 3", {**DEEP, **NO_ATTENTION}),
    "deep-128": Row("ClusTR, two blocks in stages 1 to 3", DEEP),
    "deep-sharing-128": Row("cluster_sharing stage", {**DEEP, "cluster_sharing": "stage"}),
    "deep-options-128": Row(
        "cluster_sharing stage, cluster_window 16, max_clusters 32",
        {**DEEP, "cluster_sharing": "stage", "cluster_window": 16, "max_clusters": 32},
    ),
}
