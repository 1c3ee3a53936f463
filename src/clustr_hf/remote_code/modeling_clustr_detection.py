# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Object detection and instance segmentation with ClusTR (section 4.3 of the paper): RetinaNet and Mask R-CNN.

Pyramid, anchors, heads, losses, sampling and suppression are torchvision's; here they get the maps of our stages and
the interface of transformers' DETR. B images of H x W pixels, K classes, A anchors, D detections. Sizes are
(height, width). Boxes are corners (x0, y0, x1, y1) in pixels inside, and centre, width and height as shares of the
image, without its padding, outside.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import accumulate
from numbers import Integral

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_clustr import ClusTRConfig
from .devices_clustr import default_device
from .modeling_clustr_dense import ClusTRDensePredictor, image_sizes, pad_to, warn_of_padding
from .modeling_clustr_torchvision import (
    ClusTRAnchorGenerator,
    ClusTRRoIAlign,
    OwnRandomNumbers,
    at_least_float32,
    init_like_torchvision,
    upcast_output,
    with_attributes,
)


# RetinaNet (Lin et al. 2017): anchors of a level as multiples of its size.
OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
# Sides of the grids to which Mask R-CNN pools a proposal, for its box and for its mask (He et al. 2017).
BOX_GRID, MASK_GRID = 7, 14


@dataclass
class ClusTRDetectionOutput(ModelOutput):
    """
    Output of [`ClusTRForObjectDetection`]. The order of the fields is that of transformers' DETR.

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, with `labels`):
            Focal loss `classification` and L1 loss `bbox_regression`, both as torchvision's RetinaNet has them.
        logits (`torch.FloatTensor` of shape `(B, A, num_labels)`):
            Score of each class for each anchor, before the sigmoid.
        pred_boxes (`torch.FloatTensor` of shape `(B, A, 4)`):
            Box of each anchor, (centre x, centre y, width, height) as shares of the image without its padding; may
            reach beyond the image. `post_process_object_detection` of the image processor makes detections of them.
        level_sizes (`torch.LongTensor` of shape `(B, number of levels)`):
            How many anchors each level of the pyramid has, the finest first; those after them are padding, where
            images of several sizes were seen one by one.
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


@dataclass
class ClusTRInstanceSegmentationOutput(ModelOutput):
    """
    Output of [`ClusTRForInstanceSegmentation`].

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, with `labels`):
            `loss_objectness` and `loss_rpn_box_reg` of the proposals, `loss_classifier`, `loss_box_reg` and `loss_mask`
            of the heads, all as torchvision's Mask R-CNN has them.
        logits (`torch.FloatTensor` of shape `(B, D, num_labels)`, not in training with `labels`):
            For each detection the score of its class before the sigmoid, and the lowest float for all other classes and
            where an image has fewer than D detections. D is the largest number of an image in the batch.
        pred_boxes (`torch.FloatTensor` of shape `(B, D, 4)`, not in training with `labels`):
            (centre x, centre y, width, height) as shares of the image without its padding.
        pred_masks (`torch.FloatTensor` of shape `(B, D, 28, 28)`, not in training with `labels`):
            Probability that a cell of a grid belongs to the object; `post_process_instance_segmentation` of the image
            processor lays it into the image.
        mask_boxes (`torch.FloatTensor` of shape `(B, D, 4)`, not in training with `labels`):
            What the grid covers, as `pred_boxes`: half a pixel of the input right of and below the box, since
            torchvision's RoIAlign takes a pixel's value to be that of its upper left corner. The grid says nothing
            about the half pixel of the box before it.
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


