# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Mask R-CNN (He et al. 2017) on ClusTR, for instance segmentation (section 4.3 of the paper).

Region proposals, heads and losses are those of torchvision's `MaskRCNN`; `_run_detector` calls them.

B images, K classes, D detections; sizes are (height, width).
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers.utils import ModelOutput

from .configuration_clustr import ClusTRConfig
from .modeling_clustr_dense import ClusTRDensePredictor
from .modeling_clustr_detection import ClusTRDetector, relative_boxes
from .modeling_clustr_torchvision import ClusTRRoIAlign, OwnRandomNumbers, with_attributes


# Sides of the grids that RoIAlign pools a proposal to, for the box head and for the mask head.
BOX_GRID, MASK_GRID = 7, 14


@dataclass
class ClusTRInstanceSegmentationOutput(ModelOutput):
    """
    Output of [`ClusTRForInstanceSegmentation`].

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, with `labels`):
            torchvision's losses of Mask R-CNN: `loss_objectness` and `loss_rpn_box_reg` of the region proposals, and
            `loss_classifier`, `loss_box_reg` and `loss_mask` of the heads.
        logits (`torch.FloatTensor` of shape `(B, D, num_labels)`, not in training with `labels`):
            For each detection the score of its class before the sigmoid, and the lowest float for all other classes.
            D is the largest number of detections in an image of the batch; images with fewer are padded with the
            lowest float.
        pred_boxes (`torch.FloatTensor` of shape `(B, D, 4)`, not in training with `labels`):
            (centre x, centre y, width, height) relative to the size of the image without its padding.
        pred_masks (`torch.FloatTensor` of shape `(B, D, 28, 28)`, not in training with `labels`):
            Probability of each grid cell to belong to the object. `post_process_instance_segmentation` of the image
            processor pastes the grid into the image.
        mask_boxes (`torch.FloatTensor` of shape `(B, D, 4)`, not in training with `labels`):
            Area that the grid covers, in the format of `pred_boxes`. It is the box shifted by half an input pixel to
            the right and down, because torchvision's RoIAlign locates the value of a pixel at its upper left corner.
            The grid has no information about the first half pixel of the box.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`].
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    mask_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None


class ClusTRForInstanceSegmentation(ClusTRDetector):
    """
    Mask R-CNN on ClusTR: a feature pyramid on all stages plus one coarser level, region proposals from it, and for each
    proposal a head for class and box and a head for the mask.
    """

    _auto_class = "AutoModelForInstanceSegmentation"
    _auto_map = {
        **ClusTRDensePredictor._auto_map,
        "AutoModelForInstanceSegmentation": "modeling_clustr_mask_rcnn.ClusTRForInstanceSegmentation",
        # Requested by the image-segmentation pipeline.
        "AutoModelForImageSegmentation": "modeling_clustr_mask_rcnn.ClusTRForInstanceSegmentation",
    }

    def _make_detector(self, config: ClusTRConfig) -> MaskRCNN:
        num_stages, num_classes = len(config.depths), config.num_labels + 1  # torchvision's class 0 is background
        channels, strides = config.fpn_hidden_size, list(accumulate(config.strides, operator.mul))
        return MaskRCNN(
            self._make_pyramid(config.hidden_sizes, LastLevelMaxPool()),
            rpn_anchor_generator=self._anchor_generator((1.0,), num_stages + 1),
            box_roi_pool=ClusTRRoIAlign(strides, BOX_GRID),
            box_head=TwoMLPHead(channels * BOX_GRID**2, config.box_head_hidden_size),
            box_predictor=FastRCNNPredictor(config.box_head_hidden_size, num_classes),
            box_score_thresh=config.detection_score_threshold,
            box_nms_thresh=config.detection_nms_threshold,
            box_detections_per_img=config.detections_per_image,
            box_batch_size_per_image=config.roi_batch_size,
            mask_roi_pool=ClusTRRoIAlign(strides, MASK_GRID),
            mask_head=MaskRCNNHeads(channels, (config.mask_head_hidden_size,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(config.mask_head_hidden_size, config.mask_head_hidden_size, num_classes),
        )

    def _heads(self) -> list[nn.Module]:
        roi_heads = self.detector.roi_heads
        return [self.detector.rpn.head, roi_heads.box_predictor, roi_heads.mask_predictor]

    def _make_target(
        self, label: Mapping, size: tuple[int, int], padded_size: tuple[int, int], index: int
    ) -> dict[str, torch.Tensor]:
        target = super()._make_target(label, size, padded_size, index)
        if "masks" not in label:
            raise ValueError(
                f"`labels[{index}]` must have 'masks': call the image processor with `return_segmentation_masks=True`."
            )
        masks, expected = label["masks"], (len(label["boxes"]), *padded_size)
        if masks.shape != expected or not ((masks == 0) | (masks == 1)).all():
            raise ValueError(
                f"`labels[{index}]['masks']` must be bool, or 0 and 1, of shape {expected}, one mask per box and of "
                f"the size of `pixel_values`, got {masks.dtype} of shape {tuple(masks.shape)}."
            )
        masks = masks[target["valid"], : size[0], : size[1]]
        return {**target, "labels": target["labels"] + 1, "masks": masks}

    def _detect(self, pixel_values, sizes, targets, **kwargs) -> ClusTRInstanceSegmentationOutput:
        pyramid, features = self._pyramid(pixel_values, first_stage=0, **kwargs)
        images = ImageList(pixel_values, sizes)
        loss_dict, predictions = None, {}
        if targets is not None:
            # The loss is computed on a random sample of the proposals; in evaluation the sample is always the same.
            with nullcontext() if self.training else OwnRandomNumbers(pixel_values.device):
                loss_dict = self._run_detector(images, pyramid, targets)[1]
        if targets is None or not self.training:
            predictions = self._collect(self._run_detector(images, pyramid, None)[0], sizes)
        return ClusTRInstanceSegmentationOutput(
            loss=None if loss_dict is None else sum(loss_dict.values()),
            loss_dict=loss_dict,
            **predictions,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            cluster_indices=features.get("cluster_indices"),
        )

    def _run_detector(
        self, images: ImageList, pyramid: OrderedDict, targets: list[dict[str, torch.Tensor]] | None
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """Detections of each image and no losses, or, with targets, the losses of Mask R-CNN and no detections."""
        # torchvision's modules return losses in training mode and detections otherwise; nothing else depends on it.
        rpn = with_attributes(self.detector.rpn, training=targets is not None)
        roi_heads = with_attributes(self._roi_heads(), training=targets is not None)
        proposals, proposal_losses = rpn(images, pyramid, targets)
        detections, losses = roi_heads(pyramid, proposals, images.image_sizes, targets)
        return detections, {**losses, **proposal_losses}

    def _roi_heads(self) -> nn.Module:
        """The detector's RoI heads with the current limits of the configuration, which may have changed since."""
        config, roi_heads = self.config, self.detector.roi_heads
        sampler = roi_heads.fg_bg_sampler
        if sampler.batch_size_per_image != config.roi_batch_size:
            sampler = type(sampler)(config.roi_batch_size, sampler.positive_fraction)
        return with_attributes(
            roi_heads,
            score_thresh=config.detection_score_threshold,
            nms_thresh=config.detection_nms_threshold,
            detections_per_img=config.detections_per_image,
            fg_bg_sampler=sampler,
        )

    def _collect(
        self, detections: Sequence[dict[str, torch.Tensor]], sizes: Sequence[tuple[int, int]]
    ) -> dict[str, torch.Tensor]:
        """torchvision's detections as logits (B, D, K), relative boxes (B, D, 4) and masks (B, D, 28, 28)."""
        logits, boxes, masks, mask_boxes = [], [], [], []
        for found, size in zip(detections, sizes):
            scores = found["scores"]
            rows = scores.new_full((len(scores), self.config.num_labels), torch.finfo(scores.dtype).min)
            rows[torch.arange(len(scores), device=scores.device), found["labels"] - 1] = scores.logit(
                eps=torch.finfo(scores.dtype).eps
            )
            logits.append(rows)
            boxes.append(relative_boxes(found["boxes"][None], [size])[0])
            mask_boxes.append(relative_boxes(found["boxes"][None] + 0.5, [size])[0])
            masks.append(found["masks"][:, 0])
        lowest = torch.finfo(logits[0].dtype).min
        return {
            "logits": pad_sequence(logits, batch_first=True, padding_value=lowest),
            "pred_boxes": pad_sequence(boxes, batch_first=True),
            "pred_masks": pad_sequence(masks, batch_first=True),
            "mask_boxes": pad_sequence(mask_boxes, batch_first=True),
        }


__all__ = ["ClusTRForInstanceSegmentation", "ClusTRInstanceSegmentationOutput"]
