# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Tables 6 and 7 of the paper on small data: the training scripts run all rows with the same seeds, schedule and budget.

    python examples/ablations --table 6 7 --data imagenette128 --segmentation_data camvid --output_dir out/ablations

A run is one command of `run_image_classification_no_trainer.py`, or one of `run_semantic_segmentation_no_trainer.py`
that starts from its checkpoint; its folder holds the outputs of the script. Complete runs are skipped, and an
interrupted run is resumed. With the same seed, all rows see the same split, batches and augmentation. `--report` trains
nothing: it reads the complete runs of the given tables, data and seeds, and measures times, for which the machine
should be idle. `tables.py` lists the rows; `examples/results/` holds the results.
"""

import signal
import sys

from tqdm import tqdm
from transformers import HfArgumentParser

from ablations.arguments import AblationArguments
from ablations.report import report_table
from ablations.runs import belongs_to, plan_runs


def main():
    """Train all incomplete runs, and report."""
    (args,) = HfArgumentParser(AblationArguments, allow_abbrev=False).parse_args_into_dataclasses()
    runs = plan_runs(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception also stops the current run
    complete = [run.is_complete() for run in runs]  # refuses folders with other settings before any training starts
    if not args.report:
        for run in tqdm(runs, desc=f"runs, {sum(complete)} of them complete"):
            run.start()
    for name in args.table:
        report_table(name, [run for run in runs if belongs_to(run, name) and run.is_complete()], args)
