#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Write the clustering as a kernel repository for the `kernels` library of the Hub.

    python examples/build_hub_kernel.py out/dpc-knn-clustering --repo_id your-name/dpc-knn-clustering

See docs/hub_kernel.md for how to load, use and upload it.
"""

import argparse
from pathlib import Path

from clustr_hf.hub_kernel import NAME, VERSION, build_kernel_repository


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the clustering as a repository for the `kernels` library.")
    parser.add_argument("folder", type=Path, help="new or empty folder for the kernel repository")
    parser.add_argument("--repo_id", default=f"your-name/{NAME}", help="id on the Hub; default: %(default)s")
    parser.add_argument(
        "--version", type=int, default=VERSION, help="major version of the kernel; default: %(default)s"
    )
    parser.add_argument(
        "--launch_config",
        type=Path,
        nargs="+",
        default=[],
        help="JSON files with launch configurations, named after their GPUs; default: none",
    )
    args = parser.parse_args()
    missing = [str(path) for path in args.launch_config if not path.is_file()]
    if missing:
        parser.error(f"--launch_config {' '.join(missing)}: no such file")
    return args


def main():
    args = parse_args()
    folder = build_kernel_repository(args.folder, args.repo_id, args.version, args.launch_config)
    print(f"Wrote {folder}. Load it with\n\n    kernels.get_local_kernel(Path({str(folder / 'build')!r}))")


if __name__ == "__main__":
    main()
