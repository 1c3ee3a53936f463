# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Object detection and instance segmentation with ClusTR (section 4.3 of the paper): the base of both detectors.

[`~modeling_clustr_retinanet.ClusTRForObjectDetection`] is RetinaNet,
[`~modeling_clustr_mask_rcnn.ClusTRForInstanceSegmentation`] is Mask R-CNN. Their pyramids, anchors, heads, losses,
samplers and non-maximum suppression are torchvision's; this file feeds them the stage maps of ClusTR and gives them the
interface of transformers' DETR.

B images of H x W pixels, K classes, A anchors, D detections. Sizes are (height, width). Inside the model, boxes are
corners (x0, y0, x1, y1) in pixels. In labels and outputs, boxes are (centre x, centre y, width, height), relative to
the size of the image without its padding.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_clustr import ClusTRConfig
from .devices_clustr import default_device
from .modeling_clustr_dense import ClusTRDensePredictor, image_sizes, pad_to, warn_of_padding
from .modeling_clustr_torchvision import ClusTRAnchorGenerator, at_least_float32, init_like_torchvision, upcast_output


class ClusTRDetector(ClusTRDensePredictor):
    """
    A torchvision detector on the stage maps of ClusTR. Subclasses build the detector and run it.

    This class checks the labels, handles padded batches and merges outputs. `detector` is torchvision's model; its
    "backbone" is the feature pyramid, which takes the stage maps.
    """

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self.detector = self._make_detector(config)
        # In half precision boxes are off by several pixels, so the outputs of the heads are upcast to float32.
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
        """Output for images (B, num_channels, H, W) in a single pass; `sizes` are their sizes without padding."""
        raise NotImplementedError

    def _make_pyramid(self, in_channels: Sequence[int], extra_blocks: ExtraFPNBlock) -> FeaturePyramidNetwork:
        pyramid = FeaturePyramidNetwork(list(in_channels), self.config.fpn_hidden_size, extra_blocks)
        pyramid.out_channels = self.config.fpn_hidden_size  # torchvision's detectors read it here
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
                Normalised images of any size. They are zero-padded to multiples of the total stride (32).
            pixel_mask (`torch.LongTensor` of shape `(B, H, W)`, *optional*):
                1 for pixels of the image, which starts in the upper left corner, and 0 for the processor's padding.
                Without a mask, the `size` in the labels is used; without either, images fill `pixel_values`. In
                evaluation, images of different sizes are processed one at a time, so the output for an image does not
                depend on the rest of its batch. In training, the batch is processed padded, but the padding contains
                neither predictions nor targets.
            labels (`list[dict[str, torch.Tensor]]`, *optional*):
                For each image its n objects, as returned by the image processor: `class_labels` `(n,)`, int64 in
                `[0, num_labels)`; `boxes` `(n, 4)`, float, (centre x, centre y, width, height) relative to the size of
                the image without its padding; for instance segmentation also `masks` `(n, H, W)`, bool or 0 and 1;
                optionally `size` `(2,)`, (height, width) of the image without its padding, in pixels of
                `pixel_values`. n may be 0. Boxes without area and objects with `iscrowd=1` are ignored.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` as in [`ClusTRModel`]; not supported
                when images are processed one at a time.

        Returns:
            [`ClusTRDetectionOutput`] or [`ClusTRInstanceSegmentationOutput`]. Boxes are relative to the images without
            their padding if `pixel_mask` or `labels` give their sizes, and to `pixel_values` otherwise. With padded
            images pass `pixel_mask`; otherwise boxes that are scaled to the original images come out too small.

        Raises:
            ValueError: if `pixel_values`, `pixel_mask` or `labels` have the wrong rank, size or dtype, if labels are
                out of range, or if `pixel_mask` and the `size` of a label differ.
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
        """Output for padded images: in one pass, or image by image in evaluation if their sizes differ."""
        targets = None
        if labels is not None:
            padded_size = pixel_values.shape[-2:]
            targets = [self._make_target(*pair, padded_size, index) for index, pair in enumerate(zip(labels, sizes))]
        if not self.training and len(set(sizes)) > 1:
            self._reject_recorded(kwargs)
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
        Pad to whole strides, as torchvision does and as its anchors require. Zeros, and not a reflection as for
        segmentation, because objects at the border would be detected twice in a reflection.
        """
        return pad_to(pixel_values, self._whole_strides(pixel_values.shape[-2:]))

    def _pyramid(self, pixel_values: torch.Tensor, first_stage: int, **kwargs) -> tuple[OrderedDict, ModelOutput]:
        """Pyramid levels by name, finest first, and the output of the backbone."""
        stage_maps, features = self._stage_maps(pixel_values, **kwargs)
        named = OrderedDict((str(level), maps) for level, maps in enumerate(stage_maps[first_stage:]))
        return self.detector.backbone(named), features

    def _make_target(
        self, label: Mapping, size: tuple[int, int], padded_size: tuple[int, int], index: int
    ) -> dict[str, torch.Tensor]:
        """
        The label of an image as torchvision expects it: `boxes` (n, 4), corners in pixels, and `labels` (n,), of the
        valid objects only; `valid` is the mask of these among all objects of the label.
        """
        _check_label(label, self.config.num_labels, f"`labels[{index}]")
        classes, boxes, (height, width) = label["class_labels"], at_least_float32(label["boxes"]), size
        boxes = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        valid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        if "iscrowd" in label:
            valid &= label["iscrowd"] == 0
        return {"boxes": boxes[valid], "labels": classes[valid].long(), "valid": valid}