class ClusTRDetector(ClusTRDensePredictor):
    """
    What both detectors share: labels in, images of several sizes, merged outputs.

    `detector` is torchvision's model, whose "backbone" is the feature pyramid on our maps.
    """

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self.detector = self._make_detector(config)
        # Boxes of half precision are off by pixels, so what the heads say is taken in float32.
        for head in self._heads():
            head.register_forward_hook(upcast_output)
        self.post_init()

    def _make_detector(self, config: ClusTRConfig) -> nn.Module:
        raise NotImplementedError

    def _heads(self) -> list[nn.Module]:
        raise NotImplementedError

    def _detect(
        self,
        pixel_values: torch.Tensor,
        sizes: list[tuple[int, int]],
        targets: list[dict[str, torch.Tensor]] | None,
        **kwargs,
    ) -> ModelOutput:
        """Output for images (B, num_channels, H, W) in one pass, whose own sizes may be smaller."""
        raise NotImplementedError

    def _make_pyramid(self, in_channels: Sequence[int], extra_blocks: ExtraFPNBlock) -> FeaturePyramidNetwork:
        pyramid = FeaturePyramidNetwork(list(in_channels), self.config.fpn_hidden_size, extra_blocks)
        pyramid.out_channels = self.config.fpn_hidden_size  # where torchvision's detectors look for it
        return pyramid

    def _anchor_generator(self, octaves: Sequence[float], num_levels: int) -> AnchorGenerator:
        sizes = self.config.anchor_sizes
        if len(sizes) != num_levels:
            raise ValueError(f"`anchor_sizes` must have one entry for each of {num_levels} levels, got {list(sizes)}.")
        ratios = tuple(self.config.anchor_aspect_ratios)
        return ClusTRAnchorGenerator(
            tuple(tuple(int(size * octave) for octave in octaves) for size in sizes), (ratios,) * num_levels
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            for parent in self.detector.modules():
                if any(module is part for part in parent.modules()):
                    init_like_torchvision(module, parent)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                Normalised images of any size; they are padded with 0 to multiples of the product of the strides (32).
            pixel_mask (`torch.LongTensor` of shape `(B, H, W)`, *optional*):
                1 where there is an image, from its upper left corner on, 0 where the processor has padded it. Without
                it images are of the `size` in their labels, and where there is none of either they fill
                `pixel_values`. In evaluation images of different sizes are seen one by one, so that each has the output
                that it has in any other batch; in training padding is seen, but nothing is predicted or to be found
                there.
            labels (`list[dict[str, torch.Tensor]]`, *optional*):
                For each image its n objects, as the image processor gives them: `class_labels` `(n,)`, int64 in
                `[0, num_labels)`; `boxes` `(n, 4)`, float, (centre x, centre y, width, height) as shares of the image
                without its padding; for instance segmentation `masks` `(n, H, W)`, bool or 0 and 1; and perhaps `size`
                `(2,)`, (height, width) of the image without its padding in pixels of `pixel_values`. n may be 0. Boxes
                without area, and objects with `iscrowd` 1, do not count.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` as in [`ClusTRModel`]; not where images
                are seen one by one.

        Returns:
            [`ClusTRDetectionOutput`] or [`ClusTRInstanceSegmentationOutput`]. Boxes are shares of the images without
            their padding, if `pixel_mask` or `labels` say what that is, and otherwise of `pixel_values`: predictions of
            padded images need `pixel_mask`, or boxes that are scaled to the original image are too small.

        Raises:
            ValueError: for a wrong rank, size or dtype of `pixel_values`, `pixel_mask` or `labels`, for labels out of
                range, and if `pixel_mask` and the `size` of a label differ.
        """
        sizes = _true_sizes(pixel_values, pixel_mask, labels)
        with default_device(pixel_values.device):
            return self._detect_in_sizes(pixel_values, sizes, labels, **kwargs)

    def _detect_in_sizes(
        self,
        pixel_values: torch.Tensor,
        sizes: list[tuple[int, int]],
        labels: Sequence[Mapping[str, torch.Tensor]] | None,
        **kwargs,
    ) -> ModelOutput:
        """Output for padded images: in one pass, or one by one where they differ in size in evaluation."""
        targets = None
        if labels is not None:
            padded_size = pixel_values.shape[-2:]
            targets = [self._make_target(*pair, padded_size, index) for index, pair in enumerate(zip(labels, sizes))]
        if not self.training and len(set(sizes)) > 1:
            self._refuse_recorded(kwargs)
            parts = []
            for index, (height, width) in enumerate(sizes):
                image = pixel_values[index : index + 1, :, :height, :width]
                target = None if targets is None else targets[index : index + 1]
                parts.append(self._detect(self._pad(image), sizes[index : index + 1], target, **kwargs))
            return _merge(parts)
        height, width = (max(extents) for extents in zip(*sizes))
        return self._detect(self._pad(pixel_values[..., :height, :width]), sizes, targets, **kwargs)

    def _pad(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        As torchvision pads, so that the maps of all stages have whole strides, which its anchors need. With 0 and not
        with a mirror, as for segmentation: in that, objects at the margin would be found twice.
        """
        return pad_to(pixel_values, self._whole_strides(pixel_values.shape[-2:]))

    def _pyramid(self, pixel_values: torch.Tensor, first_stage: int, **kwargs) -> tuple[OrderedDict, ModelOutput]:
        """Levels of the pyramid by name, the finest first, and the output of the backbone."""
        stage_maps, features = self._stage_maps(pixel_values, **kwargs)
        named = OrderedDict((str(level), maps) for level, maps in enumerate(stage_maps[first_stage:]))
        return self.detector.backbone(named), features

    def _make_target(
        self, label: Mapping, size: tuple[int, int], padded_size: tuple[int, int], index: int
    ) -> dict[str, torch.Tensor]:
        """
        An image's label as torchvision has it: `boxes` (n, 4), corners in pixels, and `labels` (n,) of the objects that
        count; `counts` says which ones do.
        """
        _check_label(label, self.config.num_labels, f"`labels[{index}]")
        classes, boxes, (height, width) = label["class_labels"], at_least_float32(label["boxes"]), size
        boxes = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        counts = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        if "iscrowd" in label:
            counts &= label["iscrowd"] == 0
        return {"boxes": boxes[counts], "labels": classes[counts].long(), "counts": counts}


class ClusTRForObjectDetection(ClusTRDetector):
    """
    RetinaNet (Lin et al. 2017) on ClusTR: a pyramid on all stages but the first, two more levels, and two heads that
    every level passes, with 9 anchors at each place.
    """

    _auto_class = "AutoModelForObjectDetection"
    _auto_map = {
        **ClusTRDensePredictor._auto_map,
        "AutoModelForObjectDetection": "modeling_clustr_detection.ClusTRForObjectDetection",
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
        loss_dict = None if targets is None else self.detector.compute_loss(targets, outputs, anchors)
        boxes = self.detector.box_coder.decode(deltas.flatten(0, 1), anchors).view_as(deltas)
        num_anchors = self.detector.anchor_generator.num_anchors_per_location()
        level_sizes = [number * maps.shape[-2] * maps.shape[-1] for number, maps in zip(num_anchors, levels)]
        return ClusTRDetectionOutput(
            loss=None if loss_dict is None else sum(loss_dict.values()),
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=_to_shares(boxes, sizes),
            level_sizes=torch.tensor(level_sizes, device=logits.device).repeat(len(sizes), 1),
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            cluster_indices=features.get("cluster_indices"),
        )


class ClusTRForInstanceSegmentation(ClusTRDetector):
    """
    Mask R-CNN (He et al. 2017) on ClusTR: a pyramid on all stages and one more level, proposals from it, and for each
    proposal a head for class and box and one for the mask.
    """

    _auto_class = "AutoModelForInstanceSegmentation"
    _auto_map = {
        **ClusTRDensePredictor._auto_map,
        "AutoModelForInstanceSegmentation": "modeling_clustr_detection.ClusTRForInstanceSegmentation",
        # What the image-segmentation pipeline asks for.
        "AutoModelForImageSegmentation": "modeling_clustr_detection.ClusTRForInstanceSegmentation",
    }

    def _make_detector(self, config: ClusTRConfig) -> MaskRCNN:
        num_stages, num_classes = len(config.depths), config.num_labels + 1  # torchvision's class 0 is the background
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
                f"`labels[{index}]['masks']` must be bool, or 0 and 1, of shape {expected}, as many as boxes and of "
                f"the size of `pixel_values`, got {masks.dtype} of shape {tuple(masks.shape)}."
            )
        masks = masks[target["counts"], : size[0], : size[1]]
        return {**target, "labels": target["labels"] + 1, "masks": masks}

    def _detect(self, pixel_values, sizes, targets, **kwargs) -> ClusTRInstanceSegmentationOutput:
        pyramid, features = self._pyramid(pixel_values, first_stage=0, **kwargs)
        images = ImageList(pixel_values, sizes)
        loss_dict, predictions = None, {}
        if targets is not None:
            # The loss looks at a random sample of the proposals: in evaluation at the same one every time.
            with nullcontext() if self.training else OwnRandomNumbers(pixel_values.device):
                loss_dict = self._propose_and_look(images, pyramid, targets)[1]
        if targets is None or not self.training:
            predictions = self._collect(self._propose_and_look(images, pyramid, None)[0], sizes)
        return ClusTRInstanceSegmentationOutput(
            loss=None if loss_dict is None else sum(loss_dict.values()),
            loss_dict=loss_dict,
            **predictions,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            cluster_indices=features.get("cluster_indices"),
        )

    def _propose_and_look(
        self, images: ImageList, pyramid: OrderedDict, targets: list[dict[str, torch.Tensor]] | None
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """torchvision's detections of each image, or, with targets, its losses."""
        # torchvision's parts compute losses in training mode, and detections otherwise; all they hold behaves alike.
        rpn = with_attributes(self.detector.rpn, training=targets is not None)
        roi_heads = with_attributes(self._roi_heads(), training=targets is not None)
        proposals, proposal_losses = rpn(images, pyramid, targets)
        detections, losses = roi_heads(pyramid, proposals, images.image_sizes, targets)
        return detections, {**losses, **proposal_losses}

    def _roi_heads(self) -> nn.Module:
        """Those of the detector, with the limits that the configuration has now: it may have been changed."""
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
        """torchvision's detections as logits (B, D, K), boxes (B, D, 4) in shares and masks (B, D, 28, 28)."""
        logits, boxes, masks, mask_boxes = [], [], [], []
        for found, size in zip(detections, sizes):
            scores = found["scores"]
            rows = scores.new_full((len(scores), self.config.num_labels), torch.finfo(scores.dtype).min)
            rows[torch.arange(len(scores), device=scores.device), found["labels"] - 1] = scores.logit(
                eps=torch.finfo(scores.dtype).eps
            )
            logits.append(rows)
            boxes.append(_to_shares(found["boxes"][None], [size])[0])
            mask_boxes.append(_to_shares(found["boxes"][None] + 0.5, [size])[0])
            masks.append(found["masks"][:, 0])
        lowest = torch.finfo(logits[0].dtype).min
        return {
            "logits": pad_sequence(logits, batch_first=True, padding_value=lowest),
            "pred_boxes": pad_sequence(boxes, batch_first=True),
            "pred_masks": pad_sequence(masks, batch_first=True),
            "mask_boxes": pad_sequence(mask_boxes, batch_first=True),
        }


def _true_sizes(
    pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, labels: Sequence[Mapping] | None
) -> list[tuple[int, int]]:
    """Size of each image without its padding: by the mask, or else by its label, or else that of `pixel_values`."""
    sizes = image_sizes(pixel_mask, pixel_values)
    if labels is None:
        if pixel_mask is None:
            warn_of_padding(pixel_values)
        return sizes
    is_list = not isinstance(labels, (Mapping, torch.Tensor)) and len(labels) == len(sizes)
    if not is_list or not all(isinstance(label, Mapping) for label in labels):
        raise ValueError(f"`labels` must be a list with one entry for each of {len(sizes)} images, got {labels}.")
    for index, label in enumerate(labels):
        if label.get("size") is None:
            continue
        size = _check_size(label["size"], pixel_values.shape[-2:], f"`labels[{index}]['size']`")
        if pixel_mask is not None and size != sizes[index]:
            raise ValueError(
                f"`labels[{index}]['size']` must be the size of the image by `pixel_mask`, {sizes[index]}, got {size}."
            )
        sizes[index] = size
    return sizes


def _check_size(size: torch.Tensor | Sequence[int], padded_size: Sequence[int], name: str) -> tuple[int, int]:
    """The size as two integers, or a `ValueError` that begins with the name unless it is within the padded size."""
    values = size.tolist() if hasattr(size, "tolist") else size
    is_pair = isinstance(values, (list, tuple)) and len(values) == 2 and all(isinstance(v, Integral) for v in values)
    if not is_pair or not all(1 <= extent <= limit for extent, limit in zip(values, padded_size)):
        raise ValueError(
            f"{name} must be the (height, width) of the image without its padding, integers within those of "
            f"`pixel_values`, {tuple(padded_size)}, got {values}."
        )
    return int(values[0]), int(values[1])


def _check_label(label: Mapping, num_labels: int, name: str):
    """Raise a `ValueError` that begins with the name unless classes, boxes and crowds are tensors that fit together."""
    for key in ("class_labels", "boxes"):
        if not isinstance(label.get(key), torch.Tensor):
            raise ValueError(f"{name}` must have a tensor {key!r}, got {sorted(label)}.")
    classes, boxes, crowds = label["class_labels"], label["boxes"], label.get("iscrowd")
    is_whole = not classes.is_floating_point() and classes.dtype != torch.bool
    if classes.ndim != 1 or not is_whole or not ((classes >= 0) & (classes < num_labels)).all():
        raise ValueError(f"{name}['class_labels']` must be integers in [0, {num_labels}) of shape (n,), got {classes}.")
    if boxes.shape != (len(classes), 4) or not boxes.is_floating_point():
        raise ValueError(
            f"{name}['boxes']` must be floats of shape ({len(classes)}, 4), as many as class labels, got "
            f"{boxes.dtype} of shape {tuple(boxes.shape)}."
        )
    if not ((boxes >= -1) & (boxes <= 2)).all():  # some leave the image; not so for NaN
        raise ValueError(f"{name}['boxes']` must be shares of the image, not pixels, got {boxes}.")
    if crowds is not None and crowds.shape != classes.shape:
        raise ValueError(f"{name}['iscrowd']` must have shape ({len(classes)},), got {tuple(crowds.shape)}.")


def _to_shares(boxes: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Corners in pixels (B, n, 4) -> centre, width and height as shares of each image's size."""
    scales = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return box_convert(boxes, "xyxy", "cxcywh") / scales[:, None]


def _merge(parts: Sequence[ModelOutput]) -> ModelOutput:
    """One output of those of single images: losses are averaged, the rest is padded to the longest."""
    merged = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is None:
            continue
        if field.name == "loss":
            merged["loss"] = torch.stack(values).mean()
        elif field.name == "loss_dict":
            merged["loss_dict"] = {name: torch.stack([v[name] for v in values]).mean() for name in values[0]}
        else:
            fill = torch.finfo(values[0].dtype).min if field.name == "logits" else 0.0
            merged[field.name] = pad_sequence([v[0] for v in values], batch_first=True, padding_value=fill)
    return type(parts[0])(**merged)


__all__ = [
    "ClusTRDetectionOutput",
    "ClusTRForInstanceSegmentation",
    "ClusTRForObjectDetection",
    "ClusTRInstanceSegmentationOutput",
]
