#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Estimate the cost of clustering on an H100 from counted operations and the chip's published limits; nothing is timed.

    python examples/benchmark/clustering_cost.py --settings 224x128 512x16 --images 224 512

Networks run on the meta device, eager and in bfloat16; the script counts their floating point operations, the bytes
that each operation reads and writes, and their launches. The cost of the clustering follows from the sizes of its
sweeps in clustering_triton_nearest_kernels_clustr.py: matrix products, instructions for each pair of tokens, and the
bytes of its passes over the tokens. The minimum time assumes a chip at its limits; real kernels take longer.

`--images` adds the share of tokens that the sweeps must process again, in the photographs of scikit-image.
"""

import argparse
import sys
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package `benchmark`

from benchmark.arguments import parse_setting
from benchmark.cost.sweep_shares import photograph_rows
from benchmark.cost.tables import cost_rows, operation_rows
from benchmark.measurements.inputs import Setting
from benchmark.report.cells import markdown_table


def format_rows(rows: list[dict[str, Any]]) -> str:
    return markdown_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def main():
    parser = argparse.ArgumentParser(description="Estimate what clustering costs on an H100; nothing is timed.")
    settings = [Setting(224, 224, 128), Setting(512, 512, 16)]
    parser.add_argument(
        "--settings",
        nargs="+",
        type=parse_setting,
        default=settings,
        help="image sizes and batch sizes as SIZExBATCH or HEIGHTxWIDTHxBATCH; default: 224x128 512x16",
    )
    parser.add_argument(
        "--images",
        nargs="*",
        type=int,
        metavar="SIZE",
        help="also count the tokens that the sweeps process again, in photographs of these sizes; default: none",
    )
    args = parser.parse_args()
    print(format_rows(list(operation_rows(args.settings))))
    print("\n" + format_rows([entry for setting in args.settings for entry in cost_rows(setting)]))
    if args.images:
        print("\n" + format_rows([entry for size in args.images for entry in photograph_rows(size)]))


if __name__ == "__main__":
    main()
