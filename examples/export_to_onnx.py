#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Export a classifier to ONNX, with any number of images in a batch, and check the file against PyTorch.

    python examples/export_to_onnx.py out/clustr-nano-digits out/clustr-nano-digits.onnx --image_size 32

The file's outputs are `logits` and, for each block and scale that clusters, `clusters.BLOCK.SCALE` with the cluster of
every token. It is checked in onnxruntime at another batch size than it was traced with, on noise and on a constant
image, in which tokens tie, and is only written if it agrees with PyTorch: logits within 1e-4 for every image with equal
clusters, and at least 99 % of all labels equal. (Both round differently, which now and then swaps tokens of almost
equal decision values; logits of that image then differ more.)

Height and width of the image are constants of the exported graph: the numbers of tokens and clusters follow from them.
"""

import argparse
import os
import tempfile
from pathlib import Path

import onnxruntime
import torch
from transformers import AutoModelForImageClassification

import clustr_hf  # noqa: F401  registers the classes: the checkpoint's own code is not needed


TRACED_BATCH, CHECKED_BATCH = 2, 7
LOGITS_TOLERANCE = 1e-4
LEAST_EQUAL_LABELS = 0.99


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path", help="folder or Hub id of a ClusTRForImageClassification")
    parser.add_argument("output_file", type=Path)
    parser.add_argument("--image_size", type=int, nargs="+", default=[224], help="one side, or height and width")
    args = parser.parse_args()
    if len(args.image_size) > 2 or min(args.image_size) < 1:
        parser.error(f"argument --image_size: expected one side, or height and width, got {args.image_size}")
    return args


class LogitsAndClusters(torch.nn.Module):
    """The classifier with plain tensors as outputs, by name."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(pixel_values, output_clusters=True)
        clusters = {
            f"clusters.{block}.{scale}": index
            for block, scales in enumerate(output.cluster_indices)
            for scale, index in enumerate(scales)
        }
        return {"logits": output.logits, **clusters}


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
    expected = model(pixel_values)
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(None, {"pixel_values": pixel_values.numpy()})
    found = {name: torch.from_numpy(array) for name, array in zip(names, arrays)}
    is_equal = torch.cat([found[name] == expected[name] for name in names if name != "logits"], dim=1)
    same_image = is_equal.all(dim=1)
    errors = (found["logits"] - expected["logits"]).abs().amax(dim=1)[same_image]
    worst = errors.max().item() if len(errors) else float("nan")
    print(f"Cluster labels equal to PyTorch's: {is_equal.double().mean():.2%}")
    print(f"Images with equal clusters: {len(errors)} of {len(same_image)}; their logits differ by at most {worst:.1e}")
    if is_equal.double().mean() < LEAST_EQUAL_LABELS or not worst <= LOGITS_TOLERANCE:
        raise RuntimeError("the exported model does not agree with PyTorch; nothing was written")


@torch.no_grad()
def main():
    args = parse_args()
    model = LogitsAndClusters(AutoModelForImageClassification.from_pretrained(args.model_name_or_path)).eval()
    channels = model.model.config.num_channels
    height, width = args.image_size if len(args.image_size) == 2 else args.image_size * 2
    generator = torch.Generator().manual_seed(0)

    images = torch.randn(CHECKED_BATCH, channels, height, width, generator=generator)
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
