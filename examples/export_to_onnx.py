#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Export a checkpoint to ONNX, for any number of images in a batch, and check the file against PyTorch.

    python examples/export_to_onnx.py out/clustr-nano-digits out/clustr-nano-digits.onnx --image_size 32
    python examples/export_to_onnx.py checkpoints/clustr-nano-camvid out/camvid.onnx --image_size 360 480
    python examples/export_to_onnx.py checkpoints/clustr-nano-bccd out/maps.onnx --model_class ClusTRBackbone \
        --out_features stage1 stage2 stage3 stage4 --image_size 320 416

The class of the checkpoint is exported, or `--model_class` if the checkpoint has all weights of that class; every
checkpoint has the weights of the backbone. The outputs of the file are

    ClusTRForImageClassification     logits
    ClusTRForSemanticSegmentation    logits, one map for each class
    ClusTRForPoseEstimation          heatmaps
    ClusTRModel                      last_hidden_state, pooler_output
    ClusTRBackbone                   feature_maps.STAGE for each of `--out_features`

and `clusters.BLOCK.SCALE` with the cluster of every token, for each block and scale that clusters. The file is checked
with onnxruntime and written only if it agrees with PyTorch, see `clustr_hf.export.export_to_onnx`.

Height and width of the image are constants of the exported graph. Detectors cannot be exported; their backbones can.
"""

import argparse
from pathlib import Path

import clustr_hf
from clustr_hf.export import OUTPUTS, export_to_onnx
from clustr_hf.loading import load_trained


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path", help="folder or Hub id of a checkpoint")
    parser.add_argument("output_file", type=Path, help="ONNX file to write")
    size_help = "image size in pixels: one side, or height and width; default: 224"
    parser.add_argument("--image_size", type=int, nargs="+", default=[224], help=size_help)
    parser.add_argument("--model_class", choices=OUTPUTS, help="class to export; default: the checkpoint's")
    features_help = "feature maps of a ClusTRBackbone: stem, stage1, ...; default: the checkpoint's"
    parser.add_argument("--out_features", nargs="+", metavar="STAGE", help=features_help)
    args = parser.parse_args()
    if len(args.image_size) > 2 or min(args.image_size) < 1:
        parser.error(f"argument --image_size: expected one side, or height and width, got {args.image_size}")
    if args.out_features and args.model_class != "ClusTRBackbone":
        parser.error("argument --out_features: requires --model_class ClusTRBackbone")
    return args


def main():
    args = parse_args()
    fields = {"out_features": args.out_features} if args.out_features else {}
    model_class = getattr(clustr_hf, args.model_class) if args.model_class else None
    height, width = args.image_size if len(args.image_size) == 2 else args.image_size * 2
    try:
        model = load_trained(args.model_name_or_path, model_class, **fields)
        report = export_to_onnx(model, args.output_file, (height, width))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"Cluster labels equal to PyTorch's: {report['equal_labels']:.2%}")
    print(f"Images with equal clusters: {report['equal_images']} of {report['images']}")
    print(f"Largest difference between their outputs: {report['error']:.1e}")
    print(f"Written to {args.output_file}: {args.output_file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
