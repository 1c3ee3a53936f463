# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The runs: a PVTv2 as the source, its conversions, and trainings that start from them, beside controls.

Learning rates, alpha and temperature are chosen by `--choices`, on images that the tables do not report.
"""

from typing import Any

from ablations.runs import Run

from conversion.arguments import CHOSEN_CROP, CHOSEN_RATE, DISTILLATION, ConversionStudyArguments
from conversion.make_runs import RunMaker
from conversion.rows import EPOCHS, SEGMENTED, STARTS
from conversion.runs import Conversion


# What the choices compare: learning rates of one epoch of fine-tuning, relative to the recipe's; then, with the middle
# rate, alphas and temperatures; and minimum crops, also for random weights.
TRIED_RATES = (0.1, 1 / 3, 1)
TRIED_DISTILLATIONS = ((0.5, 1.0), (0.9, 1.0), (0.9, 2.0))
TRIED_CROPS = (0.35, 0.7)


def plan_runs(args: ConversionStudyArguments) -> list[Run]:
    """All runs, seed by seed; with `args.choices`, those on which settings are chosen."""
    plans = [_SeedPlan(args, seed) for seed in args.seeds]
    return [run for plan in plans for run in (plan.choices() if args.choices else plan.runs())]


class _SeedPlan:
    """The runs of one seed."""

    def __init__(self, args: ConversionStudyArguments, seed: int):
        self.args, self.make = args, RunMaker(args, seed)

    def runs(self) -> list[Run]:
        """The runs of the table."""
        tuned = {epochs: self.make.schedule(epochs, CHOSEN_RATE, CHOSEN_CROP) for epochs in EPOCHS}
        runs = [self.make.source]
        runs += [self.make.train(f"scratch-{epochs}", self.make.schedule(epochs)) for epochs in EPOCHS]
        runs += [self.make.train("scratch", {})]
        further = {epochs: self.make.train_source(f"source-{epochs}", tuned[epochs]) for epochs in EPOCHS}
        runs += further.values()
        for name, start in STARTS.items():
            conversion = self.make.convert(name, start)
            runs.append(conversion)
            for epochs in EPOCHS if name == "two-scales" else EPOCHS[1:2]:
                runs += self._tune_in_all_ways(name, conversion, epochs, tuned[epochs], further[max(EPOCHS)])
        if self.args.segmentation_data is not None:
            runs += [self.make.segment(run) for run in runs if run.row in SEGMENTED]
        return runs

    def _tune_in_all_ways(
        self, name: str, conversion: Conversion, epochs: float, schedule: dict[str, Any], better_teacher: Run
    ) -> list[Run]:
        """Without a teacher, with the source as the teacher, and with a better one."""
        runs = [self.make.tune(f"{name}-tuned-{epochs}", conversion, schedule)]
        if STARTS[name].is_calibrated:
            runs.append(self.make.distill(f"{name}-distilled-{epochs}", conversion, schedule, *DISTILLATION))
        if name == "two-scales":
            row = f"{name}-taught-{epochs}"
            runs.append(self.make.distill(row, conversion, schedule, *DISTILLATION, teacher=better_teacher))
        return runs

    def choices(self) -> list[Run]:
        """The runs on which learning rates, alpha, temperature and crops are chosen."""
        conversion = self.make.convert("two-scales", STARTS["two-scales"])
        runs = [self.make.source, conversion]
        for share in TRIED_RATES:
            schedule = self.make.schedule(1, share)
            rate = schedule["learning_rate"]
            runs.append(self.make.tune(f"tuned-{rate}", conversion, schedule, is_choice=True))
            runs.append(self.make.train_source(f"source-{rate}", schedule, is_choice=True))
        middle = self.make.schedule(1, TRIED_RATES[1])
        for settings in TRIED_DISTILLATIONS:
            name = "distilled-{}-{}".format(*settings)
            runs.append(self.make.distill(name, conversion, middle, *settings, is_choice=True))
        for crop in TRIED_CROPS:
            settings = {"min_crop_scale": crop}
            runs.append(self.make.tune(f"tuned-crop-{crop}", conversion, {**middle, **settings}, is_choice=True))
            runs.append(self.make.train(f"scratch-crop-{crop}", settings, is_choice=True))
        return runs
