# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Every hyper-parameter of ClusTR, what it means, and which values are allowed."""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin


CLUSTER_ASSIGNMENTS = ("density_parent", "nearest_center")
ATTENTION_TYPES = ("clustered", "spatial_reduction", "spatial_reduction_knn")

# Fields with a few allowed values, and fields in [0, 1).
CHOICES = {
    "attention_type": ATTENTION_TYPES,
    "cluster_assignment": CLUSTER_ASSIGNMENTS,
    "cluster_sharing": ("block", "stage"),
    "segmentation_head": ("semantic_fpn", "upernet"),
}
PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "classifier_dropout_prob",
    "detection_score_threshold",
)
# Widths, sizes and numbers that are positive.
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
# The same for lists.
POSITIVE_LISTS = ("pool_scales", "anchor_sizes", "anchor_aspect_ratios", "deconv_hidden_sizes")

# Table A1 of the paper. MLP ratios and patch embeddings are those of the authors' release.
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

# Not one of the paper's: about 1.1 million parameters for images of 32 to 128 pixels, for demos, tests and CPUs.
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

# What only clusters have: the values that other attentions leave these fields at.
CLUSTERS_ONLY = {
    "num_neighbors": 5,
    "cluster_assignment": "density_parent",
    "cluster_window": None,
    "cluster_sharing": "block",
    "max_clusters": None,
}

# Fields with one entry for each stage.
PER_STAGE_FIELDS = (
    "hidden_sizes",
    "depths",
    "num_attention_heads",
    "mlp_ratios",
    "patch_sizes",
    "strides",
    "reduction_ratios",
)


