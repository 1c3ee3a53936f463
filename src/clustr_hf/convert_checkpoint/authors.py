# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Checkpoints of the authors' code as checkpoints of this package."""

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..remote_code.configuration_clustr import ClusTRConfig
from ..remote_code.image_processing_clustr import ClusTRImageProcessor
from ..remote_code.modeling_clustr import ClusTRForImageClassification


# Channels per attention head in the paper (Table A1); the shapes of the weights do not reveal it.
PAPER_HEAD_DIM = 64

# The authors' name -> ours. The authors count stages from 1, we count them from 0.
_RENAMINGS = [
    (r"patch_embed(?P<stage>\d+)\.proj\.", "embeddings.projection."),
    (r"patch_embed(?P<stage>\d+)\.norm\.", "embeddings.layer_norm."),
    (r"norm(?P<stage>\d+)\.", "layer_norm."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.norm1\.", "layer_norm_before."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.norm2\.", "layer_norm_after."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.attn\.q\.", "attention.q_proj."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.attn\.kv(?P<scale>\d*)\.", "attention.kv_projs.{scale}."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.attn\.proj\.", "attention.o_proj."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.attn\.weight_layer\.", "attention.token_weight."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.mlp\.dwconv\.dwconv\.", "mlp.depthwise."),
    (r"block(?P<stage>\d+)\.(?P<block>\d+)\.mlp\.(?P<layer>fc[12])\.", "mlp.{layer}."),
]

# Keys under which training scripts save the weights, and prefixes of the weights' names.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PREFIXES = ("module.", "model.", "weights.")
# Maximum nesting of such keys.
MAX_WRAPPERS = 4


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Rename the authors' weights for [`ClusTRForImageClassification`]; the tensors themselves are unchanged.

    The matching configuration has `cluster_assignment="nearest_center"`, the rule of the authors' release.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Weights under the authors' names (`patch_embed1.proj.weight`, `block1.0.attn.q.weight`, `head.weight`, ...).
            If some names have a prefix added by training (`module.`, `model.`), only those are converted.

    Returns:
        `dict[str, torch.Tensor]`: The same tensors under our names.

    Raises:
        ValueError: if a name is unknown, its value is not a tensor of floats, or the classifier is missing.
    """
    weights = _strip_prefix(state_dict)
    _check_tensors(weights)
    converted = {_convert_name(name): tensor for name, tensor in weights.items()}
    if "classifier.weight" not in converted:
        raise ValueError("`state_dict` must hold a ClusTR classifier, but has no tensor named 'head.weight'.")
    return converted


def infer_config(
    state_dict: Mapping[str, torch.Tensor],
    num_attention_heads: list[int] | None = None,
    reduction_ratios: list | None = None,
) -> ClusTRConfig:
    """
    Infer the configuration of a converted state dict from the shapes of its tensors.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): As [`convert_state_dict`] returns it.
        num_attention_heads (`list[int]`, *optional*):
            Number of heads in each stage, which the shapes do not reveal. Default: one head per 64 channels, as in
            the paper.
        reduction_ratios (`list`, *optional*):
            Reduction ratios of each stage, which the shapes do not reveal either. Default: the paper's two scales, or
            the coarser one for stages with one scale.

    Returns:
        [`ClusTRConfig`] with `cluster_assignment="nearest_center"`.

    Raises:
        ValueError: if a weight is missing, or has a shape that does not fit the architecture.
    """
    stages = range(_count(state_dict, r"clustr\.stages\.(\d+)\."))
    prefix = "clustr.stages.{}."
    kernels = [_find(state_dict, prefix.format(i) + "embeddings.projection.weight", 4) for i in stages]
    hidden_sizes = [kernel.shape[0] for kernel in kernels]
    fc1 = [_find(state_dict, prefix.format(i) + "blocks.0.mlp.fc1.weight", 2) for i in stages]
    scales = [
        _count(state_dict, re.escape(prefix.format(i)) + r"blocks\.0\.attention\.kv_projs\.(\d+)\.") for i in stages
    ]
    paper_ratios = ClusTRConfig().reduction_ratios
    return ClusTRConfig(
        num_channels=kernels[0].shape[1],
        hidden_sizes=hidden_sizes,
        depths=[_count(state_dict, re.escape(prefix.format(i)) + r"blocks\.(\d+)\.") for i in stages],
        num_attention_heads=num_attention_heads or [max(1, size // PAPER_HEAD_DIM) for size in hidden_sizes],
        mlp_ratios=[weight.shape[0] // weight.shape[1] for weight in fc1],
        patch_sizes=[kernel.shape[-1] for kernel in kernels],
        reduction_ratios=reduction_ratios or [paper_ratios[i][: scales[i]] for i in stages],
        cluster_assignment="nearest_center",
        num_labels=_find(state_dict, "classifier.weight", 2).shape[0],
    )


def load_authors_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Read a checkpoint file of the authors' code without unpickling anything but tensors.

    Args:
        path (`str` or `Path`): A `.safetensors` file or a PyTorch file.

    Returns:
        `tuple[dict, dict]`: The state dict, without the dictionaries in which training scripts wrap it, and the
        metadata of a safetensors file (otherwise empty).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no state dict, or objects that need unpickling.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`IN` must be a checkpoint file, got {path}.")
    try:
        checkpoint, metadata = _read_file(path)
    except Exception as error:  # the readers raise many kinds of errors for files of other formats
        raise ValueError(f"`IN` must hold nothing but tensors and plain containers, got {path}: {error!r}") from error
    for _ in range(MAX_WRAPPERS):
        if isinstance(checkpoint, Mapping):
            inside = (checkpoint[name] for name in _WRAPPERS if isinstance(checkpoint.get(name), Mapping))
            checkpoint = next(inside, checkpoint)
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        got = type(checkpoint).__name__ if checkpoint or not isinstance(checkpoint, Mapping) else "an empty one"
        raise ValueError(f"`IN` must hold a state dict, got {got} in {path}.")
    return dict(checkpoint), metadata


def _read_file(path: Path) -> tuple[Mapping, dict[str, str]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    return torch.load(path, map_location="cpu", weights_only=True), {}


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    num_attention_heads: list[int] | None = None,
    reduction_ratios: list | None = None,
) -> ClusTRForImageClassification:
    """
    Convert a checkpoint file of the authors' code to a folder that `from_pretrained` loads.

    Args:
        source (`str` or `Path`): See [`load_authors_checkpoint`].
        folder (`str` or `Path`): Folder to write; nothing is written unless the weights fit.
        num_attention_heads, reduction_ratios: See [`infer_config`]; defaults are taken from the metadata of a
            safetensors file, if it has any.

    Returns:
        [`ClusTRForImageClassification`] with the converted weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold a ClusTR classifier of the authors.
        RuntimeError: if the weights do not fit the architecture.
    """
    weights, metadata = load_authors_checkpoint(source)
    try:
        state_dict = convert_state_dict(weights)
        config = infer_config(
            state_dict,
            num_attention_heads or _from_metadata(metadata, "num_attention_heads"),
            reduction_ratios or _from_metadata(metadata, "reduction_ratios"),
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    model = ClusTRForImageClassification(config)
    model.load_state_dict(state_dict, strict=True)
    model.save_pretrained(folder)
    ClusTRImageProcessor().save_pretrained(folder)
    return model


def _check_tensors(state_dict: Mapping[str, torch.Tensor]):
    """Raise unless all keys are strings, and all values dense tensors of floats with data."""
    for name, tensor in state_dict.items():
        if not isinstance(name, str):
            raise ValueError(f"`state_dict` must have names of tensors as keys, got {reprlib.repr(name)}.")
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"`state_dict` must hold tensors, got {kind} {reprlib.repr(tensor)} as {name!r}.")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"`state_dict` must hold dense tensors of floats, got {tensor.dtype} of layout {tensor.layout} on "
                f"{tensor.device} as {name!r}."
            )


def _convert_name(name: str) -> str:
    if name.startswith("head."):
        return "classifier." + name.removeprefix("head.")
    for pattern, ours in _RENAMINGS:
        match = re.match(pattern, name)
        if match is None:
            continue
        groups = match.groupdict()
        prefix = f"clustr.stages.{int(groups['stage']) - 1}."
        if "block" in groups:
            prefix += f"blocks.{groups['block']}."
        scale = int(groups.get("scale") or 1) - 1  # "kv" without a number is the first scale
        return prefix + ours.format(scale=scale, layer=groups.get("layer")) + name[match.end() :]
    raise ValueError(f"`state_dict` must hold weights of the authors' ClusTR classifier, got a tensor named {name!r}.")


def _strip_prefix(checkpoint: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names have a known prefix, without it; all tensors if no prefix occurs."""
    for prefix in _PREFIXES:
        inside = {
            str(name).removeprefix(prefix): value for name, value in checkpoint.items() if str(name).startswith(prefix)
        }
        if inside:
            return _strip_prefix(inside)
    return dict(checkpoint)


