# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Export models to ONNX, for any number of images in a batch, and check the file against PyTorch. Needs the extra `onnx`.

Height and width of the image are constants of the exported graph, since the numbers of tokens and clusters follow from
them. Detectors cannot be exported; their backbones can.
"""

import os
import tempfile
from pathlib import Path

import onnxruntime
import torch
from torch import nn
from transformers import PreTrainedModel

from .remote_code.modeling_clustr import ClusTRBackbone, ClusTRModel


TRACED_BATCH, CHECKED_BATCHES = 2, (1, 3, 4)
TOLERANCE = 1e-4
MIN_EQUAL_LABELS = 0.99

# Class -> its outputs, apart from the clusters.
OUTPUTS = {
    "ClusTRForImageClassification": ["logits"],
    "ClusTRForSemanticSegmentation": ["logits"],
    "ClusTRForPoseEstimation": ["heatmaps"],
    "ClusTRModel": ["last_hidden_state", "pooler_output"],
    "ClusTRBackbone": ["feature_maps"],
}
# Class -> why it cannot be exported.
UNSUPPORTED = {
    "ClusTRForObjectDetection": "It handles image sizes in lists with one entry for each image, which would make the "
    "batch size a constant of the graph.",
    "ClusTRForInstanceSegmentation": "It selects boxes by non-maximum suppression (torchvision.ops.batched_nms), whose "
    "number of boxes depends on the image, which torch.export cannot represent.",
}


@torch.no_grad()
def export_to_onnx(model: PreTrainedModel, path: str | Path, image_size: tuple[int, int]) -> dict[str, float]:
    """
    Export a model to an ONNX file.

    The file's input is `pixel_values` `(B, num_channels, H, W)`. Its outputs are those of the model, by name
    (`feature_maps.STAGE` for a backbone), and `clusters.BLOCK.SCALE` with the cluster of every token for each block and
    scale that clusters.

    The file is run with onnxruntime at other batch sizes than it was traced with, on noise and on a constant image, in
    which tokens tie. It is written only if it agrees with PyTorch: outputs within 1e-4 (of the largest value, if that
    exceeds 1) for every image with equal clusters, and at least 99 % of all labels equal. Rounding differs between the
    two, which occasionally swaps tokens of almost equal decision values and so changes the outputs of an image.

    Args:
        model (`PreTrainedModel`): Model of one of the classes in `OUTPUTS`.
        path (`str` or `Path`): File to write.
        image_size (`tuple[int, int]`): (height, width) of the images in pixels.

    Returns:
        `dict[str, float]`: `equal_labels`, the share of cluster labels equal to PyTorch's; `equal_images`, the number
        of images with equal clusters; `images`, the number of all images; `error`, the largest difference between the
        outputs of images with equal clusters.

    Raises:
        ValueError: for a model of another class, and for `cluster_count="content"`.
        RuntimeError: if the file does not agree with PyTorch; nothing is written.
    """
    name, path = type(model).__name__, Path(path)
    if name not in OUTPUTS:
        raise ValueError(
            f"`model` must be one of {list(OUTPUTS)}, got {name}. {UNSUPPORTED.get(name, '')} Its backbone can be "
            f"exported as a ClusTRBackbone."
        )
    cluster_count = getattr(model.config, "cluster_count", "ratio")  # older remote code lacks the field
    if cluster_count != "ratio":
        raise ValueError(
            f'`model` must have `cluster_count="ratio"`, got {cluster_count!r}: the rounds in which '
            f"clusters are merged make a graph that the exporter does not finish in reasonable time. Call "
            f"`model.set_cluster_budget(None)` first, or use `torch.export`."
        )
    module = TensorOutputs(model).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (sum(CHECKED_BATCHES), model.config.num_channels, *image_size)
    images = torch.randn(shape, generator=generator, device="cpu")
    images[-1] = 0.5
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, path.name)
        _export(module, images[:TRACED_BATCH]).save(file, external_data=False)
        report = _compare(file, module, images)
        os.replace(file, path)
    return report


class TensorOutputs(nn.Module):
    """A model whose outputs are a dictionary of tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if isinstance(self.model, ClusTRBackbone):
            # The forward of the backbone itself does not return clusters.
            output = ClusTRModel.forward(self.model, pixel_values, output_hidden_states=True, output_clusters=True)
            maps = dict(zip(self.model.stage_names, output.hidden_states))
            tensors = {f"feature_maps.{name}": maps[name] for name in self.model.out_features}
        else:
            output = self.model(pixel_values, output_clusters=True)
            tensors = {name: output[name] for name in OUTPUTS[type(self.model).__name__]}
        for block, scales in enumerate(output.cluster_indices):
            for scale, index in enumerate(scales):
                tensors[f"clusters.{block}.{scale}"] = index
        return tensors


def _export(module: nn.Module, pixel_values: torch.Tensor) -> torch.onnx.ONNXProgram:
    return torch.onnx.export(
        module,
        (pixel_values,),
        dynamo=True,
        verbose=False,
        input_names=["pixel_values"],
        output_names=list(module(pixel_values)),
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
    )


def _compare(file: Path, module: nn.Module, pixel_values: torch.Tensor) -> dict[str, float]:
    """Compare the outputs of a file with PyTorch's, see [`export_to_onnx`]."""
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    batches = [session.run(None, {"pixel_values": batch.numpy()}) for batch in pixel_values.split(CHECKED_BATCHES)]
    found = {
        name: torch.cat([torch.from_numpy(array) for array in arrays]) for name, arrays in zip(names, zip(*batches))
    }
    expected = module(pixel_values)
    has_equal_clusters, share = compare_clusters(found, expected)
    outputs = [name for name in found if not name.startswith("clusters.")]
    error = max(largest_error(found[name][has_equal_clusters], expected[name][has_equal_clusters]) for name in outputs)
    if share < MIN_EQUAL_LABELS or not has_equal_clusters.any() or not error <= TOLERANCE:
        raise RuntimeError("the exported model does not agree with PyTorch; nothing was written")
    counts = {"equal_images": int(has_equal_clusters.sum()), "images": len(has_equal_clusters)}
    return {"equal_labels": share, **counts, "error": error}


def compare_clusters(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Whether all clusters of an image are equal, `(B,)`, and the share of equal labels."""
    equal = [found[name] == expected[name] for name in found if name.startswith("clusters.")]
    if not equal:  # the attention has no clusters
        return torch.ones(len(next(iter(found.values()))), dtype=torch.bool, device="cpu"), 1.0
    equal = torch.cat(equal, dim=1)
    return equal.all(dim=1), equal.double().mean().item()


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value if that exceeds 1; 0 for no images."""
    if expected.numel() == 0:
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


__all__ = ["OUTPUTS", "export_to_onnx"]
