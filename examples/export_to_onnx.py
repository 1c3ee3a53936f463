#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Export a model to ONNX, with any number of images in a batch, and check the file against PyTorch.

    python examples/export_to_onnx.py out/clustr-nano-digits out/clustr-nano-digits.onnx --image_size 32
    python examples/export_to_onnx.py checkpoints/clustr-nano-camvid out/camvid.onnx --image_size 360 480
    python examples/export_to_onnx.py checkpoints/clustr-nano-bccd out/maps.onnx --model_class ClusTRBackbone \
        --out_features stage1 stage2 stage3 stage4 --image_size 320 416

What is exported is the class of the checkpoint, or what `--model_class` names if the checkpoint has all its weights:
every one has those of the backbone. The file's outputs are

    ClusTRForImageClassification     logits
    ClusTRForSemanticSegmentation    logits, one map for each class
    ClusTRForPoseEstimation          heatmaps
    ClusTRModel                      last_hidden_state, pooler_output
    ClusTRBackbone                   feature_maps.STAGE for each of `--out_features`

and, for each block and scale that clusters, `clusters.BLOCK.SCALE` with the cluster of every token. It is checked in
onnxruntime at other batch sizes than it was traced with, on noise and on a constant image, in which tokens tie, and is
only written if it agrees with PyTorch: outputs within 1e-4 (of the largest value, if that is above 1) for every image
with equal clusters, and at least 99 % of all labels equal. (Both round differently, which now and then swaps tokens of
almost equal decision values; outputs for that image then differ more.)

Height and width of the image are constants of the exported graph: the numbers of tokens and clusters follow from them.
Detectors are refused; their backbone can be exported.
"""

import argparse
import os
import tempfile
from pathlib import Path

import onnxruntime
import torch
from transformers import PreTrainedModel

import clustr_hf
from clustr_hf import ClusTRBackbone, ClusTRModel
from clustr_hf.loading import load_trained


TRACED_BATCH, CHECKED_BATCHES = 2, (1, 3, 4)
TOLERANCE = 1e-4
LEAST_EQUAL_LABELS = 0.99

# Class -> outputs, besides the clusters.
OUTPUTS = {
    "ClusTRForImageClassification": ["logits"],
    "ClusTRForSemanticSegmentation": ["logits"],
    "ClusTRForPoseEstimation": ["heatmaps"],
    "ClusTRModel": ["last_hidden_state", "pooler_output"],
    "ClusTRBackbone": ["feature_maps"],
}
# Class -> why there is no file of it.
MISSING = {
    "ClusTRForObjectDetection": "It handles sizes of images in lists with one entry for each image, which would make "
    "the batch size a constant of the graph.",
    "ClusTRForInstanceSegmentation": "It selects boxes by non-maximum suppression (torchvision.ops.batched_nms): their "
    "number depends on the image, for which torch.export has no graph.",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path", help="folder or Hub id of a checkpoint")
    parser.add_argument("output_file", type=Path)
    parser.add_argument("--image_size", type=int, nargs="+", default=[224], help="one side, or height and width")
    parser.add_argument("--model_class", choices=OUTPUTS, help="what to export; default: the class of the checkpoint")
    parser.add_argument(
        "--out_features", nargs="+", metavar="STAGE", help="maps of a ClusTRBackbone: stem, stage1, ..."
    )
    args = parser.parse_args()
    if len(args.image_size) > 2 or min(args.image_size) < 1:
        parser.error(f"argument --image_size: expected one side, or height and width, got {args.image_size}")
    if args.out_features and args.model_class != "ClusTRBackbone":
        parser.error("argument --out_features: goes with --model_class ClusTRBackbone only")
    return args


def load(args: argparse.Namespace) -> PreTrainedModel:
    """
    The model to export.

    Raises:
        ValueError: if the checkpoint lacks weights of the class, or the class cannot be exported.
    """
    fields = {"out_features": args.out_features} if args.out_features else {}
    model_class = getattr(clustr_hf, args.model_class) if args.model_class else None
    model = load_trained(args.model_name_or_path, model_class, **fields)
    name = type(model).__name__
    if name not in OUTPUTS:
        raise ValueError(
            f"`model_name_or_path` {args.model_name_or_path} must be a checkpoint of one of {list(OUTPUTS)}, got "
            f"{name}. {MISSING[name]} --model_class ClusTRBackbone exports its backbone."
        )
    return model


class Outputs(torch.nn.Module):
    """A model with plain tensors as outputs, by name."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if isinstance(self.model, ClusTRBackbone):
            # As its own `forward`, which does not return clusters.
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


def export(model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.onnx.ONNXProgram:
    names = list(model(pixel_values))
    return torch.onnx.export(
        model,
        (pixel_values,),
        dynamo=True,
        verbose=False,
        input_names=["pixel_values"],
        output_names=names,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
    )


def check(file: Path, model: torch.nn.Module, pixel_values: torch.Tensor):
    """Raise a `RuntimeError` if onnxruntime does not agree with PyTorch."""
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    batches = [session.run(None, {"pixel_values": batch.numpy()}) for batch in pixel_values.split(CHECKED_BATCHES)]
    found = {
        name: torch.cat([torch.from_numpy(array) for array in arrays]) for name, arrays in zip(names, zip(*batches))
    }
    expected = model(pixel_values)
    same_image, share = compare_clusters(found, expected)
    worst = max(largest_error(found[name][same_image], expected[name][same_image]) for name in found if is_output(name))
    print(f"Cluster labels equal to PyTorch's: {share:.2%}")
    print(f"Images with equal clusters: {same_image.sum()} of {len(same_image)}; they differ by at most {worst:.1e}")
    if share < LEAST_EQUAL_LABELS or not same_image.any() or not worst <= TOLERANCE:
        raise RuntimeError("the exported model does not agree with PyTorch; nothing was written")


def is_output(name: str) -> bool:
    return not name.startswith("clusters.")


def compare_clusters(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """For each image whether all its clusters are equal, `(B,)`; the share of labels that are."""
    equal = [found[name] == expected[name] for name in found if not is_output(name)]
    if not equal:  # an attention without clusters
        return torch.ones(len(next(iter(found.values()))), dtype=torch.bool, device="cpu"), 1.0
    equal = torch.cat(equal, dim=1)
    return equal.all(dim=1), equal.double().mean().item()


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value where that is above 1; 0 of no images."""
    if expected.numel() == 0:
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


@torch.no_grad()
def main():
    args = parse_args()
    try:
        model = Outputs(load(args)).eval()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    channels = model.model.config.num_channels
    height, width = args.image_size if len(args.image_size) == 2 else args.image_size * 2
    generator = torch.Generator().manual_seed(0)

    images = torch.randn(sum(CHECKED_BATCHES), channels, height, width, generator=generator, device="cpu")
    images[-1] = 0.5
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_file.parent) as folder:
        file = Path(folder, args.output_file.name)
        export(model, images[:TRACED_BATCH]).save(file, external_data=False)
        check(file, model, images)
        os.replace(file, args.output_file)
    print(f"Written to {args.output_file}: {args.output_file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