def _find(state_dict: Mapping[str, torch.Tensor], name: str, ndim: int) -> torch.Tensor:
    if name not in state_dict:
        raise ValueError(f"`state_dict` must hold a whole ClusTR classifier, but {name!r} is missing.")
    tensor = state_dict[name]
    if tensor.ndim != ndim or tensor.numel() == 0:
        raise ValueError(f"{name!r} must have {ndim} dimensions and hold values, got shape {tuple(tensor.shape)}.")
    return tensor


def _count(state_dict: Mapping[str, torch.Tensor], pattern: str) -> int:
    indices = {int(match.group(1)) for match in (re.match(pattern, name) for name in state_dict) if match}
    if not indices:
        raise ValueError(f"`state_dict` must hold a ClusTR classifier, but no name matches {pattern!r}.")
    if len(indices) <= max(indices):
        missing = min(set(range(len(indices) + 1)) - indices)
        raise ValueError(
            f"`state_dict` must hold a whole ClusTR classifier, but number {missing} of {pattern!r} is missing, while "
            f"{max(indices)} is present."
        )
    return len(indices)


def _from_metadata(metadata: Mapping[str, str], name: str) -> list | None:
    if name not in metadata:
        return None
    try:
        values = json.loads(metadata[name])
    except ValueError as error:
        raise ValueError(f"the metadata {name!r} must be JSON, got {metadata[name]!r}: {error}") from error
    if not isinstance(values, list):
        raise ValueError(f"the metadata {name!r} must be a list, got {reprlib.repr(values)}.")
    return values
