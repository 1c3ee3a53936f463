# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of benchmark.py."""

import argparse
import itertools
import re
from pathlib import Path

from benchmark.measure import DTYPES, Setting
from benchmark.models import PEERS, is_model_name, least_image_side
from clustr_hf.devices import default_device, is_accelerator, parse_device


CLUSTR_MODELS = ["clustr-tiny", "clustr-small", "clustr-base"]
DEFAULT_REFERENCE = "swin-small"


def parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    size = [int(number) for number in match.groups(default=match[1])] if match else [0]
    if min(size) < 1:
        raise argparse.ArgumentTypeError(f"expected SIZE or HEIGHTxWIDTH such as 224 or 800x1333, got {text!r}")
    return size[0], size[1]


def parse_setting(text: str) -> Setting:
    match = re.fullmatch(r"(\d+)x(?:(\d+)x)?(\d+)", text)
    numbers = [int(number) for number in match.groups(default=match[1])] if match else [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"expected SIZExBATCH or HEIGHTxWIDTHxBATCH such as 224x4 or 800x1333x1, got {text!r}"
        )
    return Setting(*numbers)


def parse_tokens(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or int(match[1]) < 5 or int(match[2]) < 1:
        raise argparse.ArgumentTypeError(f"expected TOKENSxCHANNELS such as 3136x64, at least 5 tokens, got {text!r}")
    return int(match[1]), int(match[2])


def parse_model(text: str) -> str:
    if not is_model_name(text):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(PEERS)} or clustr-VARIANT[-backbone][+SWITCH...], VARIANT nano, tiny, small "
            f"or base, SWITCH window, sharing, max or options, got {text!r}"
        )
    return text


def number_from(least: int):
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time, memory and operations of ClusTR beside models of its size.")
    add = parser.add_argument
    add("--models", nargs="+", type=parse_model, default=[*CLUSTR_MODELS, *PEERS], metavar="MODEL")
    add("--reference", help="model that the ratios refer to; default: swin-small, or the first of --models")
    add(
        "--settings",
        nargs="*",
        type=parse_setting,
        default=[Setting(224, 224, 4)],
        help="SIZExBATCH or HEIGHTxWIDTHxBATCH",
    )
    add("--passes", nargs="+", choices=("forward", "backward", "training"), default=["forward"])
    add("--modes", nargs="+", choices=("eager", "compiled"), default=["eager"])
    dtypes_help = "bfloat16: weights and images in it; autocast: float32 weights under autocast to bfloat16"
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help=f"{dtypes_help}; default: float32")
    add("--repeats", type=number_from(0), default=20, help="rounds; 0 leaves times out")
    add("--warmup", type=number_from(1), default=2, help="passes of each model before the first round")
    add("--memory", action="store_true", help="peak memory of each model in eager passes, each in a fresh process")
    throughput_help = "SIZE or HEIGHTxWIDTH: images a second, eager, for batches of 1, 2, 4, ... until memory is full"
    add("--throughput", nargs="+", type=parse_size, default=[], metavar="SIZE", help=throughput_help)
    add("--largest_batch", type=number_from(1), help="largest batch of --throughput; needed on a CPU")
    add("--clustering", nargs="+", type=parse_tokens, default=[], help="TOKENSxCHANNELS to time find_clusters on")
    add("--cluster_window", type=number_from(1), default=28, help="value for models with +window or +options")
    add("--cluster_sharing", choices=("block", "stage"), default="stage", help="for +sharing or +options")
    add("--max_clusters", type=number_from(1), default=196, help="for +max or +options")
    device_help = "such as cpu, cuda, cuda:1, xpu, mps, or accelerator for any; default: an accelerator if there is one"
    add("--device", type=parse_device, default=default_device(), help=device_help)
    add("--seed", type=number_from(0), default=0)
    add("--output_dir", type=Path, default=Path("out/benchmark"))
    return parser


def parse_args() -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args()
    args.models = list(dict.fromkeys(args.models))
    if args.reference is None:
        args.reference = DEFAULT_REFERENCE if DEFAULT_REFERENCE in args.models else args.models[0]
    if args.reference not in args.models:
        parser.error(f"argument --reference: expected one of the models {args.models}, got {args.reference!r}")
    for option in ("settings", "throughput"):
        for size, name in itertools.product(getattr(args, option), args.models):
            if min(size[:2]) < least_image_side(name):
                got = "x".join(map(str, size))
                parser.error(f"argument --{option}: expected at least {least_image_side(name)} for {name}, got {got}")
    if args.throughput and args.largest_batch is None and not is_accelerator(args.device):
        parser.error("argument --largest_batch: expected a number beside --throughput on a CPU, got none")
    return args
