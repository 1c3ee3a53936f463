#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Measure the time per image on a busy machine, by number of threads, with and without the compiled clustering kernel.

    python examples/benchmark/busy_machine.py
    OMP_WAIT_POLICY=PASSIVE python examples/benchmark/busy_machine.py    # waiting threads sleep

Times the forward pass of the bundled classifier on one image of 32 x 32 pixels: first on the machine as it is, then
while busy loops occupy all processors. Every round times each case once. Prints a table of medians, quartiles, and
the median ratio to tensor operations on the same number of threads, taken round by round.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from clustr_hf import ClusTRForImageClassification, bundled_checkpoint
from clustr_hf.remote_code.clustering_kernel_clustr import is_available


BUSY_LOOP = "while True: pass"


class Case(NamedTuple):
    threads: int
    kernel: str  # the value of CLUSTR_KERNEL

    def __str__(self) -> str:
        return f"{self.threads} | {'compiled kernel' if self.kernel == 'on' else 'tensor operations'}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="number of threads to compare with one thread; default: all processors",
    )
    parser.add_argument(
        "--busy_loops", type=int, default=os.cpu_count(), help="number of busy loops; default: one for each processor"
    )
    parser.add_argument("--rounds", type=int, default=30, help="timings of each case; default: %(default)s")
    args = parser.parse_args()
    for name, minimum in (("threads", 1), ("busy_loops", 0), ("rounds", 1)):
        if getattr(args, name) < minimum:
            parser.error(f"--{name} must be at least {minimum}, got {getattr(args, name)}")
    return args


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Keep `number` processors busy within the context."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds(step: Callable[[], None], case: Case) -> float:
    os.environ["CLUSTR_KERNEL"] = case.kernel
    torch.set_num_threads(case.threads)
    step()  # lets the threads of this case start, and the threads of the previous case fall asleep
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def measure(step: Callable[[], None], cases: list[Case], rounds: int) -> dict[Case, list[float]]:
    times = {case: [] for case in cases}
    for _ in tqdm(range(rounds), desc="rounds"):
        for case in cases:
            times[case].append(seconds(step, case))
    return times


def print_rows(situation: str, times: dict[Case, list[float]]):
    for case, of_case in times.items():
        first, median, third = (1e3 * value for value in statistics.quantiles(of_case * 2, n=4))
        reference = times[case._replace(kernel="off")]
        ratio = statistics.median(own / other for own, other in zip(of_case, reference))
        print(f"| {situation} | {case} | {median:.1f} | {first:.1f} to {third:.1f} | {ratio:.2f} |", flush=True)


def main():
    args = parse_args()
    if not is_available():
        raise SystemExit("The compiled kernel was not built or is switched off by CLUSTR_KERNEL.")
    model = ClusTRForImageClassification.from_pretrained(bundled_checkpoint()).eval()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), device="cpu")

    @torch.inference_mode()
    def step():
        model(image)

    threads = dict.fromkeys([1, args.threads])
    cases = [Case(number, kernel) for number in threads for kernel in ("off", "on")]
    print(
        "| other load | threads | clustering | ms, median | quartiles | ratio |\n| --- | --- | --- | --- | --- | --- |"
    )
    print_rows("nothing", measure(step, cases, args.rounds))
    with busy_loops(args.busy_loops):
        print_rows(f"{args.busy_loops} busy loops", measure(step, cases, args.rounds))


if __name__ == "__main__":
    main()