def _true_sizes(
    pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, labels: Sequence[Mapping] | None
) -> list[tuple[int, int]]:
    """Size of each image without its padding, from the mask, else from its label, else from `pixel_values`."""
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
                f"`labels[{index}]['size']` must equal the image size in `pixel_mask`, {sizes[index]}, got {size}."
            )
        sizes[index] = size
    return sizes


def _check_size(size: torch.Tensor | Sequence[int], padded_size: Sequence[int], name: str) -> tuple[int, int]:
    """The size as two integers; raises a `ValueError` that starts with `name` unless it fits the padded size."""
    values = size.tolist() if hasattr(size, "tolist") else size
    is_pair = isinstance(values, (list, tuple)) and len(values) == 2 and all(isinstance(v, Integral) for v in values)
    if not is_pair or not all(1 <= extent <= limit for extent, limit in zip(values, padded_size)):
        raise ValueError(
            f"{name} must be the (height, width) of the image without its padding, as integers no larger than those "
            f"of `pixel_values`, {tuple(padded_size)}, got {values}."
        )
    return int(values[0]), int(values[1])


def _check_label(label: Mapping, num_labels: int, name: str):
    """Raise a `ValueError` that starts with `name` unless classes, boxes and crowd flags are valid tensors."""
    for key in ("class_labels", "boxes"):
        if not isinstance(label.get(key), torch.Tensor):
            raise ValueError(f"{name}` must have a tensor {key!r}, got {sorted(label)}.")
    classes, boxes, crowds = label["class_labels"], label["boxes"], label.get("iscrowd")
    is_whole = not classes.is_floating_point() and classes.dtype != torch.bool
    if classes.ndim != 1 or not is_whole or not ((classes >= 0) & (classes < num_labels)).all():
        raise ValueError(f"{name}['class_labels']` must be integers in [0, {num_labels}) of shape (n,), got {classes}.")
    if boxes.shape != (len(classes), 4) or not boxes.is_floating_point():
        raise ValueError(
            f"{name}['boxes']` must be floats of shape ({len(classes)}, 4), one box per class label, got "
            f"{boxes.dtype} of shape {tuple(boxes.shape)}."
        )
    if not ((boxes >= -1) & (boxes <= 2)).all():  # boxes may exceed the image a little; false for NaN
        raise ValueError(f"{name}['boxes']` must be relative to the image size, not in pixels, got {boxes}.")
    if crowds is not None and crowds.shape != classes.shape:
        raise ValueError(f"{name}['iscrowd']` must have shape ({len(classes)},), got {tuple(crowds.shape)}.")


def relative_boxes(boxes: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Corners in pixels (B, n, 4) -> (centre x, centre y, width, height) relative to the size of each image."""
    scales = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return box_convert(boxes, "xyxy", "cxcywh") / scales[:, None]


def _merge(parts: Sequence[ModelOutput]) -> ModelOutput:
    """Merge the outputs of single images: average the losses, pad everything else to the longest."""
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


__all__ = ["ClusTRDetector", "relative_boxes"]
