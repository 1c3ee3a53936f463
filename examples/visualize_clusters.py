#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Draw the clusters that a checkpoint finds in an image, as in Figure A3 of the paper: stages and scales side by side.

    python examples/visualize_clusters.py out/clustr-nano-digits cat.jpg --coarser 32 --output clusters.png

`--coarser 32` makes clusters 32 times as large, which are easier to see in large images.
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers import AutoImageProcessor

from clustr_hf import ClusTRModel
from clustr_hf.loading import load_trained
from clustr_hf.visualization import coarsen_clusters, find_cluster_maps, plot_clusters, prepare_image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the clusters that a checkpoint finds in an image.")
    parser.add_argument("model", help="folder or Hub id of a checkpoint of any task")
    parser.add_argument("image", type=Path, help="image file")
    output_help = "picture to write; default: %(default)s"
    parser.add_argument("--output", type=Path, default=Path("clusters.png"), help=output_help)
    parser.add_argument("--shorter_side", type=int, default=320, help="shorter side in pixels; default: %(default)s")
    parser.add_argument("--coarser", type=float, default=1, help="factor for the tokens per cluster; default: 1")
    tolerance_help = "cluster_tolerance: the content decides on the number of clusters; default: N / lambda clusters"
    parser.add_argument("--tolerance", type=float, help=tolerance_help)
    parser.add_argument("--stages", type=int, nargs="+", help="stages to draw, from 1; default: all")
    parser.add_argument("--scales", type=int, nargs="+", help="scales to draw, from 1, the coarsest; default: all")
    parser.add_argument("--block", type=int, help="block to draw of each stage, from 1; default: the last one")
    return parser.parse_args()


def main():
    args = parse_args()
    model = coarsen_clusters(load_trained(args.model, ClusTRModel), args.coarser)
    model.set_cluster_budget(args.tolerance)
    with Image.open(args.image) as opened:
        image, pixel_values = prepare_image(opened, AutoImageProcessor.from_pretrained(args.model), args.shorter_side)
    maps = find_cluster_maps(model, pixel_values)
    depths = model.config.depths
    shown = [
        found
        for found in maps
        if found.block == (args.block or depths[found.stage - 1])
        and found.stage in (args.stages or [found.stage])
        and found.scale in (args.scales or [found.scale])
    ]
    if not shown:
        raise SystemExit(
            f"error: no clusters of --stages {args.stages}, --scales {args.scales}, --block {args.block}: the model "
            f"has stages {sorted({m.stage for m in maps})}, scales {sorted({m.scale for m in maps})}, and "
            f"{[depths[stage - 1] for stage in sorted({m.stage for m in maps})]} blocks"
        )
    titles = {f"stage {m.stage}, block {m.block}, scale {m.scale}": (m.cluster_index, m.grid_size) for m in shown}
    plot_clusters(image, titles).savefig(args.output, dpi=110)
    total = sum(found.num_clusters for found in maps)
    print(f"Wrote {args.output}: {', '.join(titles)}; {total} clusters in all blocks and scales")


if __name__ == "__main__":
    main()