@strict
class ClusTRConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a ClusTR model; the defaults are ClusTR-S of the paper (Table A1), with two labels.

    Args:
        num_channels (`int`, defaults to 3):
            Channels of the input image.
        hidden_sizes (`list[int]`, defaults to `[64, 128, 256, 512]`):
            Channels C of the tokens in each stage.
        depths (`list[int]`, defaults to `[3, 5, 13, 2]`):
            Blocks in each stage.
        num_attention_heads (`list[int]`, defaults to `[1, 2, 4, 8]`):
            Attention heads in each stage; must divide the stage's hidden size.
        mlp_ratios (`list[int | float]`, defaults to `[8, 8, 4, 4]`):
            Width of the feed-forward network as a multiple of the stage's hidden size.
        patch_sizes (`list[int]`, defaults to `[7, 3, 3, 3]`):
            Kernel of the overlapping convolution that opens each stage; padding is half of it.
        strides (`list[int]`, defaults to `[4, 2, 2, 2]`):
            Stride of that convolution. Images need at least the product of the strides on each side.
        reduction_ratios (`list[list[int | float]]`, defaults to `[[64, 16], [16, 4], [4, 1], [1]]`):
            The paper's token reduction ratios lambda (Eqs. 3 and 7), for each stage one per scale: N tokens become
            `max(1, floor(N / lambda))` clusters. One number for a stage is a single scale. 1 means that every token
            is a cluster of its own; a stage whose only ratio is 1 has plain self-attention (Eq. 4).
        attention_type (`str`, defaults to `"clustered"`):
            `"clustered"`: the paper's. The other two are what Table 6 compares it with, on a grid; they have one lambda
            a stage, the square of a whole number r, and no options of clusters. `"spatial_reduction"` (PVT): a
            convolution of kernel and stride r, and a layer norm, make keys and values of r x r tokens.
            `"spatial_reduction_knn"` (KVT): of these, each query attends to the `attention_top_k` with the largest
            scores.
        attention_top_k (`int`, defaults to 100):
            Keys that a query attends to with `"spatial_reduction_knn"`, or all if there are fewer: at 224 pixels the
            paper's ratios leave 49.
        num_neighbors (`int`, defaults to 5):
            k of the local density (Eq. 1). A token is one of its own k neighbours.
        cluster_assignment (`str`, defaults to `"density_parent"`):
            `"density_parent"`: tokens join the cluster of their nearest denser token (the paper's text, section 3.1).
            `"nearest_center"`: tokens join the nearest cluster centre (the authors' release).
        cluster_window (`int`, *optional*):
            Side, in tokens, of the largest square window in which clusters are found: the grid is divided into as few
            windows of nearly equal sides as possible. Clustering is then linear in N. Default: the whole image.
        cluster_sharing (`str`, defaults to `"block"`):
            `"block"`: every block finds its own clusters (the paper). `"stage"`: the first block of a stage finds them
            for all; the later ones merge their own tokens by them.
        max_clusters (`int`, *optional*):
            The most clusters M that a scale may have, also where lambda is 1 (with `cluster_window`, at least one for
            each window), which makes attention linear in N. Default: N / lambda. The last three trade exactness for
            speed; README says what they cost a small model in accuracy.
        hidden_act (`str`, defaults to `"gelu"`):
            Activation of the feed-forward network, one of `transformers.activations.ACT2FN` (the model checks).
        qkv_bias (`bool`, defaults to `True`):
            Whether the query, key and value projections have a bias.
        hidden_dropout_prob (`float`, defaults to 0.0):
            Dropout in the feed-forward network and after the attention's output projection, in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0):
            Dropout of the attention weights, in [0, 1).
        drop_path_rate (`float`, defaults to 0.0):
            Stochastic depth of the last block, in [0, 1); grows linearly from 0 at the first block.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the truncated normal initialisation of linear layers.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms in the blocks and at the end of each stage.
        embedding_layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the layer norms of the patch embeddings.
        segmentation_head (`str`, defaults to `"semantic_fpn"`):
            Head of [`ClusTRForSemanticSegmentation`]: `"semantic_fpn"` (Kirillov et al. 2019) or `"upernet"` (Xiao et
            al. 2018, with an auxiliary FCN head on the last stage but one).
        fpn_hidden_size (`int`, defaults to 256):
            Channels of the feature pyramid under the Semantic FPN head and under both detectors.
        decoder_hidden_size (`int`, defaults to 128):
            Channels of the Semantic FPN head.
        upernet_hidden_size (`int`, defaults to 512):
            Channels of the UPerNet head.
        pool_scales (`list[int]`, defaults to `[1, 2, 3, 6]`):
            Sides of the grids to which UPerNet pools the last stage.
        auxiliary_hidden_size (`int`, defaults to 256):
            Channels of UPerNet's auxiliary head.
        auxiliary_loss_weight (`float`, defaults to 0.4):
            Weight of the auxiliary head's loss; 0 leaves the head out.
        classifier_dropout_prob (`float`, defaults to 0.1):
            Dropout of whole channels before a segmentation head's classifier, in [0, 1) (Table A3).
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count in the segmentation loss.
        semantic_class_weights (`list[float]`, *optional*):
            Weight of each class in the segmentation loss, for classes of unequal frequency. Default: all the same.
        anchor_sizes (`list[int]`, defaults to `[32, 64, 128, 256, 512]`):
            Side in pixels of the detectors' anchors on each level of the pyramid, the finest first; one level more than
            there are stages. RetinaNet's begins at the second stage and has anchors 2^(1/3) and 2^(2/3) as large, too.
        anchor_aspect_ratios (`list[float]`, defaults to `[0.5, 1.0, 2.0]`):
            Height / width of the anchors.
        detection_score_threshold (`float`, defaults to 0.05):
            Mask R-CNN drops detections with a lower score, in [0, 1).
        detection_nms_threshold (`float`, defaults to 0.5):
            Mask R-CNN drops detections whose intersection over union with a better one of their class is larger, in
            (0, 1].
        detections_per_image (`int`, defaults to 100):
            The most detections of Mask R-CNN. These three limits act at once when they are changed in a loaded model.
        roi_batch_size (`int`, defaults to 512):
            Proposals of an image that Mask R-CNN learns from in a step, a quarter of them objects at the most.
        box_head_hidden_size (`int`, defaults to 1024):
            Channels of Mask R-CNN's box head.
        mask_head_hidden_size (`int`, defaults to 256):
            Channels of Mask R-CNN's mask head.
        deconv_hidden_sizes (`list[int]`, defaults to `[256, 256, 256]`):
            Channels of the deconvolutions of the pose estimator, each of which doubles the resolution of the last map.
        flip_pairs (`list[list[int]]`, *optional*):
            Pairs of keypoints that change places in a mirror, of `num_labels` keypoints that `id2label` names; no
            keypoint occurs twice.
        edges (`list[list[int]]`, *optional*):
            Pairs of keypoints between which a drawn skeleton has a line.
        flatten_last_hidden_state (`bool`, defaults to `False`):
            Whether [`ClusTRModel`] returns its last hidden state as a sequence of tokens `(B, h * w, C)`, row by row,
            as ViT and Swin do, instead of a map `(B, C, h, w)`. transformers' `VisionEncoderDecoderModel` needs it.
        out_features (`list[str]`, *optional*):
            For [`ClusTRBackbone`]: which of `"stem", "stage1", ..., "stage4"` to return; default is the last one.
        out_indices (`list[int]`, *optional*):
            The same as indices into `stage_names`.

    Raises:
        ValueError: for values that do not fit together; the message names the field, what was expected and what came.

    Example:

    ```python
    >>> from clustr_hf import ClusTRConfig

    >>> ClusTRConfig.from_variant("tiny", num_labels=10).depths
    [1, 2, 6, 1]
    ```
    """

    model_type = "clustr"
    _auto_class: ClassVar[str | None] = "AutoConfig"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (3, 5, 13, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (8, 8, 4, 4)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    reduction_ratios: list[Any] | tuple[Any, ...] = ((64, 16), (16, 4), (4, 1), (1,))
    attention_type: str = "clustered"
    attention_top_k: int = 100
    num_neighbors: int = 5
    cluster_assignment: str = "density_parent"
    cluster_window: int | None = None
    cluster_sharing: str = "block"
    max_clusters: int | None = None
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-6
    embedding_layer_norm_eps: float = 1e-5
    segmentation_head: str = "semantic_fpn"
    fpn_hidden_size: int = 256
    decoder_hidden_size: int = 128
    upernet_hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_hidden_size: int = 256
    auxiliary_loss_weight: float | int = 0.4
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    semantic_class_weights: list[float | int] | tuple[float | int, ...] | None = None
    anchor_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_aspect_ratios: list[float | int] | tuple[float | int, ...] = (0.5, 1.0, 2.0)
    detection_score_threshold: float | int = 0.05
    detection_nms_threshold: float | int = 0.5
    detections_per_image: int = 100
    roi_batch_size: int = 512
    box_head_hidden_size: int = 1024
    mask_head_hidden_size: int = 256
    deconv_hidden_sizes: list[int] | tuple[int, ...] = (256, 256, 256)
    flip_pairs: list[Any] | tuple[Any, ...] | None = None
    edges: list[Any] | tuple[Any, ...] | None = None
    flatten_last_hidden_state: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        # JSON knows only lists: a configuration equals its reloaded self from the start.
        for name in (*PER_STAGE_FIELDS, *POSITIVE_LISTS):
            setattr(self, name, list(getattr(self, name)))
        if self.semantic_class_weights is not None:
            self.semantic_class_weights = list(self.semantic_class_weights)
        for name in ("flip_pairs", "edges"):
            setattr(self, name, _as_pairs(name, getattr(self, name)))
        swapped = [index for pair in self.flip_pairs or () for index in pair]
        if len(set(swapped)) < len(swapped):
            raise ValueError(f"`flip_pairs` must name no keypoint twice, got {self.flip_pairs}.")
        self.reduction_ratios = [
            list(ratios) if isinstance(ratios, (list, tuple)) else [ratios] for ratios in self.reduction_ratios
        ]
        self.validate_architecture()
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """`int`: The number of stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """
        `int`: Channels of the last stage, and so of `last_hidden_state` and `pooler_output`. It follows `hidden_sizes`,
        and cannot be set to anything else.
        """
        return self.hidden_sizes[-1]

    @hidden_size.setter
    def hidden_size(self, hidden_size: int):
        if hidden_size != self.hidden_size:
            raise ValueError(
                f"`hidden_size` must be the last of `hidden_sizes`, {self.hidden_size}: set `hidden_sizes` instead, "
                f"got {hidden_size!r}."
            )

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> "ClusTRConfig":
        """
        The configuration of a named variant.

        Args:
            variant (`str`):
                `"tiny"`, `"small"` or `"base"`: ClusTR-T, -S, -B of the paper (Table A1), with 1000 labels unless
                `num_labels` or `id2label` say otherwise. `"nano"`: a small model of our own for images of 32 to 128
                pixels, total stride 16; for larger images pass `patch_sizes=[7, 3, 3, 3], strides=[4, 2, 2, 2]`.
            overrides:
                Any field of the configuration. With an `attention_type` on a grid, `reduction_ratios` are by default
                the coarsest of the variant's in every stage.

        Raises:
            ValueError: if the variant is unknown.
        """
        variants = {**PAPER_VARIANTS, "nano": NANO_VARIANT}
        if variant not in variants:
            raise ValueError(f"`variant` must be one of {sorted(variants)}, got {variant!r}.")
        settings = {**variants[variant], **overrides}
        if variant in PAPER_VARIANTS and "num_labels" not in overrides and "id2label" not in overrides:
            settings["num_labels"] = 1000
        if overrides.get("attention_type", "clustered") != "clustered" and "reduction_ratios" not in overrides:
            settings["reduction_ratios"] = [
                max(ratios) for ratios in settings.get("reduction_ratios", cls.reduction_ratios)
            ]
        return cls(**settings)

    def validate_architecture(self):
        """Raise a `ValueError` that names the first field whose value does not fit (runs on creation and on saving)."""
        self._validate_lengths()
        self._validate_stage_values()
        self._validate_scalars()
        if self.attention_type != "clustered":
            self._validate_grid()

    def _validate_lengths(self):
        expected = len(self.depths)
        if expected == 0:
            raise ValueError("`depths` must name at least one stage, got an empty list.")
        for name in PER_STAGE_FIELDS:
            length = len(getattr(self, name))
            if length != expected:
                raise ValueError(
                    f"`{name}` must have one entry for each of the {expected} stages in `depths`, "
                    f"got {length}: {getattr(self, name)}."
                )

    def _validate_stage_values(self):
        for name in ("hidden_sizes", "depths", "num_attention_heads", "patch_sizes", "strides", "mlp_ratios"):
            _require_positive(name, getattr(self, name))
        for stage, (hidden_size, heads) in enumerate(zip(self.hidden_sizes, self.num_attention_heads), start=1):
            if hidden_size % heads:
                raise ValueError(
                    f"`hidden_sizes` must be divisible by `num_attention_heads` in every stage, "
                    f"got {hidden_size} channels and {heads} heads in stage {stage}."
                )
        for stage, (hidden_size, ratio) in enumerate(zip(self.hidden_sizes, self.mlp_ratios), start=1):
            if int(hidden_size * ratio) < 1:
                raise ValueError(
                    f"`mlp_ratios` must leave at least one channel, got {ratio} of {hidden_size} in stage {stage}."
                )
        for stage, ratios in enumerate(self.reduction_ratios, start=1):
            if not ratios or not all(_is_real(ratio) and ratio >= 1 for ratio in ratios):
                raise ValueError(
                    f"`reduction_ratios` must hold finite numbers of at least 1 for every stage (lambda = N / M), "
                    f"got {ratios} in stage {stage}."
                )

    def _validate_grid(self):
        for stage, ratios in enumerate(self.reduction_ratios, start=1):
            if len(ratios) != 1 or math.isqrt(int(ratios[0])) ** 2 != ratios[0]:
                raise ValueError(
                    f"`reduction_ratios` must hold one square of a whole number for every stage with `attention_type` "
                    f"{self.attention_type!r}, got {ratios} in stage {stage}."
                )
        for name, value in CLUSTERS_ONLY.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` must be {value!r} with `attention_type` {self.attention_type!r}, which has no clusters, "
                    f"got {getattr(self, name)!r}."
                )

    def _validate_scalars(self):
        for name in POSITIVES:
            _require_positive(name, [getattr(self, name)])
        for name in POSITIVE_LISTS:
            _require_positive(name, getattr(self, name))
        for name in ("cluster_window", "max_clusters"):
            if getattr(self, name) is not None:
                _require_positive(name, [getattr(self, name)])
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        if not 0 < self.detection_nms_threshold <= 1:
            raise ValueError(f"`detection_nms_threshold` must be in (0, 1], got {self.detection_nms_threshold}.")
        if not (_is_real(self.auxiliary_loss_weight) and self.auxiliary_loss_weight >= 0):
            raise ValueError(f"`auxiliary_loss_weight` must be 0 or more, got {self.auxiliary_loss_weight}.")
        weights = self.semantic_class_weights
        if weights is not None and not (weights and all(_is_real(w) and w >= 0 for w in weights) and any(weights)):
            raise ValueError(f"`semantic_class_weights` must be 0 or more and not all of them 0, got {weights}.")


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _as_pairs(name: str, pairs: Sequence[Any] | None) -> list[list[int]] | None:
    """Pairs of indices as lists; `ValueError` if they are not."""
    if pairs is None:
        return None
    for pair in pairs:
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[0] != pair[1]
        if not (is_pair and all(type(index) is int and index >= 0 for index in pair)):
            raise ValueError(f"`{name}` must hold pairs of two indices of keypoints, 0 or more, got {pair!r}.")
    return [list(pair) for pair in pairs]


def _require_positive(name: str, values: Sequence[Any]):
    if not all(_is_real(value) and value > 0 for value in values):
        raise ValueError(f"`{name}` must be positive, got {values}.")


__all__ = ["ClusTRConfig"]
