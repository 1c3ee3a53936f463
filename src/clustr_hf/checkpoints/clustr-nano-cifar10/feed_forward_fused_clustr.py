# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A faster form of [`~modeling_clustr.ClusTRMLP`], for networks whose modules are all unmodified.

The hidden features are the largest tensors of a block, and the plain form passes over them three times: convolution,
residual, activation. Here x + convolution(x) is a single convolution, whose kernel has 1 added at its centre. On CPUs,
without gradient, the convolution also applies GELU, and large batches are processed in groups of images and large
images in strips of rows, so that hidden features stay in the cache.

The plain form calls every module once; the fused form reads parameters and calls modules on parts of an image. So
[`can_fuse`] first checks that calling the modules would do nothing else: no hooks, adapters, offloading,
parametrisations, quantised or sharded weights, and no padding other than the model's. Otherwise the plain form runs.

Shapes: B images, N = h w tokens, C channels, E hidden features of a token.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.activations import GELUActivation

from .clustering_kernel_clustr import is_plain


# Largest number of hidden features computed at once: 8 MiB in float32.
FEED_FORWARD_ELEMENTS = 2**21
# Settings of the depthwise convolution that the fused form reproduces. Users may change them, e.g. for seamless tiles.
DEPTHWISE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "padding_mode": "zeros"}


def fuse_if_possible(forward: Callable) -> Callable:
    """
    Decorator of `ClusTRMLP.forward`: runs [`fused_feed_forward`] in its place where [`can_fuse`] allows it. The two
    agree up to rounding.
    """

    @functools.wraps(forward)
    def fused_or_plain(mlp: nn.Module, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if can_fuse(mlp, tokens):
            return fused_feed_forward(mlp, tokens, size)
        return forward(mlp, tokens, size)

    return fused_or_plain


def can_fuse(mlp: nn.Module, tokens: torch.Tensor) -> bool:
    """Whether [`fused_feed_forward`] may replace calls of the modules of a [`ClusTRMLP`], for tokens (B, N, C)."""
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
    Whether calling a module runs `kind.forward` on the module's own parameters and nothing else: the module is of
    exactly this class, its call is not replaced, hooked or compiled, and its parameters are ordinary dense ones.
    """
    state = vars(module)
    if type(module) is not kind:
        return False
    # accelerate replaces `forward`. So does kernels, with the class's own `forward` if it has no kernel for the layer.
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
    """Tokens (B, N, C) of a grid of (height, width) -> (B, N, C), if [`can_fuse`] allows it."""
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
    """One image, (1, N, C). The convolution needs one more row of hidden features on either side of a strip."""
    height, width = size
    max_strip = max(1, FEED_FORWARD_ELEMENTS // (width * mlp.fc1.out_features) - 2)
    strip = math.ceil(height / math.ceil(height / max_strip))  # nearly equal strips
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
    """(E, 1, 3, 3): with 1 added at the centre, so that one convolution computes x + convolution(x)."""
    weight = depthwise.weight
    return weight + nn.functional.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))


def _hidden_features(mlp: nn.Module, tokens: torch.Tensor, size: tuple[int, int], kernel: torch.Tensor) -> torch.Tensor:
    """(B, N, C) -> (B, N, E)."""
    features = mlp.fc1(tokens).unflatten(1, size).permute(0, 3, 1, 2)  # channels-last, no copy
    bias = mlp.depthwise.bias
    if _is_gelu(mlp.activation) and _can_convolve_with_gelu(features, kernel):
        features = _convolve_with_gelu(features, kernel, bias)
    else:
        features = mlp.activation(nn.functional.conv2d(features, kernel, bias, padding=1, groups=features.shape[1]))
    return mlp.dropout(features.permute(0, 2, 3, 1).flatten(1, 2))


def _is_gelu(activation: nn.Module) -> bool:
    return type(activation) is GELUActivation and activation.act is nn.functional.gelu


def _runs_eagerly_on_cpu(tokens: torch.Tensor) -> bool:
    """Whether operations run one by one on a CPU, neither recorded for a gradient nor traced into a graph."""
    is_recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not is_recorded and tokens.is_cpu and is_plain(tokens)


def _can_convolve_with_gelu(features: torch.Tensor, kernel: torch.Tensor) -> bool:
    return (
        _runs_eagerly_on_cpu(features)
        and features.dtype == kernel.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and _convolve_with_gelu_works()
    )


def _convolve_with_gelu(features: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """
    GELU of the depthwise convolution of features (B, E, h, w), in one pass of oneDNN instead of two of PyTorch.

    The operator is private: PyTorch's compiler emits it on CPUs, and there is no public equivalent.
    """
    return torch.ops.mkldnn._convolution_pointwise(
        features, kernel, bias, [1, 1], [1, 1], [1, 1], features.shape[1], "gelu", [], "none"
    )


@functools.cache
def _convolve_with_gelu_works() -> bool:
    """
    Whether this release of PyTorch has the private operator with the arguments and the result that are expected here:
    checked once, on a small example.
    """
    values = torch.linspace(-2, 2, 92, dtype=torch.float32, device="cpu")
    features = values[:72].view(1, 2, 6, 6).contiguous(memory_format=torch.channels_last)
    kernel, bias = values[72:90].view(2, 1, 3, 3), values[90:]
    expected = nn.functional.gelu(nn.functional.conv2d(features, kernel, bias, padding=1, groups=2))
    try:
        found = _convolve_with_gelu(features, kernel, bias)
    except (AttributeError, TypeError, RuntimeError):  # missing, with another signature, or not built for this CPU
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


__all__ = ["can_fuse", "fuse_if_possible", "fused_feed_forward", "is_plain_module"]
