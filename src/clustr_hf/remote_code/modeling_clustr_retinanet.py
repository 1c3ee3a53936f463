# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
RetinaNet (Lin et al. 2017) on ClusTR, for object detection (section 4.3 of the paper).

Head, focal loss and box loss are torchvision's `RetinaNet`. B images, K classes, A anchors; sizes are (height, width).
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers.utils import ModelOutput

from .configuration_clustr import ClusTRConfig
from .modeling_clustr_dense import ClusTRDensePredictor
from .modeling_clustr_detection import ClusTRDetector, relative_boxes


# Anchors of a pyramid level as multiples of its anchor size.
OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


@dataclass
class ClusTRDetectionOutput(ModelOutput):
    """
    Output of [`ClusTRForObjectDetection`]. The fields are ordered as in transformers' DETR.

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, with `labels`):
            torchvision's focal loss `classification` and L1 loss `bbox_regression`.
        logits (`torch.FloatTensor` of shape `(B, A, num_labels)`):
            Score of each class for each anchor, before the sigmoid.
        pred_boxes (`torch.FloatTensor` of shape `(B, A, 4)`):
            Box of each anchor, (centre x, centre y, width, height) relative to the size of the image without its
            padding. Boxes may extend beyond the image. `post_process_object_detection` of the image processor turns
            them into detections.
        level_sizes (`torch.LongTensor` of shape `(B, number of levels)`):
            Number of anchors on each level of the pyramid, finest first. When images of different sizes are processed
            one at a time, any further anchors are padding.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`].
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    level_sizes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None


class ClusTRForObjectDetection(ClusTRDetector):
    """
    RetinaNet on ClusTR: a feature pyramid on all stages but the first plus two coarser levels, with two heads that are
    shared by all levels and 9 anchors per location.
    """

    _auto_class = "AutoModelForObjectDetection"
    _auto_map = {
        **ClusTRDensePredictor._auto_map,
        "AutoModelForObjectDetection": "modeling_clustr_retinanet.ClusTRForObjectDetection",
    }

    def _make_detector(self, config: ClusTRConfig) -> RetinaNet:
        pyramid = self._make_pyramid(
            config.hidden_sizes[1:], LastLevelP6P7(config.hidden_sizes[-1], config.fpn_hidden_size)
        )
        anchors = self._anchor_generator(OCTAVES, len(config.depths) + 1)
        return RetinaNet(pyramid, num_classes=config.num_labels, anchor_generator=anchors)

    def _heads(self) -> list[nn.Module]:
        return [self.detector.head]

    def _detect(self, pixel_values, sizes, targets, **kwargs) -> ClusTRDetectionOutput:
        pyramid, features = self._pyramid(pixel_values, first_stage=1, **kwargs)
        levels = list(pyramid.values())
        outputs = self.detector.head(levels)
        logits, deltas = outputs["cls_logits"], outputs["bbox_regression"]
        anchors = self.detector.anchor_generator(ImageList(pixel_values, sizes), levels)
        # The loss: focal loss of the classes and L1 loss of the boxes.
        loss_dict = None if targets is None else self.detector.compute_loss(targets, outputs, anchors)
        boxes = self.detector.box_coder.decode(deltas.flatten(0, 1), anchors).view_as(deltas)
        num_anchors = self.detector.anchor_generator.num_anchors_per_location()
        level_sizes = [number * maps.shape[-2] * maps.shape[-1] for number, maps in zip(num_anchors, levels)]
        return ClusTRDetectionOutput(
            loss=None if loss_dict is None else sum(loss_dict.values()),
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=relative_boxes(boxes, sizes),
            level_sizes=torch.tensor(level_sizes, device=logits.device).repeat(len(sizes), 1),
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            cluster_indices=features.get("cluster_indices"),
        )


__all__ = ["ClusTRDetectionOutput", "ClusTRForObjectDetection"]
