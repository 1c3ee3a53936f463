# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The fast form of [`ClusTRMLP`]: one pass over the hidden features, the largest tensor of a block.

tokens + convolution(tokens) is one convolution, whose kernel has 1 more at its centre. On CPUs, without gradient, GELU
joins that pass, and large batches go image by image and large images in strips of rows, so that hidden features are
reused in the cache instead of written to fresh memory.

All of this reads parameters and calls modules piece by piece, where the plain form calls every module once. So
[`can_fuse`] first proves that a call would do nothing else: no hook, adapter, offloading, parametrisation, quantised or
sharded weight, no other padding than the model's. Wherever it cannot, the plain form runs.

B images, N = h w tokens of C channels, E hidden features of a token.
"""

import math

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.activations import GELUActivation

from .clustering_kernel_clustr import is_plain


# Hidden features that are made at once where the network works in pieces: 8 MiB in float32.
FEED_FORWARD_ELEMENTS = 2**21
# What a depthwise 3x3 convolution must still be set to; users change it, for seamless tiles for example.
DEPTHWISE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "padding_mode": "zeros"}


def can_fuse(mlp: nn.Module, tokens: torch.Tensor) -> bool:
    """Whether [`fused_feed_forward`] gives what calling the modules of a [`ClusTRMLP`] gives for tokens (B, N, C)."""
    modules = vars(mlp)["_modules"]
    depthwise = modules["depthwise"]
    return (
        is_plain_module(depthwise, nn.Conv2d)
        and is_plain_module(modules["fc1"], nn.Linear)
        and is_plain_module(modules["fc2"], nn.Linear)
        and is_plain_module(modules["activation"], mlp.activation_class)
        and is_plain_module(modules["dropout"], nn.Dropout)
        and depthwise.groups == depthwise.in_channels == depthwise.out_channels
        and DEPTHWISE.items() <= vars(depthwise).items()
        and depthwise.weight.device == tokens.device
        and not torch_module._has_any_global_hook()
    )


def is_plain_module(module: nn.Module, kind: type[nn.Module]) -> bool:
    """
    Whether calling the module does what the class's `forward` does with the parameters that the module has, and nothing
    else: exactly this class, nothing of the call replaced, hooked or compiled on its own, and parameters that are
    ordinary dense ones.
    """
    state = vars(module)
    if type(module) is not kind:
        return False
    # accelerate replaces `forward`; so does kernels, with the class's own where it has nothing else for a layer.
    if "forward" in state and getattr(state["forward"], "__func__", None) is not kind.forward:
        return False
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or state["_backward_hooks"]:
        return False
    if state["_backward_pre_hooks"] or state.get("_compiled_call_impl") is not None:
        return False
    if "weight" in state or "bias" in state:  # computed from other parameters, by pruning for example
        return False
    for parameter in state["_parameters"].values():
        if parameter is not None and (type(parameter) is not nn.Parameter or parameter.layout is not torch.strided):
            return False
    return True


def fused_feed_forward(mlp: nn.Module, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, N, C) of a grid of (height, width) -> (B, N, C), for what [`can_fuse`] accepts."""
    kernel = _residual_kernel(mlp.depthwise)
    hidden_elements = tokens.shape[1] * mlp.fc1.out_features
    if not _runs_eagerly_on_cpu(tokens) or len(tokens) * hidden_elements <= FEED_FORWARD_ELEMENTS:
        return _feed_forward(mlp, tokens, size, kernel)
    if hidden_elements <= FEED_FORWARD_ELEMENTS:
        groups = tokens.split(FEED_FORWARD_ELEMENTS // hidden_elements)
        return torch.cat([_feed_forward(mlp, images, size, kernel) for images in groups])
    return torch.cat([_feed_forward_in_strips(mlp, image, size, kernel) for image in tokens.split(1)])


def _feed_forward_in_strips(
    mlp: nn.Module, image: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor
) -> torch.Tensor:
    """One image, (1, N, C): each strip is computed with one more row on either side, for the convolution."""
    height, width = size
    longest = max(1, FEED_FORWARD_ELEMENTS // (width * mlp.fc1.out_features) - 2)
    strip = math.ceil(height / math.ceil(height / longest))  # nearly equal strips
    outputs = []
    for first in range(0, height, strip):
        above, last = min(first, 1), min(first + strip, height)
        start, stop = first - above, min(last + 1, height)
        rows = image[:, start * width : stop * width]
        features = _hidden_features(mlp, rows, (stop - start, width), kernel)
        outputs.append(mlp.fc2(features[:, above * width : (above + last - first) * width]))
    return mlp.dropout(torch.cat(outputs, dim=1))


def _feed_forward(mlp: nn.Module, tokens: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor) -> torch.Tensor:
    return mlp.dropout(mlp.fc2(_hidden_features(mlp, tokens, size, kernel)))


def _residual_kernel(depthwise: nn.Conv2d) -> torch.Tensor:
    """(E, 1, 3, 3): 1 more at the centre, for tokens + convolution(tokens) in one pass."""
    weight = depthwise.weight
    return weight + nn.functional.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))


def _hidden_features(mlp: nn.Module, tokens: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor) -> torch.Tensor:
    """(B, N, C) -> (B, N, E)."""
    features = mlp.fc1(tokens).unflatten(1, size).permute(0, 3, 1, 2)  # channels-last, no copy
    bias, channels = mlp.depthwise.bias, features.shape[1]
    if _is_gelu(mlp.activation) and _can_fuse_gelu(features, kernel):
        features = torch.ops.mkldnn._convolution_pointwise(
            features, kernel, bias, [1, 1], [1, 1], [1, 1], channels, "gelu", [], "none"
        )
    else:
        features = mlp.activation(nn.functional.conv2d(features, kernel, bias, padding=1, groups=channels))
    return mlp.dropout(features.permute(0, 2, 3, 1).flatten(1, 2))


def _is_gelu(activation: nn.Module) -> bool:
    return type(activation) is GELUActivation and activation.act is nn.functional.gelu


def _runs_eagerly_on_cpu(tokens: torch.Tensor) -> bool:
    """Whether operations are carried out one by one, without gradient, and not recorded for later."""
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not recorded and tokens.is_cpu and is_plain(tokens)


def _can_fuse_gelu(features: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Whether oneDNN's convolution with GELU, which torch.compile uses too, can be called here."""
    return (
        _runs_eagerly_on_cpu(features)
        and features.dtype == kernel.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


__all__ = ["can_fuse", "fused_feed_forward", "is_plain_module"]
