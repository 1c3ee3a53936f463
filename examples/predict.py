#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Predict what is in the images of a folder with a checkpoint's own code: nothing but transformers is imported.

    python examples/predict.py MODEL FOLDER --output predictions.json

The checkpoint decides what is predicted: one class for each image, or a list of objects, regions or persons. Masks
are written as PNG files to a folder beside the output, `predictions_masks/`, and named in it.

Runs the code in MODEL (`trust_remote_code=True`): use it on checkpoints that you trust.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoConfig, pipeline


IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# Class of a checkpoint -> the pipeline that runs it.
TASKS = {
    "ClusTRForImageClassification": "image-classification",
    "ClusTRForSemanticSegmentation": "image-segmentation",
    "ClusTRForInstanceSegmentation": "image-segmentation",
    "ClusTRForObjectDetection": "object-detection",
    "ClusTRForPoseEstimation": "keypoint-detection",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predict what is in the images of a folder.")
    parser.add_argument("model", help="folder or Hub id of a checkpoint of any task")
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--output", type=Path, default=Path("predictions.json"), help="file name -> what was predicted")
    parser.add_argument("--batch_size", type=int, default=32, help="images in a batch of a classifier; others take one")
    return parser.parse_args()


def choose_task(model: str) -> str:
    """The task that the checkpoint was trained for: another one's head would be made up."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=True)
    [architecture] = config.architectures or [None]
    if architecture not in TASKS:
        raise SystemExit(f"error: {model} must be a checkpoint of one of {list(TASKS)}, got {architecture}")
    return TASKS[architecture]


def write_masks(answers: list[dict], folder: Path, stem: str) -> list[dict]:
    """Answers for one image, in which the paths of files replace masks."""
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
    # Pipelines fail where EXIF is malformed; the processor does not.
    answers = predict((predict.image_processor.read_image(path) for path in paths), **options)
    if task == "image-classification":
        predictions = {path.name: answer for path, (answer,) in zip(paths, answers)}
    else:
        masks = args.output.with_name(f"{args.output.stem}_masks")
        predictions = {path.name: write_masks(answer, masks, path.name) for path, answer in zip(paths, answers)}
    code = type(predict.model).__module__
    args.output.write_text(json.dumps({"code": code, "predictions": predictions}, indent=2))
    print(f"Predicted for {len(paths)} images; see {args.output}")


if __name__ == "__main__":
    main()
