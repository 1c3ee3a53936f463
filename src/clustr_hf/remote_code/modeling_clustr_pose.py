# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Top-down pose estimation with ClusTR (section 4.4 of the paper): one heatmap per keypoint of the person in a crop.

B crops of H x W pixels, K keypoints (`num_labels`); heatmaps (B, K, h, w), with stride 4 in the paper.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_clustr import ClusTRConfig
from .modeling_clustr_dense import ClusTRDensePredictor


@dataclass
class ClusTRPoseEstimatorOutput(ModelOutput):
    """
    Output of [`ClusTRForPoseEstimation`].

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Mean squared error of the heatmaps.
        heatmaps (`torch.Tensor` of shape `(B, num_labels, h, w)`):
            Predicted heatmaps; the peak is near 1. h and w are H and W divided by the stride of the heatmaps (4 in the
            paper), rounded up.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`].
    """

    loss: torch.Tensor | None = None
    heatmaps: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None


def make_pose_head(config: ClusTRConfig) -> nn.Sequential:
    """
    Simple Baselines (Xiao et al. 2018): deconvolutions (4x4, stride 2, batch norm, ReLU) and a 1x1 convolution.

    (B, C, h, w) -> (B, K, h * 2^n, w * 2^n) for n deconvolutions.
    """
    layers, channels = [], config.hidden_sizes[-1]
    for hidden_size in config.deconv_hidden_sizes:
        deconvolution = nn.ConvTranspose2d(channels, hidden_size, kernel_size=4, stride=2, padding=1, bias=False)
        layers += [deconvolution, nn.BatchNorm2d(hidden_size), nn.ReLU()]
        channels = hidden_size
    return nn.Sequential(*layers, nn.Conv2d(channels, config.num_labels, kernel_size=1))


