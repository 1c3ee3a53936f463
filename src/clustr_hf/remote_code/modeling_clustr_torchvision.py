# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Adapted parts of torchvision's detectors. They differ from torchvision's in precision, strides and initialisation, and
their forward pass has no side effects: it changes neither a module nor the global random number generators.

Boxes are corners (x0, y0, x1, y1) in pixels.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper
from transformers import initialization as init


# Initial probability of a class at an anchor (RetinaNet, Lin et al. 2017).
PRIOR_PROBABILITY = 0.01


class ClusTRAnchorGenerator(AnchorGenerator):
    """torchvision's anchor generator with anchors of at least float32 for maps of any dtype: bfloat16 is pixels off."""

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        # Only size, dtype and device of the maps matter.
        grids = [at_least_float32(maps.new_empty(0, 0, *maps.shape[-2:])) for maps in feature_maps]
        # torchvision's method overwrites the anchors stored in the module, so it runs on a copy.
        return super(ClusTRAnchorGenerator, copy.copy(self)).forward(image_list, grids)


class ClusTRRoIAlign(MultiScaleRoIAlign):
    """
    torchvision's `MultiScaleRoIAlign` with two differences: it pools in at least float32, which boxes require, and its
    constructor takes the strides of the levels, which torchvision infers from the first images.
    """

    def __init__(self, strides: Sequence[int], output_size: int):
        super().__init__([str(level) for level in range(len(strides))], output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]
        # torchvision's assignment of boxes to levels: boxes of 224 pixels go to the level with stride 16.
        levels = [int(math.log2(stride)) for stride in (strides[0], strides[-1])]
        self.map_levels = initLevelMapper(*levels, self.canonical_scale, self.canonical_level)

    def forward(
        self, x: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: list[tuple[int, int]]
    ) -> torch.Tensor:
        pooled = super().forward({name: at_least_float32(maps) for name, maps in x.items()}, boxes, image_shapes)
        return pooled.to(x["0"].dtype)


def init_like_torchvision(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, parent: nn.Module) -> None:
    """Initialise a layer as torchvision's constructor of the parent does; biases of convolutions are already 0."""
    if isinstance(parent, (FeaturePyramidNetwork, LastLevelP6P7)):
        init.kaiming_uniform_(layer.weight, a=1)
    elif isinstance(parent, (RetinaNetHead, RPNHead)):
        init.normal_(layer.weight, std=0.01)
    elif isinstance(parent, RetinaNetClassificationHead) and layer is parent.cls_logits:
        init.constant_(layer.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    elif isinstance(parent, (TwoMLPHead, FastRCNNPredictor)):
        init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(layer.in_features)
        init.uniform_(layer.bias, -bound, bound)
    elif isinstance(parent, (MaskRCNNHeads, MaskRCNNPredictor)):
        init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def with_attributes(module: nn.Module, **attributes: Any) -> nn.Module:
    """
    The module itself if it has these attributes, else a shallow copy that has them and shares parameters, submodules
    and hooks with the module. torchvision's modules read from their attributes what to compute, and another thread may
    be running the module.
    """
    if all(getattr(module, name) == value for name, value in attributes.items()):
        return module
    view = copy.copy(module)
    vars(view).pop("forward", None)  # accelerate's wrapper is bound to the original module
    for name, value in attributes.items():
        setattr(view, name, value)
    return view


class OwnRandomNumbers(TorchFunctionMode):
    """
    A context in which torchvision samples proposals by permutations from a generator of its own with a fixed seed. It
    applies to the current thread only and does not touch the global generators.
    """

    def __init__(self, device: torch.device, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator(device).manual_seed(seed)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.randperm:
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def upcast_output(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that upcasts the output of a head, a tensor or a nesting of tensors, to at least float32."""
    if isinstance(output, torch.Tensor):
        return at_least_float32(output)
    if isinstance(output, dict):
        return {name: upcast_output(module, args, value) for name, value in output.items()}
    return type(output)(upcast_output(module, args, value) for value in output)


__all__ = [
    "ClusTRAnchorGenerator",
    "ClusTRRoIAlign",
    "OwnRandomNumbers",
    "at_least_float32",
    "init_like_torchvision",
    "upcast_output",
    "with_attributes",
]
