# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of the benchmark."""

import argparse
import itertools
import re
from pathlib import Path

from benchmark.measurements.inputs import Setting
from benchmark.measurements.steps import DTYPES
from benchmark.models import BASELINES, is_model_name, min_image_side
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
            f"expected one of {', '.join(BASELINES)} or clustr-VARIANT[-backbone][+SWITCH...], VARIANT nano, tiny, "
            f"small or base, SWITCH window, sharing, max or options, got {text!r}"
        )
    return text


def number_from(minimum: int):
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return parse


def make_parser() -> argparse.ArgumentParser:
    description = "Time, memory and operations of ClusTR and of models of its size."
    parser = argparse.ArgumentParser(prog="python examples/benchmark", description=description)
    add = parser.add_argument
    models_help = (
        f"models to compare: {', '.join(BASELINES)} or clustr-VARIANT[-backbone][+SWITCH...]; default: all but nano"
    )
    add(
        "--models", nargs="+", type=parse_model, default=[*CLUSTR_MODELS, *BASELINES], metavar="MODEL", help=models_help
    )
    add("--reference", help="model that the ratios refer to; default: swin-small, or the first of --models")
    device_help = "cpu, cuda, cuda:1, xpu, mps, or accelerator for any of them; default: an accelerator if there is one"
    add("--device", type=parse_device, default=default_device(), help=device_help)
    add("--seed", type=number_from(0), default=0, help="seed of weights, images and order; default: %(default)s")
    output_help = "folder for benchmark.json, benchmark.md and benchmark.png; default: %(default)s"
    add("--output_dir", type=Path, default=Path("out/benchmark"), help=output_help)
    _add_measurements(parser.add_argument_group("measurements"))
    _add_speed_options(parser.add_argument_group("speed options of the models that switch them on"))
    return parser


def _add_measurements(group):
    add = group.add_argument
    settings_help = "image sizes and batch sizes to time: SIZExBATCH or HEIGHTxWIDTHxBATCH; default: 224x4"
    add("--settings", nargs="*", type=parse_setting, default=[Setting(224, 224, 4)], help=settings_help)
    passes_help = "passes to time; training is backward and an AdamW step; default: forward"
    add("--passes", nargs="+", choices=("forward", "backward", "training"), default=["forward"], help=passes_help)
    modes_help = "modes to time; default: eager"
    add("--modes", nargs="+", choices=("eager", "compiled"), default=["eager"], help=modes_help)
    dtypes_help = "bfloat16: bfloat16 weights and images; autocast: float32 weights under autocast to bfloat16"
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help=f"{dtypes_help}; default: float32")
    repeats_help = "number of timed rounds; 0 skips the times; default: %(default)s"
    add("--repeats", type=number_from(0), default=20, help=repeats_help)
    warmup_help = "passes of each model before the first round; default: %(default)s"
    add("--warmup", type=number_from(1), default=2, help=warmup_help)
    memory_help = "also measure the peak memory of each model in eager passes, each in a fresh process"
    add("--memory", action="store_true", help=memory_help)
    throughput_help = (
        "image sizes at which to measure images per second, in eager batches of 1, 2, 4, ... until memory is full; "
        "default: none"
    )
    add("--throughput", nargs="+", type=parse_size, default=[], metavar="SIZE", help=throughput_help)
    add("--largest_batch", type=number_from(1), help="largest batch of --throughput; required on a CPU")
    clustering_help = "TOKENSxCHANNELS: also time find_clusters alone on tokens of these sizes; default: none"
    add("--clustering", nargs="+", type=parse_tokens, default=[], help=clustering_help)


def _add_speed_options(group):
    add = group.add_argument
    window_help = "cluster_window of models with +window or +options; default: %(default)s"
    add("--cluster_window", type=number_from(1), default=28, help=window_help)
    sharing_help = "cluster_sharing of models with +sharing or +options; default: %(default)s"
    add("--cluster_sharing", choices=("block", "stage"), default="stage", help=sharing_help)
    max_help = "max_clusters of models with +max or +options; default: %(default)s"
    add("--max_clusters", type=number_from(1), default=196, help=max_help)


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
            if min(size[:2]) < min_image_side(name):
                got = "x".join(map(str, size))
                parser.error(f"argument --{option}: expected at least {min_image_side(name)} for {name}, got {got}")
    if args.throughput and args.largest_batch is None and not is_accelerator(args.device):
        parser.error("argument --largest_batch: expected a number with --throughput on a CPU, got none")
    return args
