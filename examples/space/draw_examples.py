#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Draw the synthetic examples of the Space: blood cells, nuclei, a street, persons and vehicles, without photographs.

    python examples/space/draw_examples.py                 # writes to images/ beside this file
    python examples/space/draw_examples.py --folder out

The files are the same every time, except for differences between versions of NumPy and Pillow.
"""

import argparse
from pathlib import Path

from drawings.lawn import draw_persons
from drawings.microscopy import draw_cells, draw_nuclei
from drawings.street import draw_street
from drawings.vehicles import draw_automobile, draw_ship


IMAGES = Path(__file__).resolve().parent / "images"

DRAWINGS = {
    "synthetic_cells": draw_cells,
    "synthetic_nuclei": lambda: draw_nuclei(stained=False),
    "synthetic_nuclei_stained": lambda: draw_nuclei(stained=True, seed=6),
    "synthetic_street": draw_street,
    "synthetic_persons": draw_persons,
    "synthetic_automobile": draw_automobile,
    "synthetic_ship": draw_ship,
}


def main():
    parser = argparse.ArgumentParser(description="Draw the synthetic examples of the Space.")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="folder to write; default: images/")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        draw().save(folder / f"{name}.jpg", quality=88)
        print(f"Wrote {folder / name}.jpg")


if __name__ == "__main__":
    main()
