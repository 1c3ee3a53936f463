# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Semantic segmentation with ClusTR (section 4.2 of the paper): Semantic FPN or UPerNet on the maps of all stages.

B images of H x W pixels, K classes; maps (B, C, h, w), those of the first stage at its stride, 4 in the paper.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

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
from .modeling_clustr import fix_exported_size
from .modeling_clustr_dense import ClusTRDensePredictor, image_sizes, pad_to


@dataclass
class ClusTRSemanticSegmenterOutput(SemanticSegmenterOutput):
    """
    Output of [`ClusTRForSemanticSegmentation`].

    Args:
        loss (`torch.Tensor`, a scalar, *optional*, with `labels`):
            Cross-entropy at the resolution of the labels, and the auxiliary head's by its weight.
        logits (`torch.Tensor` of shape `(B, num_labels, h, w)`):
            Scores before the softmax at the stride of the first stage (4 in the paper), h and w rounded up.
        hidden_states, attentions, cluster_indices (*optional*):
            As in [`ClusTRModelOutput`], of the image up to whole strides.
        logits_sizes (`torch.LongTensor` of shape `(B, 2)`, *optional*, with a `pixel_mask` in evaluation):
            (h, w) of the logits of each image; those to the right and below are padding, 0.
    """

    cluster_indices: tuple[tuple[torch.Tensor, ...], ...] | None = None
    logits_sizes: torch.Tensor | None = None


