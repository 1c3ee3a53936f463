# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Semantic segmentation with ClusTR (section 4.2 of the paper): Semantic FPN or UPerNet on the maps of all stages.

B images of H x W pixels, K classes; maps (B, C, h, w). The maps of the first stage have stride 4 in the paper.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, pad
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from transformers import UperNetConfig
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_clustr import ClusTRConfig
from .modeling_clustr_calls import fix_exported_size
from .modeling_clustr_dense import ClusTRDensePredictor, image_sizes, pad_to


# Former name of `scale_heads` in the weights of the Semantic FPN head.
FORMER_SCALE_HEADS = "ladders"


@dataclass
class ClusTRSemanticSegmenterOutput(SemanticSegmenterOutput):
    """
    Output of [`ClusTRForSemanticSegmentation`].

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Cross-entropy at the resolution of the labels, plus the weighted loss of the auxiliary head.
        logits (`torch.Tensor` of shape `(B, num_labels, h, w)`):
            Scores before the softmax at the stride of the first stage (4 in the paper); h and w are rounded up.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`], for the image padded to whole strides.
        logits_sizes (`torch.LongTensor` of shape `(B, 2)`, *optional*, with a `pixel_mask` in evaluation):
            (h, w) of the logits of each image; logits to the right and below are zero padding.
    """

    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None
    logits_sizes: torch.Tensor | None = None


