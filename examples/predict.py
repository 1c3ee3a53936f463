#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Run a checkpoint of any task on the images of a folder, with the checkpoint's own code: only transformers is imported.

    python examples/predict.py MODEL FOLDER --output predictions.json

The task of the checkpoint decides what is predicted: one class for each image, or a list of objects, segments or
persons. Masks are written as PNG files to the folder `predictions_masks/` beside the output, which names them.

The script runs the code in MODEL (`trust_remote_code=True`): use it with checkpoints that you trust.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoConfig, pipeline


IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# Class of a checkpoint -> task of its pipeline.
TASKS = {
    "ClusTRForImageClassification": "image-classification",
    "ClusTRForSemanticSegmentation": "image-segmentation",
    "ClusTRForInstanceSegmentation": "image-segmentation",
    "ClusTRForObjectDetection": "object-detection",
    "ClusTRForPoseEstimation": "keypoint-detection",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a checkpoint of any task on the images of a folder.")
    parser.add_argument("model", help="folder or Hub id of a checkpoint of any task")
    parser.add_argument("folder", type=Path, help="folder of images")
    output_help = "JSON file to write; default: %(default)s"
    parser.add_argument("--output", type=Path, default=Path("predictions.json"), help=output_help)
    batch_help = "batch size of classifiers, default: 32; other models take one image at a time"
    parser.add_argument("--batch_size", type=int, default=32, help=batch_help)
    return parser.parse_args()


def choose_task(model: str) -> str:
    """The pipeline task for the class of the checkpoint; any other class would have a randomly initialised head."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=True)
    [architecture] = config.architectures or [None]
    if architecture not in TASKS:
        raise SystemExit(f"error: {model} must be a checkpoint of one of {list(TASKS)}, got {architecture}")
    return TASKS[architecture]


def write_masks(answers: list[dict], folder: Path, stem: str) -> list[dict]:
    """Write the masks of an image as PNG files, and replace them in the answers by the paths of the files."""
    for index, answer in enumerate(answers):
        if "mask" in answer:
            folder.mkdir(exist_ok=True)
            path = folder / f"{stem}-{index}.png"
            answer["mask"].save(path)
            answer["mask"] = f"{folder.name}/{path.name}"
    return answers


def main():
    args = parse_args()
    paths = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"error: no images in {args.folder}")
    task = choose_task(args.model)
    predict = pipeline(task, model=args.model, trust_remote_code=True)
    options = {"top_k": 1, "batch_size": args.batch_size} if task == "image-classification" else {}
    # Unlike pipelines, the processor reads files with malformed EXIF.
    answers = predict((predict.image_processor.read_image(path) for path in paths), **options)
    if task == "image-classification":
        predictions = {path.name: answer for path, (answer,) in zip(paths, answers)}
    else:
        masks = args.output.with_name(f"{args.output.stem}_masks")
        predictions = {path.name: write_masks(answer, masks, path.name) for path, answer in zip(paths, answers)}
    code = type(predict.model).__module__
    args.output.write_text(json.dumps({"code": code, "predictions": predictions}, indent=2))
    print(f"Wrote predictions for {len(paths)} images to {args.output}")


if __name__ == "__main__":
    main()