class ClusTRSemanticFPNHead(nn.Module):
    """
    Semantic FPN (Kirillov et al. 2019): a feature pyramid whose levels climb to the finest one, and are added there.

    A level of the pyramid passes convolutions (3x3, batch norm, ReLU), each followed by an upsampling to the size of
    the next finer level, twice as large; the finest level passes one convolution. As in the authors' framework, a
    convolution halves the channels first: 1, 1, 2, 3 convolutions on levels of stride 4, 8, 16, 32.
    """

    def __init__(self, config: ClusTRConfig, in_channels: Sequence[int]):
        super().__init__()
        pyramid_size, hidden_size = config.fpn_hidden_size, config.decoder_hidden_size
        self.fpn = FeaturePyramidNetwork(list(in_channels), pyramid_size)
        self.ladders = nn.ModuleList(
            nn.ModuleList(
                Conv2dNormActivation(pyramid_size if step == 0 else hidden_size, hidden_size)
                for step in range(max(1, level))
            )
            for level in range(len(in_channels))
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(hidden_size, config.num_labels, kernel_size=1)

    def forward(
        self, feature_maps: Sequence[torch.Tensor], with_auxiliary: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (B, C_i, h_i, w_i), the finest first -> logits (B, K, h_0, w_0), and no auxiliary ones."""
        pyramid = self.fpn(OrderedDict((str(level), features) for level, features in enumerate(feature_maps)))
        sizes = [features.shape[-2:] for features in feature_maps]
        merged = None
        for level, (features, ladder) in enumerate(zip(pyramid.values(), self.ladders)):
            for step, convolution in enumerate(ladder, start=1):
                features = convolution(features)
                if level > 0:
                    features = interpolate(features, size=sizes[level - step], mode="bilinear", align_corners=False)
            merged = features if merged is None else merged + features
        return self.classifier(self.dropout(merged)), None


class ClusTRUperNetHead(nn.Module):
    """UPerNet (Xiao et al. 2018) and its auxiliary FCN head on the last stage but one, both transformers' own."""

    def __init__(self, config: ClusTRConfig, in_channels: Sequence[int]):
        super().__init__()
        self.auxiliary_index = max(0, len(in_channels) - 2)
        head_config = UperNetConfig(
            backbone_config=copy.deepcopy(config),  # otherwise it makes one of a ResNet; it would write into ours
            hidden_size=config.upernet_hidden_size,
            pool_scales=config.pool_scales,
            auxiliary_in_channels=in_channels[self.auxiliary_index],
            auxiliary_channels=config.auxiliary_hidden_size,
            num_labels=config.num_labels,
        )
        self.decode_head = UperNetHead(head_config, in_channels=list(in_channels))
        # Table A3's dropout stands behind the last activation, so that transformers' names of weights remain.
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
        """Maps (B, C_i, h_i, w_i), the finest first -> logits (B, K, h_0, w_0), auxiliary ones of a coarser map."""
        auxiliary_logits = None
        if with_auxiliary and self.auxiliary_head is not None:
            auxiliary_logits = self.auxiliary_head(feature_maps)
        return self.decode_head(feature_maps), auxiliary_logits


HEADS = {"semantic_fpn": ClusTRSemanticFPNHead, "upernet": ClusTRUperNetHead}


class ClusTRForSemanticSegmentation(ClusTRDensePredictor):
    """ClusTR with the head that `config.segmentation_head` names."""

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
        if config.segmentation_head not in HEADS:  # `from_pretrained` sets fields that were not validated
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
        """Classifiers begin with small weights, so that all classes are equally likely."""
        super()._init_weights(module)
        if any(module is part for name, part in self.head.named_modules() if name.endswith("classifier")):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)

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
                Normalised images of any size. On the right and below they are mirrored up to multiples of the product
                of the strides (32); where half of that is more than there is, 0 fills the rest before. Logits are those
                of the image alone; hidden states, attentions and clusters are those of the enlarged one.
            labels (`torch.LongTensor` of shape `(B, H', W')`, *optional*):
                Class of each pixel in `[0, num_labels)`, or `config.semantic_loss_ignore_index` where it does not
                count; the logits are resized to the labels. Without a pixel that counts, the loss is 0.
            pixel_mask (`torch.LongTensor` of shape `(B, H, W)`, *optional*):
                1 where there is an image, from its upper left corner on, 0 where the processor has padded it. Each
                image is then seen alone and has the logits that it has in any other batch. In training the mask has
                no effect: padding should be labelled as not counting.
            kwargs:
                `output_hidden_states`, `output_attentions`, `output_clusters` as in [`ClusTRModel`]; not with a mask
                that pads.

        Returns:
            [`ClusTRSemanticSegmenterOutput`].

        Raises:
            ValueError: for a wrong rank, size or dtype of `pixel_values`, `labels` or `pixel_mask`.
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
        """The output without a loss; the loss as a sum over pixels, and the sum of their weights."""
        fix_exported_size(pixel_values)
        map_sizes = self._map_sizes(pixel_values.shape[-2:])
        stage_maps, features = self._stage_maps(self._mirror(pixel_values), **kwargs)
        logits, auxiliary_logits = self.head(stage_maps, with_auxiliary=labels is not None)
        logits = _cut(logits, map_sizes[0])
        loss = weight = None
        if labels is not None:
            loss, weight = self._sum_loss(logits, labels)
            if auxiliary_logits is not None:
                auxiliary_logits = _cut(auxiliary_logits, map_sizes[self.head.auxiliary_index])
                loss = loss + self.config.auxiliary_loss_weight * self._sum_loss(auxiliary_logits, labels)[0]
        output = ClusTRSemanticSegmenterOutput(
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            cluster_indices=features.get("cluster_indices"),
        )
        return output, loss, weight

    def _mirror(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Images up to whole strides. Otherwise the convolutions between stages would meet their zero padding on the right
        and below, too, and coarse maps would be resized by other factors than their strides, which training crops of
        whole strides never show. A mirrored image looks like one to the model, a margin of 0 does not.
        """
        height, width = whole = self._whole_strides(pixel_values.shape[-2:])
        if pixel_values.ndim != 4 or whole == tuple(pixel_values.shape[-2:]):
            return pixel_values  # the backbone says what is wrong with other ranks
        least = math.prod(self.config.strides) // 2 + 1  # a mirror needs more pixels than it adds
        pixel_values = pad_to(pixel_values, tuple(max(least, extent) for extent in pixel_values.shape[-2:]))
        size = pixel_values.shape[-2:]
        return pad(pixel_values, (0, width - size[1], 0, height - size[0]), mode="reflect")

    def _map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Size of the map of each stage for an image of the given size, not mirrored."""
        sizes = []
        for kernel_size, stride in zip(self.config.patch_sizes, self.config.strides):
            size = tuple((extent + 2 * (kernel_size // 2) - kernel_size) // stride + 1 for extent in size)
            sizes.append(size)
        return sizes

    def _segment_each(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None, sizes: list[tuple[int, int]], **kwargs
    ) -> ClusTRSemanticSegmenterOutput:
        """Each image without its padding, and the logits padded in turn, with 0."""
        self._refuse_recorded(kwargs)
        if labels is not None and labels.shape[1:] != pixel_values.shape[2:]:
            raise ValueError(f"`labels` must have the shape of a `pixel_mask` that pads, got {tuple(labels.shape)}.")
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
        """Cross-entropy of logits (B, K, h, w) with labels (B, H, W), summed; and the sum of the pixels' weights."""
        ignored = self.config.semantic_loss_ignore_index
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        counts = labels != ignored
        if self.config.semantic_class_weights is None:
            return cross_entropy(logits, labels, ignore_index=ignored, reduction="sum"), counts.sum()
        class_weights = logits.new_tensor(self.config.semantic_class_weights)
        loss = cross_entropy(logits, labels, class_weights, ignore_index=ignored, reduction="sum")
        return loss, (class_weights[labels.masked_fill(~counts, 0)] * counts).sum()

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
        if labels.is_cpu and not torch.compiler.is_compiling():  # elsewhere it would wait for the device
            wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignored)]
            if len(wrong):
                raise ValueError(
                    f"`labels` must be in [0, {num_labels}), or {ignored} for pixels that do not count, "
                    f"got {wrong[0].item()}."
                )


def _cut(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The upper left of maps (..., h, w)."""
    return maps[..., : size[0], : size[1]]


def _mean(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Where no pixel counts both are 0, and so is the mean."""
    return loss / weight.clamp(min=torch.finfo(loss.dtype).tiny)


__all__ = ["ClusTRForSemanticSegmentation", "ClusTRSemanticSegmenterOutput"]
