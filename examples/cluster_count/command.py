# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
What the number of clusters costs: the score of a model against its clusters and its time, with the same number in every
image and with numbers that follow the content.

The curve of a checkpoint, on the validation images of a data set; `curve` takes a task, the arguments of its training
script and some of its own (`curve classification --help`):

    python examples/cluster_count curve classification --model_name_or_path out/photos --train_dir photos/train \
        --validation_dir photos/validation --output_dir out/photos-clusters

The means of several curves, for example of checkpoints of several seeds:

    python examples/cluster_count compare out/photos-*/cluster_count.json

The study of docs/cluster_count.md, which trains and measures models with several seeds. Complete runs are skipped:

    python examples/cluster_count study --data imagenette128 --segmentation_data camvid --output_dir out/cluster-count

The time of ClusTR-S at 512 x 512 pixels, and where it goes:

    python examples/cluster_count time --images camvid/train.parquet
"""

import json
import signal
import sys
from pathlib import Path

from ablations.command import train
from ablations.train_variant import TASKS
from transformers import HfArgumentParser

from cluster_count.arguments import StudyArguments, TimeArguments
from cluster_count.curve import draw_curve
from cluster_count.plan import plan_runs
from cluster_count.study import measure_runs, report
from cluster_count.table import compare_table
from cluster_count.timing import measure_time
from clustr_hf.training.checkpoints import write_json


def main():
    """Run the command that the first argument names."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command == "curve" and arguments[:1] and arguments[0] in TASKS:
        draw_curve(arguments[0], arguments[1:])
    elif command == "study":
        _study(arguments)
    elif command == "compare" and arguments:
        _compare(arguments)
    elif command == "time":
        _time(arguments)
    else:
        print(__doc__)
        if command not in ("-h", "--help"):
            expected = f"`curve` with one of {list(TASKS)}, `compare` with files, `study` or `time`"
            raise SystemExit(f"expected {expected}, got {sys.argv[1:3]}")


def _compare(paths: list[str]) -> None:
    """Print the means of several curves of one task, such as those of several seeds."""
    curves = [json.loads(Path(path).read_text()) for path in paths]
    points = [{**point, "seed": number} for number, curve in enumerate(curves) for point in curve["points"]]
    print(compare_table({"": points}, curves[0]["metric"]))


def _time(arguments: list[str]) -> None:
    """Measure the time, print it, and write it to time.json."""
    (args,) = HfArgumentParser(TimeArguments, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    result = measure_time(args)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.output_dir) / "time.json", result)
    print(json.dumps(result, indent=2))


def _study(arguments: list[str]) -> None:
    """Train all incomplete runs, measure them, and report."""
    (args,) = HfArgumentParser(StudyArguments, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    runs = plan_runs(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception also stops the current run
    complete = [run.is_complete() for run in runs]  # refuses folders with other settings before any training starts
    if not args.report:
        train(runs, args.jobs, f"runs, {sum(complete)} of them complete")
        measure_runs(runs, args)
    print(report(runs, args))
