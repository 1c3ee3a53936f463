# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
How much of a pretrained model survives the conversion to ClusTR, and how fast the rest is recovered: a study on small
data.

    python examples/conversion --setting imagenette --data imagenette128 --output_dir out/conversion-imagenette

Every seed trains a source, transformers' PVTv2, converts it, and fine-tunes the result with distillation and without,
beside the source itself and ClusTR from random weights; with `--segmentation_data`, some of them start a semantic
segmentation. Complete runs are skipped, and an interrupted run is resumed. `--choices` compares learning rates and
distillations on images that the tables do not report. `--report` trains nothing. docs/pretrained_weights.md has the
results.
"""

import re
import signal
import sys
from collections.abc import Sequence

from ablations.command import train
from ablations.runs import Run
from transformers import HfArgumentParser

from conversion.arguments import ConversionStudyArguments
from conversion.plan import plan_runs
from conversion.report import report, report_choices


def select(runs: Sequence[Run], rows: str) -> list[Run]:
    """The runs whose row matches a regular expression, and those that they need."""
    chosen = [run for run in runs if re.search(rows, run.row)]
    needed = set()
    while chosen:
        run = chosen.pop()
        needed.add(run.folder)
        chosen += run.needs
    return [run for run in runs if run.folder in needed]


def main():
    """Train all incomplete runs, and report."""
    (args,) = HfArgumentParser(ConversionStudyArguments, allow_abbrev=False).parse_args_into_dataclasses()
    runs = select(plan_runs(args), args.rows)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception also stops the current run
    complete = [run.is_complete() for run in runs]  # refuses folders with other settings before any training starts
    if not args.report:
        train(runs, args.jobs, f"runs, {sum(complete)} of them complete")
    write_report = report_choices if args.choices else report
    write_report([run for run in runs if run.is_complete()], args)
