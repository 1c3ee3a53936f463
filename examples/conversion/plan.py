# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The runs: a PVTv2 as the source, its conversions, and trainings that start from them, beside controls.

Learning rates, alpha and temperature are chosen by `--choices`, on images that the tables do not report.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.plan import map_files
from ablations.runs import Run

from clustr_hf import ClusTRConfig
from conversion.arguments import CHOSEN_CROP, CHOSEN_RATE, DISTILLATION, ConversionStudyArguments
from conversion.rows import EPOCHS, SEGMENTED, STARTS, Start
from conversion.runs import Conversion


# Share of the fine-tuning that is warm-up.
WARMUP_SHARE = 0.1
CALIBRATION = {"num_calibration_images": 256, "transfer_steps": 200, "license": "apache-2.0"}
# Fields of a recipe that name the images.
DATA_FIELDS = ("train_val_split", "max_train_samples")
BASELINE = {"baseline": "pvt_v2"}
# Widths of the segmentation heads, which a conversion cannot take from its source.
HEAD_WIDTHS = ("auxiliary_hidden_size", "decoder_hidden_size", "fpn_hidden_size", "upernet_hidden_size")
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
        self.args, self.seed, self.recipe = args, seed, args.read_recipe()
        self.source = self._train("source", BASELINE)

    def runs(self) -> list[Run]:
        tuned = {epochs: self._schedule(epochs, CHOSEN_RATE, CHOSEN_CROP) for epochs in EPOCHS}
        runs = [self.source]
        runs += [self._train(f"scratch-{epochs}", self._schedule(epochs)) for epochs in EPOCHS]
        runs += [self._train("scratch", {})]
        further = {epochs: self._train_source(f"source-{epochs}", tuned[epochs]) for epochs in EPOCHS}
        runs += further.values()
        for name, start in STARTS.items():
            conversion = self._convert(name, start)
            runs.append(conversion)
            for epochs in EPOCHS if name == "two-scales" else EPOCHS[1:2]:
                runs += self._tune_in_all_ways(name, conversion, epochs, tuned[epochs], further[max(EPOCHS)])
        if self.args.segmentation_data is not None:
            runs += [self._segment(run) for run in runs if run.row in SEGMENTED]
        return runs

    def _tune_in_all_ways(
        self, name: str, conversion: Conversion, epochs: float, schedule: dict[str, Any], better_teacher: Run
    ) -> list[Run]:
        """Without a teacher, with the source as the teacher, and with a better one."""
        runs = [self._tune(f"{name}-tuned-{epochs}", conversion, schedule)]
        if STARTS[name].is_calibrated:
            runs.append(self._distill(f"{name}-distilled-{epochs}", conversion, schedule, *DISTILLATION))
        if name == "two-scales":
            row = f"{name}-taught-{epochs}"
            runs.append(self._distill(row, conversion, schedule, *DISTILLATION, teacher=better_teacher))
        return runs

    def choices(self) -> list[Run]:
        conversion = self._convert("two-scales", STARTS["two-scales"])
        runs = [self.source, conversion]
        for share in TRIED_RATES:
            schedule = self._schedule(1, share)
            rate = schedule["learning_rate"]
            runs.append(self._tune(f"tuned-{rate}", conversion, schedule, is_choice=True))
            runs.append(self._train_source(f"source-{rate}", schedule, is_choice=True))
        middle = self._schedule(1, TRIED_RATES[1])
        for settings in TRIED_DISTILLATIONS:
            name = "distilled-{}-{}".format(*settings)
            runs.append(self._distill(name, conversion, middle, *settings, is_choice=True))
        for crop in TRIED_CROPS:
            settings = {"min_crop_scale": crop}
            runs.append(self._tune(f"tuned-crop-{crop}", conversion, {**middle, **settings}, is_choice=True))
            runs.append(self._train(f"scratch-crop-{crop}", settings, is_choice=True))
        return runs

    def _train_source(self, row: str, schedule: dict[str, Any], **kind: bool) -> Run:
        """The source, trained further."""
        return self._train(row, {**BASELINE, "config_overrides": {}, **schedule}, self.source, **kind)

    def _tune(self, row: str, conversion: Conversion, arguments: dict[str, Any], **kind: bool) -> Run:
        """Converted weights, trained further."""
        return self._train(row, {"config_overrides": {}, **arguments}, conversion, **kind)

    def _distill(
        self,
        row: str,
        conversion: Conversion,
        schedule: dict[str, Any],
        alpha: float,
        temperature: float,
        teacher: Run | None = None,
        **kind: bool,
    ) -> Run:
        """Converted weights, trained further with a teacher; default: the source."""
        teacher = teacher or self.source
        settings = {"teacher_model_name_or_path": str(teacher.folder)}
        settings |= {"distillation_alpha": alpha, "distillation_temperature": temperature}
        return replace(self._tune(row, conversion, {**schedule, **settings}, **kind), teacher=teacher)

    def _schedule(self, epochs: float, rate: float | None = None, crop: float | None = None) -> dict[str, Any]:
        """A number of epochs, a learning rate relative to the recipe's, and a minimum crop; default: the recipe's."""
        schedule: dict[str, Any] = {"num_train_epochs": epochs, "warmup_epochs": round(WARMUP_SHARE * epochs, 3)}
        schedule |= {} if rate is None else {"learning_rate": round(rate * self.recipe["learning_rate"], 6)}
        return schedule | ({} if crop is None else {"min_crop_scale": crop})

    def _train(
        self, row: str, arguments: dict[str, Any], start_from: Run | None = None, is_choice: bool = False
    ) -> Run:
        args = self.args
        files = {"recipe": args.recipe, "train_file": f"{args.data}/train.parquet"}
        files |= {"validation_file": f"{args.data}/val.parquet"} if is_choice else {}
        files |= {"dataloader_num_workers": args.dataloader_num_workers}
        arguments = {"seed": self.seed, **arguments}
        folder = Path(args.output_dir) / ("choices" if is_choice else "classification") / f"{row}-seed{self.seed}"
        data = Path(args.data)
        return Run(row, self.seed, "classification", folder, arguments, self.recipe, data, files, start_from=start_from)

    def _convert(self, row: str, start: Start) -> Conversion:
        ratios = self.args.one_scale if start.scales == "one" else self.recipe["config_overrides"]["reduction_ratios"]
        calibration = CALIBRATION if start.is_calibrated else {**CALIBRATION, "num_calibration_images": 0}
        arguments = {"seed": self.seed, **calibration, "config_overrides": {"reduction_ratios": ratios}}
        arguments |= {field: self.recipe[field] for field in DATA_FIELDS if field in self.recipe}
        folder, data = Path(self.args.output_dir) / "conversion" / f"{row}-seed{self.seed}", Path(self.args.data)
        files = {"train_file": f"{self.args.data}/train.parquet"}
        return Conversion(row, self.seed, "conversion", folder, arguments, {}, data, files, start_from=self.source)

    def _segment(self, start: Run) -> Run:
        """Semantic segmentation that starts from a classifier, with the recipe's head: a conversion has a wider one."""
        data = Path(self.args.segmentation_data)
        files = {"recipe": self.args.segmentation_recipe, **map_files(self.args.segmentation_data)}
        arguments = {"num_pictures": 0, "seed": self.seed, **(BASELINE if start.row == "source" else {})}
        folder = Path(self.args.output_dir) / "segmentation" / f"{start.row}-seed{self.seed}"
        contents = self.args.read_recipe("segmentation")
        if isinstance(start, Conversion):
            variant = ClusTRConfig.from_variant(contents["variant"])
            arguments["config_overrides"] = {field: getattr(variant, field) for field in HEAD_WIDTHS}
        return Run(start.row, self.seed, "segmentation", folder, arguments, contents, data, files, start_from=start)
