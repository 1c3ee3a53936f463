# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Tables 6 and 7 of the paper on small data: the training scripts run all rows with the same seeds, schedule and budget.

    python examples/ablations --table 6 7 --data imagenette128 --output_dir out/ablations

A run is one command of `run_image_classification_no_trainer.py`, or one of `run_semantic_segmentation_no_trainer.py`
that starts from its checkpoint; its folder holds the outputs of the script. Complete runs are skipped, and an
interrupted run is resumed. With the same seed, all rows see the same split, batches and augmentation. `--report` trains
nothing: it reads the complete runs of the given tables, data and seeds, and measures times, for which the machine
should be idle. `tables.py` lists the rows; `examples/results/` holds the results.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import HfArgumentParser

from ablations.arguments import AblationArguments
from ablations.data import divide_images
from ablations.plan import belongs_to, plan_runs
from ablations.report import report_table
from ablations.runs import Run, stop_scripts


def main():
    """Train all incomplete runs, and report."""
    (args,) = HfArgumentParser(AblationArguments, allow_abbrev=False).parse_args_into_dataclasses()
    runs = plan_runs(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception also stops the current run
    complete = [run.is_complete() for run in runs]  # refuses folders with other settings before any training starts
    if not args.report:
        if args.selection_share > 0:
            divide_images(Path(args.data) / "train.parquet", args.image_folder, args.selection_share)
        train(runs, args.jobs, f"runs, {sum(complete)} of them complete")
    for name in args.table:
        report_table(name, [run for run in runs if belongs_to(run, name) and run.is_complete()], args)


def train(runs: Sequence[Run], jobs: int, description: str) -> None:
    """
    Train the runs that are not complete, `jobs` at a time, which share the threads of the CPU. If one fails, or the
    command is stopped, the others are stopped, too.

    Raises:
        RuntimeError: if a run failed.
    """
    threads = None if jobs == 1 else max(1, torch.get_num_threads() // jobs)
    futures, stopped = {}, threading.Event()

    def start(run: Run):
        if stopped.is_set():
            return
        try:
            for needed in run.needs:
                futures[needed.folder].result()  # comes first in `runs`, so that it has been started
            run.start(threads)
        except BaseException:
            stopped.set()  # at once, so that this thread does not start the next run
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for run in runs:
                futures[run.folder] = pool.submit(start, run)
            for future in tqdm(as_completed(list(futures.values())), desc=description, total=len(runs)):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            stop_scripts()
            raise
