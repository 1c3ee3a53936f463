#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Publish the Space of `examples/space/`, including this package and its bundled checkpoint.

    python examples/publish_space.py --repo_id your-name/clustr --models your-name/clustr-nano-camvid@4f2a0c9
    python examples/publish_space.py --folder out/space    # only assembles the folder

The assembled folder can be run locally: `python out/space/app.py`.
"""

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import clustr_hf
from clustr_hf.publish import package_requirements, push_space


SPACE = Path(__file__).resolve().parent / "space"
PACKAGE = Path(clustr_hf.__file__).parent


def assemble_space(folder: Path, models: list[str]) -> Path:
    """
    Assemble the files of the Space in a folder.

    Args:
        folder (`Path`): Folder to create.
        models (`list[str]`): Ids on the Hub of the models to show; `id@revision` pins a revision.

    Raises:
        FileExistsError: if the folder exists.
    """
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "csrc")
    shutil.copytree(SPACE, folder, ignore=ignore)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignore)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("sdk: gradio\n", f"sdk: gradio\nsdk_version: {version('gradio')}\n"))
    entries = [dict(zip(("model", "revision"), model.split("@", 1))) for model in models]
    (folder / "models.json").write_text(json.dumps(entries, indent=2) + "\n")
    (folder / "requirements.txt").write_text("\n".join(package_requirements("matplotlib")) + "\n")
    return folder


def main():
    parser = argparse.ArgumentParser(description="Assemble and push the Space.")
    parser.add_argument("--repo_id", help="id of the Space on the Hub; default: push nothing")
    parser.add_argument("--folder", type=Path, default=Path("out/space"), help="folder to create; default: %(default)s")
    parser.add_argument("--models", nargs="+", default=[], help="models to show, as id or id@revision; default: none")
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")
    args = parser.parse_args()
    try:
        folder = assemble_space(args.folder, args.models)
    except FileExistsError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Assembled {folder}; try it with: python {folder}/app.py")
    if args.repo_id is not None:
        print(f"Pushed {args.repo_id}, revision {push_space(folder, args.repo_id, args.private)}")


if __name__ == "__main__":
    main()
