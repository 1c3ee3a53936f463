#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Classify the images of a folder with a checkpoint's own code: nothing but transformers is imported.

    python examples/predict.py MODEL FOLDER --output predictions.json

Runs the code in MODEL (`trust_remote_code=True`): use it on checkpoints that you trust.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoModelForImageClassification, pipeline


IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify the images of a folder.")
    parser.add_argument("model", help="folder or Hub id of a checkpoint")
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--output", type=Path, default=Path("predictions.json"), help="file name -> class and score")
    parser.add_argument("--batch_size", type=int, default=32)
    return parser.parse_args()


def main():
    args = parse_args()
    paths = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"error: no images in {args.folder}")
    model = AutoModelForImageClassification.from_pretrained(args.model, trust_remote_code=True)
    classify = pipeline(
        "image-classification", model=model, image_processor=args.model, trust_remote_code=True, top_k=1
    )
    # Pipelines fail where EXIF is malformed; the processor does not.
    images = (classify.image_processor.read_image(path) for path in paths)
    answers = classify(images, batch_size=args.batch_size)
    predictions = {path.name: answer for path, (answer,) in zip(paths, answers)}
    args.output.write_text(json.dumps({"code": type(model).__module__, "predictions": predictions}, indent=2))
    print(f"Classified {len(paths)} images; see {args.output}")


if __name__ == "__main__":
    main()
