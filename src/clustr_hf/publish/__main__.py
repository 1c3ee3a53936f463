# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Update the code in checkpoints to this package's: `python -m clustr_hf.publish checkpoints/*`."""

import argparse
from pathlib import Path

from .repository import refresh_repository


def main() -> None:
    parser = argparse.ArgumentParser(description="Update the code in checkpoints to the code of this package.")
    parser.add_argument("folders", type=Path, nargs="+", help="folders of checkpoints")
    for folder in parser.parse_args().folders:
        refresh_repository(folder)
        print(f"{folder}: {sum(1 for _ in folder.glob('*.py'))} code files")


if __name__ == "__main__":
    main()