class ClusTRSemanticFPNHead(nn.Module):
    """
    Semantic FPN (Kirillov et al. 2019): a feature pyramid, and for each level a scale head that upsamples it to the
    resolution of the finest level, where all levels are added.

    A scale head repeats convolution (3x3, batch norm, ReLU) and upsampling to the next finer level, which doubles the
    size; that of the finest level is a single convolution. The first convolution of a scale head reduces the channels,
    as in the authors' framework: there are 1, 1, 2, 3 convolutions for the levels with stride 4, 8, 16, 32.
    """

    def __init__(self, config: ClusTRConfig, in_channels: Sequence[int]):
        super().__init__()
        pyramid_size, hidden_size = config.fpn_hidden_size, config.decoder_hidden_size
        self.fpn = FeaturePyramidNetwork(list(in_channels), pyramid_size)
        self.scale_heads = nn.ModuleList(
            nn.ModuleList(
                Conv2dNormActivation(pyramid_size if step == 0 else hidden_size, hidden_size)
                for step in range(max(1, level))
            )
            for level in range(len(in_channels))
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(hidden_size, config.num_labels, kernel_size=1)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """As upstream; `load_state_dict` also accepts the former names of the weights."""
        former, name = f"{prefix}{FORMER_SCALE_HEADS}.", f"{prefix}scale_heads."
        for key in [key for key in state_dict if key.startswith(former)]:
            state_dict[name + key.removeprefix(former)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, feature_maps: Sequence[torch.Tensor], with_auxiliary: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (B, C_i, h_i, w_i), finest first -> logits (B, K, h_0, w_0), and no auxiliary logits."""
        pyramid = self.fpn(OrderedDict((str(level), features) for level, features in enumerate(feature_maps)))
        sizes = [features.shape[-2:] for features in feature_maps]
        merged = None
        for level, (features, scale_head) in enumerate(zip(pyramid.values(), self.scale_heads)):
            for step, convolution in enumerate(scale_head, start=1):
                features = convolution(features)
                if level > 0:
                    features = interpolate(features, size=sizes[level - step], mode="bilinear", align_corners=False)
            merged = features if merged is None else merged + features
        return self.classifier(self.dropout(merged)), None


class ClusTRUperNetHead(nn.Module):
    """UPerNet (Xiao et al. 2018) and its auxiliary FCN head on the second-to-last stage, both from transformers."""

    def __init__(self, config: ClusTRConfig, in_channels: Sequence[int]):
        super().__init__()
        self.auxiliary_index = max(0, len(in_channels) - 2)
        head_config = UperNetConfig(
            backbone_config=copy.deepcopy(config),  # the default is a ResNet's; a copy, because it is modified
            hidden_size=config.upernet_hidden_size,
            pool_scales=config.pool_scales,
            auxiliary_in_channels=in_channels[self.auxiliary_index],
            auxiliary_channels=config.auxiliary_hidden_size,
            num_labels=config.num_labels,
        )
        self.decode_head = UperNetHead(head_config, in_channels=list(in_channels))
        # The dropout (Table A3) is part of the last activation, so the weights keep transformers' names.
        last_convolutions = [self.decode_head.fpn_bottleneck]
        self.auxiliary_head = None
        if config.auxiliary_loss_weight > 0:
            self.auxiliary_head = UperNetFCNHead(
                head_config, in_channels=list(in_channels), in_index=self.auxiliary_index
            )
            last_convolutions.append(self.auxiliary_head.convs[-1])
        for convolution in last_convolutions:
            convolution.activation = nn.Sequential(nn.ReLU(), nn.Dropout2d(config.classifier_dropout_prob))

    def forward(
        self, feature_maps: Sequence[torch.Tensor], with_auxiliary: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (B, C_i, h_i, w_i), finest first -> logits (B, K, h_0, w_0), and auxiliary logits of a coarser map."""
        auxiliary_logits = None
        if with_auxiliary and self.auxiliary_head is not None:
            auxiliary_logits = self.auxiliary_head(feature_maps)
        return self.decode_head(feature_maps), auxiliary_logits


HEADS = {"semantic_fpn": ClusTRSemanticFPNHead, "upernet": ClusTRUperNetHead}


class ClusTRForSemanticSegmentation(ClusTRDensePredictor):
    """ClusTR with the segmentation head `config.segmentation_head`."""

    _auto_class = "AutoModelForSemanticSegmentation"
    _auto_map = {
        **ClusTRDensePredictor._auto_map,
        "AutoModelForSemanticSegmentation": "modeling_clustr_segmentation.ClusTRForSemanticSegmentation",
    }

    def __init__(self, config: ClusTRConfig):
        super().__init__(config)
        self._make_head(config)
        self.post_init()

    def _make_head(self, config: ClusTRConfig):
        if config.segmentation_head not in HEADS:  # `from_pretrained` sets fields without validation
            raise ValueError(f"`segmentation_head` must be one of {list(HEADS)}, got {config.segmentation_head!r}.")
        weights = config.semantic_class_weights
        if weights is not None and len(weights) != config.num_labels:
            raise ValueError(
                f"`semantic_class_weights` must have one entry for each of the {config.num_labels} labels, "
                f"got {len(weights)}."
            )
        self.head = HEADS[config.segmentation_head](config, config.hidden_sizes)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise classifiers with small weights, so that all classes start equally likely."""
        super()._init_weights(module)
        if any(module is part for name, part in self.head.named_modules() if name.endswith("classifier")):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any
    ) -> "ClusTRForSemanticSegmentation":
        """As upstream; also loads checkpoints that store the Semantic FPN head under its former names."""
        former_names = {rf"^head\.{FORMER_SCALE_HEADS}": "head.scale_heads"}
        return super().from_pretrained(*args, key_mapping={**former_names, **(key_mapping or {})}, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClusTRSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                Normalised images of any size. They are padded by reflection on the right and bottom to multiples of the
                total stride (32); images too small to reflect are zero-padded first. Logits cover the image alone;
                hidden states, attentions and clusters cover the padded image.
            labels (`torch.LongTensor` of shape `(B, H', W')`, *optional*):
                Class of each pixel in `[0, num_labels)`, or `config.semantic_loss_ignore_index` to ignore the pixel.
                Logits are resized to the labels. The loss is 0 if all pixels are ignored.
            pixel_mask (`torch.LongTensor` of shape `(B, H, W)`, *optional*):
                1 for pixels of the image, which starts in the upper left corner, and 0 for the processor's padding. In
                evaluation, padded images are then processed one at a time without their padding, so the logits of an
                image do not depend on the rest of its batch. In training the mask has no effect: label the padding
                with the ignored index.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` as in [`ClusTRModel`]; not supported
                with a mask of padded images.

        Returns:
            [`ClusTRSemanticSegmenterOutput`].

        Raises:
            ValueError: if `pixel_values`, `labels` or `pixel_mask` have the wrong rank, size or dtype.
        """
        if labels is not None:
            self._check_labels(labels, pixel_values)
        if pixel_mask is not None and not self.training:
            sizes = image_sizes(pixel_mask, pixel_values)
            if any(size != pixel_values.shape[-2:] for size in sizes):
                return self._segment_each(pixel_values, labels, sizes, **kwargs)
        output, loss, weight = self._segment(pixel_values, labels, **kwargs)
        if labels is not None:
            output.loss = _mean(loss, weight)
        if pixel_mask is not None and not self.training:
            output.logits_sizes = output.logits.new_tensor(output.logits.shape[-2:], dtype=torch.int64).expand(
                len(pixel_mask), 2
            )
        return output

    def _segment(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None, **kwargs
    ) -> tuple[ClusTRSemanticSegmenterOutput, torch.Tensor | None, torch.Tensor | None]:
        """The output without its loss, the loss summed over pixels, and the sum of the pixels' weights."""
        fix_exported_size(pixel_values)
        map_sizes = self._map_sizes(pixel_values.shape[-2:])
        stage_maps, features = self._stage_maps(self._pad_by_reflection(pixel_values), **kwargs)
        logits, auxiliary_logits = self.head(stage_maps, with_auxiliary=labels is not None)
        logits = _crop(logits, map_sizes[0])
        loss = weight = None
        if labels is not None:
            loss, weight = self._sum_loss(logits, labels)
            if auxiliary_logits is not None:
                auxiliary_logits = _crop(auxiliary_logits, map_sizes[self.head.auxiliary_index])
                loss = loss + self.config.auxiliary_loss_weight * self._sum_loss(auxiliary_logits, labels)[0]
        output = ClusTRSemanticSegmenterOutput(
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            cluster_indices=features.get("cluster_indices"),
        )
        return output, loss, weight

    def _pad_by_reflection(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Pad images to whole strides. Otherwise the convolutions between stages would also reach their zero padding on
        the right and bottom, and coarse maps would be resized by factors other than their strides; training crops of
        whole strides show neither. The model treats reflected pixels as image content, unlike zeros.
        """
        height, width = whole = self._whole_strides(pixel_values.shape[-2:])
        if pixel_values.ndim != 4 or whole == tuple(pixel_values.shape[-2:]):
            return pixel_values  # the backbone reports a wrong rank
        least = math.prod(self.config.strides) // 2 + 1  # a reflection must be smaller than the image
        pixel_values = pad_to(pixel_values, tuple(max(least, extent) for extent in pixel_values.shape[-2:]))
        size = pixel_values.shape[-2:]
        return pad(pixel_values, (0, width - size[1], 0, height - size[0]), mode="reflect")

    def _map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Size of the map of each stage for an image of the given size, without padding."""
        sizes = []
        for kernel_size, stride in zip(self.config.patch_sizes, self.config.strides):
            size = tuple((extent + 2 * (kernel_size // 2) - kernel_size) // stride + 1 for extent in size)
            sizes.append(size)
        return sizes

    def _segment_each(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None, sizes: list[tuple[int, int]], **kwargs
    ) -> ClusTRSemanticSegmenterOutput:
        """Process each image without its padding and zero-pad the logits instead."""
        self._reject_recorded(kwargs)
        if labels is not None and labels.shape[1:] != pixel_values.shape[2:]:
            raise ValueError(f"`labels` must have the shape of `pixel_mask`, got {tuple(labels.shape)}.")
        parts = []
        for index, (height, width) in enumerate(sizes):
            image_labels = None if labels is None else labels[index : index + 1, :height, :width]
            parts.append(self._segment(pixel_values[index : index + 1, :, :height, :width], image_labels, **kwargs))
        maps = [output.logits for output, _, _ in parts]
        padded_size = self._map_sizes(pixel_values.shape[-2:])[0]
        output = ClusTRSemanticSegmenterOutput(
            logits=torch.cat([pad_to(logits, padded_size) for logits in maps]),
            logits_sizes=torch.tensor([logits.shape[-2:] for logits in maps], device=pixel_values.device),
        )
        if labels is not None:
            output.loss = _mean(sum(loss for _, loss, _ in parts), sum(weight for _, _, weight in parts))
        return output

    def _sum_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy of logits (B, K, h, w) with labels (B, H, W), and the sum of the pixels' weights."""
        ignored = self.config.semantic_loss_ignore_index
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        valid = labels != ignored
        if self.config.semantic_class_weights is None:
            return cross_entropy(logits, labels, ignore_index=ignored, reduction="sum"), valid.sum()
        class_weights = logits.new_tensor(self.config.semantic_class_weights)
        loss = cross_entropy(logits, labels, class_weights, ignore_index=ignored, reduction="sum")
        return loss, (class_weights[labels.masked_fill(~valid, 0)] * valid).sum()

    def _check_labels(self, labels: torch.Tensor, pixel_values: torch.Tensor):
        num_labels, ignored = self.config.num_labels, self.config.semantic_loss_ignore_index
        if num_labels < 2:
            raise ValueError(f"`num_labels` must be at least 2 for semantic segmentation, got {num_labels}.")
        if 0 <= ignored < num_labels:
            raise ValueError(f"`semantic_loss_ignore_index` must not be one of the {num_labels} labels, got {ignored}.")
        if labels.ndim != 3 or len(labels) != len(pixel_values):
            raise ValueError(f"`labels` must have shape ({len(pixel_values)}, H, W), got {tuple(labels.shape)}.")
        if labels.dtype != torch.int64:
            raise ValueError(f"`labels` must be int64, got {labels.dtype}.")
        if labels.is_cpu and not torch.compiler.is_compiling():  # on accelerators this would wait for the device
            wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignored)]
            if len(wrong):
                raise ValueError(
                    f"`labels` must be in [0, {num_labels}), or {ignored} for ignored pixels, got {wrong[0].item()}."
                )


def _crop(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The upper left part of maps (..., h, w)."""
    return maps[..., : size[0], : size[1]]


def _mean(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean; 0 if all pixels are ignored, where loss and weight are both 0."""
    return loss / weight.clamp(min=torch.finfo(loss.dtype).tiny)


__all__ = ["ClusTRForSemanticSegmentation", "ClusTRSemanticSegmenterOutput"]
