# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The runs: a PVTv2 as the source, its conversions, and trainings that start from them, beside controls.

Learning rates, alpha and temperature were chosen by `--choices` on other images than those of the tables.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.runs import Run

from conversion.arguments import ConversionStudyArguments
from conversion.runs import Conversion


# Epochs of the fine-tuning; 10 % of each are warm-up.
EPOCHS = (0.5, 1, 2)
WARMUP_SHARE = 0.1
CALIBRATION = {"num_calibration_images": 256, "transfer_steps": 200, "license": "apache-2.0"}
# Fields of a recipe that name the images and their sizes.
DATA_FIELDS = ("train_val_split", "max_train_samples")


@dataclass(frozen=True)
class Start:
    """
    Converted weights.

    Args:
        title (`str`): Title of the rows.
        scales (`str`): `"two"` or `"one"`.
        is_calibrated (`bool`): Whether the attention is fitted to the source's.
    """

    title: str
    scales: str
    is_calibrated: bool = True


STARTS = {
    "two-scales": Start("two scales", "two"),
    "one-scale": Start("one scale", "one"),
    "uncalibrated": Start("two scales, not calibrated", "two", is_calibrated=False),
}


def plan_runs(args: ConversionStudyArguments) -> list[Run]:
    """All runs, seed by seed."""
    return [run for seed in args.seeds for run in _SeedPlan(args, seed).runs()]


class _SeedPlan:
    """The runs of one seed."""

    def __init__(self, args: ConversionStudyArguments, seed: int):
        self.args, self.seed, self.recipe = args, seed, args.read_recipe()
        self.source = self._train("source", {"baseline": "pvt_v2"})

    def runs(self) -> list[Run]:
        runs = [self.source]
        runs += [self._train(f"scratch-{epochs}", self._schedule(epochs, None)) for epochs in EPOCHS]
        runs += [self._train("scratch", {})]
        baseline = {"baseline": "pvt_v2", "config_overrides": {}}
        runs += [
            self._train(f"source-{epochs}", {**baseline, **self._schedule(epochs, "source")}, self.source)
            for epochs in EPOCHS
        ]
        for name, start in STARTS.items():
            conversion = self._convert(name, start)
            runs.append(conversion)
            for epochs in EPOCHS if name == "two-scales" else EPOCHS[1:2]:
                runs += self._tune(name, conversion, epochs)
        return runs

    def _tune(self, name: str, conversion: Conversion, epochs: float) -> list[Run]:
        """Fine-tuning of converted weights, with distillation from the source and without."""
        teacher = {"teacher_model_name_or_path": str(self.source.folder), **self.args.distillation}
        tuned = {"config_overrides": {}, **self._schedule(epochs, "tuned")}
        runs = [self._train(f"{name}-tuned-{epochs}", tuned, conversion)]
        if STARTS[name].is_calibrated:
            runs.append(self._train(f"{name}-distilled-{epochs}", {**tuned, **teacher}, conversion))
        return runs

    def _schedule(self, epochs: float, kind: str | None) -> dict[str, Any]:
        rate = {} if kind is None else {"learning_rate": self.args.learning_rates[kind]}
        return {"num_train_epochs": epochs, "warmup_epochs": round(WARMUP_SHARE * epochs, 3), **rate}

    def _train(self, row: str, arguments: dict[str, Any], start_from: Run | None = None) -> Run:
        args = self.args
        files = {"recipe": args.recipe, "train_file": args.train_file}
        files |= {"dataloader_num_workers": args.dataloader_num_workers}
        arguments = {"seed": self.seed, **arguments}
        folder = Path(args.output_dir) / "classification" / f"{row}-seed{self.seed}"
        return Run(
            row,
            self.seed,
            "classification",
            folder,
            arguments,
            self.recipe,
            Path(args.data),
            files,
            start_from=start_from,
        )

    def _convert(self, name: str, start: Start) -> Conversion:
        ratios = self.args.one_scale if start.scales == "one" else self.recipe["config_overrides"]["reduction_ratios"]
        calibration = CALIBRATION if start.is_calibrated else {**CALIBRATION, "num_calibration_images": 0}
        arguments = {"seed": self.seed, **calibration, "config_overrides": {"reduction_ratios": ratios}}
        arguments |= {field: self.recipe[field] for field in DATA_FIELDS if field in self.recipe}
        folder = Path(self.args.output_dir) / "conversion" / f"{name}-seed{self.seed}"
        return Conversion(
            name,
            self.seed,
            "conversion",
            folder,
            arguments,
            recipe={},
            data=Path(self.args.data),
            housekeeping={"train_file": self.args.train_file},
            start_from=self.source,
        )
