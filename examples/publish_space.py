#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Publish the Space of `examples/space/`, with this package and, if it is wanted, a checkpoint in it.

    python examples/publish_space.py --repo_id your-name/clustr --models your-name/clustr-nano-camvid@4f2a0c9
    python examples/publish_space.py --folder out/space --demo_checkpoint out/clustr-nano-digits    # pushes nothing

A folder that was assembled runs as it is: `python out/space/app.py`.
"""

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import clustr_hf
from clustr_hf.publish import package_requirements, push_space, repository_files


SPACE = Path(__file__).resolve().parent / "space"
PACKAGE = Path(clustr_hf.__file__).parent
DEMO = "clustr-nano-digits"  # where the app looks for it


def assemble_space(folder: Path, models: list[str], demo_checkpoint: Path | None = None) -> Path:
    """
    All that a Space needs, in a folder.

    Args:
        folder (`Path`): Is made; must not exist.
        models (`list[str]`): Ids on the Hub; with `@revision` behind them they stay as they are.
        demo_checkpoint (`Path`, *optional*): A classifier's folder to go along, for when the Hub cannot be reached.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if the demo's checkpoint is no repository.
    """
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.cpp", "*.inc")
    shutil.copytree(SPACE, folder, ignore=ignore)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignore)
    if demo_checkpoint is not None:
        for name in repository_files(demo_checkpoint):
            (folder / DEMO / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo_checkpoint / name, folder / DEMO / name)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("sdk: gradio\n", f"sdk: gradio\nsdk_version: {version('gradio')}\n"))
    entries = [dict(zip(("model", "revision"), model.split("@", 1))) for model in models]
    (folder / "models.json").write_text(json.dumps(entries, indent=2) + "\n")
    (folder / "requirements.txt").write_text("\n".join(package_requirements("matplotlib")) + "\n")
    return folder


def main():
    parser = argparse.ArgumentParser(description="Assemble and push the Space.")
    parser.add_argument("--repo_id", help="id of the Space on the Hub; without, nothing is pushed")
    parser.add_argument("--folder", type=Path, default=Path("out/space"), help="folder to assemble; must not exist")
    parser.add_argument("--models", nargs="+", default=[], help="models to show, id or id@revision")
    parser.add_argument("--demo_checkpoint", type=Path, help="folder of a classifier to go along")
    parser.add_argument("--private", action="store_true", default=None, help="only you see a new Space")
    args = parser.parse_args()
    try:
        folder = assemble_space(args.folder, args.models, args.demo_checkpoint)
    except (FileExistsError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Assembled {folder}; try it with: python {folder}/app.py")
    if args.repo_id is not None:
        print(f"Pushed {args.repo_id}, revision {push_space(folder, args.repo_id, args.private)}")


if __name__ == "__main__":
    main()
