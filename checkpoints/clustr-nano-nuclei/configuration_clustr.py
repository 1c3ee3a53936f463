# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The hyper-parameters of ClusTR: their meaning, defaults and allowed values."""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_tables_clustr import (
    CHOICES,
    CLUSTERS_ONLY,
    GRID_TYPES,
    HEAD_FIELDS,
    NANO_VARIANT,
    PAPER_VARIANTS,
    PER_STAGE_FIELDS,
    POSITIVE_LISTS,
    POSITIVES,
    PROBABILITIES,
)


@strict
class ClusTRConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a ClusTR model. The defaults are ClusTR-S of the paper (Table A1), with two labels.

    A saved `config.json` holds the fields of the backbone and of the model's own head, and those of other heads only if
    they differ from the defaults.

    Args:
        *Backbone*

        num_channels (`int`, defaults to 3):
            Number of channels of the input image.
        hidden_sizes (`list[int]`, defaults to `[64, 128, 256, 512]`):
            Number of channels C of the tokens in each stage.
        depths (`list[int]`, defaults to `[3, 5, 13, 2]`):
            Number of blocks in each stage.
        num_attention_heads (`list[int]`, defaults to `[1, 2, 4, 8]`):
            Number of attention heads in each stage; must divide the stage's hidden size.
        mlp_ratios (`list[int | float]`, defaults to `[8, 8, 4, 4]`):
            Width of the feed-forward network as a multiple of the stage's hidden size.
        patch_sizes (`list[int]`, defaults to `[7, 3, 3, 3]`):
            Kernel size of the overlapping convolution at the start of each stage; the padding is half the kernel size,
            rounded down.
        strides (`list[int]`, defaults to `[4, 2, 2, 2]`):
            Stride of that convolution. The sides of an image must be at least the product of the strides.
        hidden_act (`str`, defaults to `"gelu"`):
            Activation of the feed-forward network, one of `transformers.activations.ACT2FN` (checked by the model).
        qkv_bias (`bool`, defaults to `True`):
            Whether the query, key and value projections have a bias.
        hidden_dropout_prob (`float`, defaults to 0.0):
            Dropout in the feed-forward network and after the attention's output projection, in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0):
            Dropout of the attention weights, in [0, 1).
        drop_path_rate (`float`, defaults to 0.0):
            Stochastic depth rate of the last block, in [0, 1); it increases linearly from 0 at the first block.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the truncated normal initialisation of linear layers.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms in the blocks and at the end of each stage.
        embedding_layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the layer norms of the patch embeddings.
        use_absolute_position_embeddings (`bool`, defaults to `False`):
            Whether to add an embedding of its position to each token at the start of every stage: a linear function of
            the coordinates in the image and of their sines and cosines, for images of any size. Without it, clusters
            have no position. Not in the paper.
        flatten_last_hidden_state (`bool`, defaults to `False`):
            Whether [`ClusTRModel`] returns its last hidden state as a row-major sequence of tokens `(B, h * w, C)`, as
            ViT and Swin do, instead of a map `(B, C, h, w)`. Required by transformers' `VisionEncoderDecoderModel`.
        out_features (`list[str]`, *optional*):
            Feature maps that [`ClusTRBackbone`] returns, of `"stem", "stage1", ..., "stage4"`. Default: the last stage.
        out_indices (`list[int]`, *optional*):
            The same as indices into `stage_names`.

        *Attention and clustering*

        attention_type (`str`, defaults to `"clustered"`):
            `"clustered"` is the paper's attention. The next two are its baselines in Table 6, which reduce the tokens
            on a grid; they require a single ratio per stage, the square of an integer r, and no clustering options.
            `"spatial_reduction"` (PVT): a convolution with kernel size and stride r and a layer norm turn r x r tokens
            into one key and value. `"spatial_reduction_knn"` (KVT): each query attends only to the `attention_top_k`
            of these keys with the highest scores.
            `"none"` is the control of the ablations: each block adds its normalised tokens to themselves in place of
            the attention, and `reduction_ratios` and the number of heads have no effect.
        attention_top_k (`int`, defaults to 100):
            Number of keys that a query attends to with `"spatial_reduction_knn"`; all keys if there are fewer. (At 224
            pixels, the ratios of the paper leave 49.)
        reduction_ratios (`list[list[int | float]]`, defaults to `[[64, 16], [16, 4], [4, 1], [1]]`):
            The paper's token reduction ratios lambda (Eqs. 3 and 7): for each stage, one per scale. N tokens become
            `max(1, floor(N / lambda))` clusters. A single number per stage is a single scale. With a ratio of 1 each
            token is a cluster of its own; a stage whose only ratio is 1 has standard self-attention (Eq. 4).
        num_neighbors (`int`, defaults to 5):
            Number of neighbours k of the local density (Eq. 1). A token is one of its own k neighbours.
        cluster_assignment (`str`, defaults to `"density_parent"`):
            `"density_parent"`: a token joins the cluster of its nearest denser token (section 3.1 of the paper).
            `"nearest_center"`: a token joins the nearest cluster centre (the authors' release).
        cluster_window (`int`, *optional*):
            Maximum side, in tokens, of the square windows in which clusters are found. The token grid is divided into
            as few windows of nearly equal size as possible, which makes clustering linear in N. Default: one window.
        cluster_sharing (`str`, defaults to `"block"`):
            `"block"`: each block finds its own clusters (the paper). `"stage"`: the first block of a stage finds the
            clusters, and the later blocks aggregate their own tokens by them.
        max_clusters (`int`, *optional*):
            Maximum number of clusters M of a scale, also for a ratio of 1 (with `cluster_window`, at least one cluster
            per window), which makes attention linear in N. Default: N / lambda. `cluster_window`, `cluster_sharing` and
            `max_clusters` trade exactness for speed; the documentation lists their cost in accuracy for a small model.
        cluster_count (`str`, defaults to `"ratio"`):
            `"ratio"`: N / lambda clusters in every image (the paper). `"content"`: as many as the content of the image
            needs, at least one and at most N / lambda: clusters that are cheap to merge are merged. Not in the paper,
            which leaves it to future work (section A2). Works with checkpoints that were trained with `"ratio"`.
        cluster_tolerance (`float`, defaults to 0.002):
            With `cluster_count="content"`, two clusters are merged if that adds at most this share of the variance of
            the image's tokens to the variance within clusters, in [0, 1]. Larger values leave fewer clusters; 0 only
            merges equal ones.

        *Image classification* has no fields of its own besides `num_labels`.

        *Semantic segmentation and detection*

        fpn_hidden_size (`int`, defaults to 256):
            Number of channels of the feature pyramid of the Semantic FPN head and of both detectors.

        *Semantic segmentation*

        segmentation_head (`str`, defaults to `"semantic_fpn"`):
            Head of [`ClusTRForSemanticSegmentation`]: `"semantic_fpn"` (Kirillov et al. 2019) or `"upernet"` (Xiao et
            al. 2018, with an auxiliary FCN head on the second-to-last stage).
        decoder_hidden_size (`int`, defaults to 128):
            Number of channels of the Semantic FPN head.
        upernet_hidden_size (`int`, defaults to 512):
            Number of channels of the UPerNet head.
        pool_scales (`list[int]`, defaults to `[1, 2, 3, 6]`):
            Sides of the grids to which the UPerNet head pools the last stage.
        auxiliary_hidden_size (`int`, defaults to 256):
            Number of channels of the auxiliary head of UPerNet.
        auxiliary_loss_weight (`float`, defaults to 0.4):
            Weight of the auxiliary loss; 0 removes the auxiliary head.
        classifier_dropout_prob (`float`, defaults to 0.1):
            Dropout of whole channels before the classifier of a segmentation head, in [0, 1) (Table A3).
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label that is ignored by the segmentation loss.
        semantic_class_weights (`list[float]`, *optional*):
            Weight of each class in the segmentation loss, for imbalanced classes. Default: equal weights.

        *Object detection and instance segmentation*

        anchor_sizes (`list[int]`, defaults to `[32, 64, 128, 256, 512]`):
            Side of the anchors in pixels for each level of the pyramid, finest first; there is one level more than
            stages. The levels of RetinaNet start at the second stage and also have anchors that are 2^(1/3) and 2^(2/3)
            times as large.
        anchor_aspect_ratios (`list[float]`, defaults to `[0.5, 1.0, 2.0]`):
            Height / width of the anchors.
        detection_score_threshold (`float`, defaults to 0.05):
            Mask R-CNN drops detections with a lower score, in [0, 1).
        detection_nms_threshold (`float`, defaults to 0.5):
            Intersection over union above which Mask R-CNN suppresses the lower-scored of two detections of a class, in
            (0, 1].
        detections_per_image (`int`, defaults to 100):
            Maximum number of detections per image of Mask R-CNN. Changes of `detection_score_threshold`,
            `detection_nms_threshold` and `detections_per_image` take effect in a loaded model, too.
        roi_batch_size (`int`, defaults to 512):
            Number of proposals per image that are sampled for the loss of Mask R-CNN, at most a quarter of them
            positive.
        box_head_hidden_size (`int`, defaults to 1024):
            Number of channels of the box head of Mask R-CNN.
        mask_head_hidden_size (`int`, defaults to 256):
            Number of channels of the mask head of Mask R-CNN.

        *Pose estimation*

        deconv_hidden_sizes (`list[int]`, defaults to `[256, 256, 256]`):
            Number of channels of each deconvolution, which doubles the resolution of the last stage's map.
        flip_pairs (`list[list[int]]`, *optional*):
            Pairs of keypoints that swap in a mirrored image (left and right), as indices into the `num_labels`
            keypoints of `id2label`. A keypoint may occur only once.
        edges (`list[list[int]]`, *optional*):
            Pairs of keypoints that a line connects in drawings of the skeleton.

    Raises:
        ValueError: if a value is invalid or does not fit the others; the message names the field, the expected values
            and the one given.

    Example:

    ```python
    >>> from clustr_hf import ClusTRConfig

    >>> ClusTRConfig.from_variant("tiny", num_labels=10).depths
    [1, 2, 6, 1]
    ```
    """

    model_type = "clustr"
    _auto_class: ClassVar[str | None] = "AutoConfig"

    # Backbone
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (3, 5, 13, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (8, 8, 4, 4)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-6
    embedding_layer_norm_eps: float = 1e-5
    use_absolute_position_embeddings: bool = False
    flatten_last_hidden_state: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    # Attention and clustering
    attention_type: str = "clustered"
    attention_top_k: int = 100
    reduction_ratios: list[Any] | tuple[Any, ...] = ((64, 16), (16, 4), (4, 1), (1,))
    num_neighbors: int = 5
    cluster_assignment: str = "density_parent"
    cluster_window: int | None = None
    cluster_sharing: str = "block"
    max_clusters: int | None = None
    cluster_count: str = "ratio"
    cluster_tolerance: float | int = 0.002

    # Semantic segmentation and detection
    fpn_hidden_size: int = 256

    # Semantic segmentation
    segmentation_head: str = "semantic_fpn"
    decoder_hidden_size: int = 128
    upernet_hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_hidden_size: int = 256
    auxiliary_loss_weight: float | int = 0.4
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    semantic_class_weights: list[float | int] | tuple[float | int, ...] | None = None

    # Object detection and instance segmentation
    anchor_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_aspect_ratios: list[float | int] | tuple[float | int, ...] = (0.5, 1.0, 2.0)
    detection_score_threshold: float | int = 0.05
    detection_nms_threshold: float | int = 0.5
    detections_per_image: int = 100
    roi_batch_size: int = 512
    box_head_hidden_size: int = 1024
    mask_head_hidden_size: int = 256

    # Pose estimation
    deconv_hidden_sizes: list[int] | tuple[int, ...] = (256, 256, 256)
    flip_pairs: list[Any] | tuple[Any, ...] | None = None
    edges: list[Any] | tuple[Any, ...] | None = None

    def __post_init__(self, **kwargs):
        # JSON has lists only; with lists from the start, a configuration equals its reloaded self.
        for name in (*PER_STAGE_FIELDS, *POSITIVE_LISTS):
            setattr(self, name, list(getattr(self, name)))
        if self.semantic_class_weights is not None:
            self.semantic_class_weights = list(self.semantic_class_weights)
        for name in ("flip_pairs", "edges"):
            setattr(self, name, _as_pairs(name, getattr(self, name)))
        swapped = [index for pair in self.flip_pairs or () for index in pair]
        if len(set(swapped)) < len(swapped):
            raise ValueError(f"`flip_pairs` must not repeat a keypoint, got {self.flip_pairs}.")
        self.reduction_ratios = [
            list(ratios) if isinstance(ratios, (list, tuple)) else [ratios] for ratios in self.reduction_ratios
        ]
        self.validate_architecture()
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """
        The content of `config.json`: as upstream, but without fields of other heads that have their default values.
        Every field is kept if `architectures` names no model of this package.
        """
        fields = super().to_diff_dict()
        names = self.architectures or ()
        if not names or not all(name in HEAD_FIELDS for name in names):
            return fields
        own = {field for name in names for field in HEAD_FIELDS[name]}
        for field in {field for head in HEAD_FIELDS.values() for field in head} - own:
            default = getattr(type(self), field)
            if fields.get(field) == (list(default) if isinstance(default, tuple) else default):
                fields.pop(field, None)
        return fields

    @property
    def num_hidden_layers(self) -> int:
        """`int`: Number of stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """
        `int`: Number of channels of the last stage, which are those of `last_hidden_state` and `pooler_output`. It is
        derived from `hidden_sizes` and cannot be set to another value.
        """
        return self.hidden_sizes[-1]

    @hidden_size.setter
    def hidden_size(self, hidden_size: int) -> None:
        if hidden_size != self.hidden_size:
            raise ValueError(
                f"`hidden_size` must be the last of `hidden_sizes`, {self.hidden_size}: set `hidden_sizes` instead, "
                f"got {hidden_size!r}."
            )

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> "ClusTRConfig":
        """
        Configuration of a named variant.

        Args:
            variant (`str`):
                `"tiny"`, `"small"` or `"base"`: ClusTR-T, -S, -B of the paper (Table A1), with 1000 labels by default.
                `"nano"`: a small model for images of 32 to 128 pixels, not from the paper, with total stride 16;
                for larger images pass `patch_sizes=[7, 3, 3, 3], strides=[4, 2, 2, 2]`.
            overrides:
                Fields of the configuration to change. With an `attention_type` other than `"clustered"`,
                `reduction_ratios` defaults to the largest ratio of the variant in each stage.

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

    def set_cluster_budget(self, tolerance: float | None) -> None:
        """
        Set `cluster_count` to `"content"` with this `cluster_tolerance` or, for None, to `"ratio"`.

        Raises:
            ValueError: if the tolerance is out of range, or the attention has no clusters; nothing is changed.
        """
        before = self.cluster_count, self.cluster_tolerance
        self.cluster_count = "ratio" if tolerance is None else "content"
        self.cluster_tolerance = self.cluster_tolerance if tolerance is None else tolerance
        try:
            self.validate_architecture()
        except ValueError:
            self.cluster_count, self.cluster_tolerance = before
            raise

    def validate_architecture(self) -> None:
        """Raise a `ValueError` that names the first invalid field; runs on creation and on saving."""
        self._validate_lengths()
        self._validate_stage_values()
        self._validate_scalars()
        if self.attention_type in GRID_TYPES:
            self._validate_grid()
        if self.attention_type != "clustered":
            self._refuse_cluster_options()

    def _validate_lengths(self):
        expected = len(self.depths)
        if expected == 0:
            raise ValueError("`depths` must have at least one stage, got an empty list.")
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
                    f"`reduction_ratios` must be one square of an integer in every stage with `attention_type` "
                    f"{self.attention_type!r}, got {ratios} in stage {stage}."
                )

    def _refuse_cluster_options(self):
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
        if not (_is_real(self.cluster_tolerance) and 0 <= self.cluster_tolerance <= 1):
            raise ValueError(f"`cluster_tolerance` must be in [0, 1], got {self.cluster_tolerance}.")
        if not 0 < self.detection_nms_threshold <= 1:
            raise ValueError(f"`detection_nms_threshold` must be in (0, 1], got {self.detection_nms_threshold}.")
        if not (_is_real(self.auxiliary_loss_weight) and self.auxiliary_loss_weight >= 0):
            raise ValueError(f"`auxiliary_loss_weight` must not be negative, got {self.auxiliary_loss_weight}.")
        weights = self.semantic_class_weights
        if weights is not None and not (weights and all(_is_real(w) and w >= 0 for w in weights) and any(weights)):
            raise ValueError(f"`semantic_class_weights` must be non-negative and not all 0, got {weights}.")


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _as_pairs(name: str, pairs: Sequence[Any] | None) -> list[list[int]] | None:
    """Pairs of indices as lists; raises a `ValueError` for anything else."""
    if pairs is None:
        return None
    for pair in pairs:
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[0] != pair[1]
        if not (is_pair and all(type(index) is int and index >= 0 for index in pair)):
            raise ValueError(f"`{name}` must hold pairs of two different, non-negative keypoint indices, got {pair!r}.")
    return [list(pair) for pair in pairs]


def _require_positive(name: str, values: Sequence[Any]):
    if not all(_is_real(value) and value > 0 for value in values):
        raise ValueError(f"`{name}` must be positive, got {values}.")


__all__ = ["ClusTRConfig"]