class ClusTRForPoseEstimation(ClusTRDensePredictor):
    """ClusTR with Simple Baselines' head, which predicts a heatmap for each of `config.num_labels` keypoints."""

    _auto_class = "AutoModelForPoseEstimation"
    _auto_map = {
        **ClusTRDensePredictor._auto_map,
        "AutoModelForPoseEstimation": "modeling_clustr_pose.ClusTRForPoseEstimation",
    }
    _custom_pipelines = {
        "keypoint-detection": {
            "impl": "pipeline_clustr_pose.ClusTRKeypointDetectionPipeline",
            "pt": ["AutoModelForPoseEstimation"],
        }
    }

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        for name in ("flip_pairs", "edges"):
            _check_pairs(name, getattr(config, name) or (), config.num_labels)
        self.head = make_pose_head(config)
        self.post_init()

    @property
    def heatmap_stride(self) -> float:
        """Stride of the heatmaps in pixels of the crop."""
        return math.prod(self.config.strides) / 2 ** len(self.config.deconv_hidden_sizes)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise the head as Simple Baselines does: heatmaps start near 0."""
        super()._init_weights(module)
        if isinstance(module, (nn.ConvTranspose2d, nn.Conv2d)) and any(module is layer for layer in self.head):
            init.normal_(module.weight, std=0.001)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        label_weights: torch.Tensor | None = None,
        flip_pairs: torch.Tensor | Sequence[Sequence[int]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClusTRPoseEstimatorOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                Normalised crops of one person each, with sides of at least the total stride (32). An empty batch
                (B = 0) has empty heatmaps and no loss.
            labels (`torch.Tensor` of shape `(B, num_labels, h, w)`, *optional*):
                Target heatmaps in [0, 1], of the size of the predicted ones.
            label_weights (`torch.Tensor` of shape `(B, num_labels)`, or one that broadcasts to the shape of `labels`,
            *optional*):
                Factor of the error of each heatmap, applied before squaring: 1 for annotated keypoints, 0 for others.
                The mean is over all heatmaps, annotated or not (JointsMSE).
            flip_pairs (`list[list[int]]` or `torch.LongTensor` of shape `(pairs, 2)`, *optional*):
                Pairs of left and right keypoints (`config.flip_pairs`; may be empty). Pass them if `pixel_values` are
                mirrored horizontally: the heatmaps are mirrored back and left and right are swapped. The mean of these
                heatmaps and those of the original crops is the flip test. With None, `pixel_values` are not mirrored.
                `torch.compile` without graph breaks requires a list.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` as in [`ClusTRModel`].

        Returns:
            [`ClusTRPoseEstimatorOutput`].

        Raises:
            ValueError: if `pixel_values` have the wrong rank, number of channels, size or dtype, if `labels` or
                `label_weights` have the wrong shape, or if `flip_pairs` has invalid indices.
        """
        self.clustr._check_pixel_values(pixel_values)
        height, width = (math.ceil(extent / self.heatmap_stride) for extent in pixel_values.shape[-2:])
        if pixel_values.shape[0] == 0:  # images without people
            return ClusTRPoseEstimatorOutput(
                heatmaps=pixel_values.new_zeros((0, self.config.num_labels, height, width))
            )
        stage_maps, outputs = self._stage_maps(pixel_values, **kwargs)
        heatmaps = self.head(stage_maps[-1])[..., :height, :width]
        if flip_pairs is not None:
            heatmaps = flip_back(heatmaps, flip_pairs)
        return ClusTRPoseEstimatorOutput(
            loss=None if labels is None else joints_mse(heatmaps, labels, label_weights),
            heatmaps=heatmaps,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cluster_indices=outputs.cluster_indices,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As [`ClusTRPreTrainedModel`]'s, and with the pipeline of the task, which the configuration names."""
        # This import makes transformers copy, and later download, the pipeline's file with this one.
        from .pipeline_clustr_pose import ClusTRKeypointDetectionPipeline  # noqa: F401

        super().save_pretrained(save_directory, *args, **kwargs)


def joints_mse(
    heatmaps: torch.Tensor, targets: torch.Tensor, target_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of heatmaps (B, K, h, w) in at least float32; the weights scale the errors before squaring."""
    if targets.shape != heatmaps.shape:
        raise ValueError(
            f"`labels` must have the shape of the heatmaps, {tuple(heatmaps.shape)}, got {tuple(targets.shape)}."
        )
    error = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32)) - targets
    if target_weights is not None:
        if target_weights.ndim == 2:
            target_weights = target_weights[..., None, None]
        try:
            error = error * target_weights.expand_as(error)
        except RuntimeError as mismatch:
            raise ValueError(
                f"`label_weights` must have shape {tuple(heatmaps.shape[:2])} or one that broadcasts to that of the "
                f"heatmaps, {tuple(heatmaps.shape)}, got {tuple(target_weights.shape)}."
            ) from mismatch
    return error.square().mean()


def flip_back(heatmaps: torch.Tensor, flip_pairs: torch.Tensor | Sequence[Sequence[int]]) -> torch.Tensor:
    """Heatmaps (B, K, h, w) of a mirrored image -> of the original image: mirrored back, left and right swapped."""
    pairs = flip_pairs.tolist() if isinstance(flip_pairs, torch.Tensor) else flip_pairs
    order = torch.tensor(mirror_order(pairs, heatmaps.shape[1]), device=heatmaps.device)
    return heatmaps[:, order].flip(-1)


def mirror_order(flip_pairs: Sequence[Sequence[int]], num_keypoints: int) -> list[int]:
    """For each keypoint the index of the keypoint that it becomes in a mirrored image."""
    _check_pairs("flip_pairs", flip_pairs, num_keypoints)
    order = list(range(num_keypoints))
    for first, second in flip_pairs:
        if order[first] != first or order[second] != second:
            raise ValueError(f"`flip_pairs` must not repeat a keypoint, got {first, second} after another pair.")
        order[first], order[second] = second, first
    return order


def _check_pairs(name: str, pairs: Sequence[Sequence[int]], num_keypoints: int):
    for pair in pairs:
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not is_pair or not all(isinstance(index, int) and 0 <= index < num_keypoints for index in pair):
            raise ValueError(f"`{name}` must hold pairs of keypoint indices in [0, {num_keypoints}), got {pair}.")


__all__ = ["ClusTRForPoseEstimation", "ClusTRPoseEstimatorOutput", "flip_back", "joints_mse", "mirror_order"]
