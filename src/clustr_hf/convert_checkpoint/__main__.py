# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Convert a checkpoint of the authors' code to a checkpoint of this package.

    python -m clustr_hf.convert_checkpoint IN OUT [--num_attention_heads 1 2 4 8] [--reduction_ratios "[[64,16],...]"]

IN is a `.safetensors` file, or a PyTorch file, which is read with `weights_only=True`. The folder OUT receives
`model.safetensors`, the configuration, the image processor, and the code for `trust_remote_code=True`.
examples/convert_pretrained.py converts PVTv2 and SegFormer.
"""

import argparse
import json
from pathlib import Path

from .authors import convert_checkpoint


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clustr_hf.convert_checkpoint", description="Convert a checkpoint of the authors' ClusTR."
    )
    parser.add_argument("source", metavar="IN", type=Path, help=".safetensors or PyTorch file of the authors' code")
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument(
        "--num_attention_heads", type=int, nargs="+", help="number of heads in each stage; default: C / 64"
    )
    parser.add_argument(
        "--reduction_ratios",
        type=json.loads,
        help='reduction ratios of each stage and scale as JSON; default: "[[64,16],[16,4],[4,1],[1]]"',
    )
    args = parser.parse_args(arguments)
    try:
        model = convert_checkpoint(args.source, args.folder, args.num_attention_heads, args.reduction_ratios)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Wrote {args.folder}: {model.num_parameters():,} parameters, {model.config.num_labels} labels.")


if __name__ == "__main__":
    main()
