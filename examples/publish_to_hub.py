#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Publish a checkpoint: assemble a complete repository, check that it runs without this package, push it in one commit.

    python examples/publish_to_hub.py out/camvid --repo_id your-name/clustr-nano-camvid --example_images street.jpg
    python examples/publish_to_hub.py out/camvid --dry_run    # assembles and runs the repository, pushes nothing

The checkpoint is the output folder of a training script, or a folder written by `save_pretrained`. The card of the
training script is kept, if there is one. The script prints the revision to pin.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoImageProcessor

from clustr_hf.loading import load_trained
from clustr_hf.publish import RESULTS, build_repository, push, repository_files, validate_repository
from clustr_hf.publish.card import PICTURES, CardContents, check_card
from clustr_hf.remote_code.handler_clustr import pipeline_task


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Assemble, check and push the repository of a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="folder of a model and its image processor")
    parser.add_argument("--repo_id", help="id on the Hub; default: the folder's name, under your account")
    folder_help = "folder to assemble; default: hub/NAME beside the checkpoint"
    parser.add_argument("--repository_dir", type=Path, help=folder_help)
    images_help = "images that the Hub offers to try, titled with their file names"
    parser.add_argument("--example_images", type=Path, nargs="+", default=[], help=images_help)
    parser.add_argument("--summary", help="purpose of the model, for a new card")
    parser.add_argument("--datasets", nargs="+", default=[], help="ids of the training data sets, for a new card")
    license_help = "license of the weights, for a new card; default: %(default)s"
    parser.add_argument("--license", default="apache-2.0", help=license_help)
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="assemble and check the repository, but push nothing")
    args = parser.parse_args()
    if not (args.checkpoint / "config.json").is_file():
        parser.error(f"checkpoint {args.checkpoint} must be a folder with a saved model, but has no config.json")
    missing = [str(path) for path in args.example_images if not path.is_file()]
    if missing:
        parser.error(f"--example_images {' '.join(missing)}: no such file")
    return args


def choose_card(args: argparse.Namespace, name: str, task: str) -> CardContents | Path:
    """The path of the existing card, if it is complete; otherwise the contents of a new one."""
    path = args.checkpoint / "README.md"
    try:
        check_card(path, task, [f"images/{image.name}" for image in args.checkpoint.glob("images/*")])
        return path
    except (OSError, ValueError) as error:
        print(f"A new card is written: {error}")
        return CardContents(name=name, summary=args.summary, datasets=args.datasets, license=args.license)


def assemble(args: argparse.Namespace, name: str) -> Path:
    """Assemble the repository in a folder of its own, without the other files of a training."""
    config = json.loads((args.checkpoint / "config.json").read_text())
    task = pipeline_task(config)  # raises unless it is a ClusTR model
    model = load_trained(args.checkpoint)
    processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    card = choose_card(args, name, task)
    images = {path.stem.replace("_", " ").capitalize(): path for path in args.example_images}
    files = [args.checkpoint / file for file in (*PICTURES, *RESULTS) if (args.checkpoint / file).is_file()]
    folder = args.repository_dir or args.checkpoint.resolve().parent / "hub" / name
    return build_repository(model, processor, folder, card, images, files)


def main():
    args = parse_args()
    name = (args.repo_id or args.checkpoint.resolve().name).rpartition("/")[2]
    folder = assemble(args, name)
    answer = validate_repository(folder)
    print(f"{folder} is complete, and answers without clustr_hf: {len(answer)} results for an image.")
    for file in repository_files(folder):
        print(f"  {file:<48}{(folder / file).stat().st_size:>12,} bytes")
    if args.dry_run:
        return
    repo_id = args.repo_id or name
    revision = push(folder, repo_id, private=args.private, validate=False)  # validated above
    print(f'Pushed. Load it with\n\n    model="{repo_id}", revision="{revision}", trust_remote_code=True')


if __name__ == "__main__":
    main()
