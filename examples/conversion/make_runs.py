# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The kinds of runs of one seed: trainings, conversions, and trainings that start from another run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.plan import map_files
from ablations.runs import Run

from clustr_hf import ClusTRConfig
from conversion.arguments import ConversionStudyArguments
from conversion.rows import Start
from conversion.runs import Conversion


# Share of the fine-tuning that is warm-up.
WARMUP_SHARE = 0.1
CALIBRATION = {"num_calibration_images": 256, "transfer_steps": 200, "license": "apache-2.0"}
# Fields of a recipe that name the images.
DATA_FIELDS = ("train_val_split", "max_train_samples")
BASELINE = {"baseline": "pvt_v2"}
# Widths of the segmentation heads, which a conversion cannot take from its source.
HEAD_WIDTHS = ("auxiliary_hidden_size", "decoder_hidden_size", "fpn_hidden_size", "upernet_hidden_size")


class RunMaker:
    """
    Makes the runs of one seed.

    Args:
        args (`ConversionStudyArguments`): Arguments of the study.
        seed (`int`): Seed of all runs.
    """

    def __init__(self, args: ConversionStudyArguments, seed: int):
        self.args, self.seed, self.recipe = args, seed, args.read_recipe()
        self.source = self.train("source", BASELINE)

    def schedule(self, epochs: float, rate: float | None = None, crop: float | None = None) -> dict[str, Any]:
        """A number of epochs, a learning rate relative to the recipe's, and a minimum crop; default: the recipe's."""
        schedule: dict[str, Any] = {"num_train_epochs": epochs, "warmup_epochs": round(WARMUP_SHARE * epochs, 3)}
        schedule |= {} if rate is None else {"learning_rate": round(rate * self.recipe["learning_rate"], 6)}
        return schedule | ({} if crop is None else {"min_crop_scale": crop})

    def train(self, row: str, arguments: dict[str, Any], start_from: Run | None = None, is_choice: bool = False) -> Run:
        """A classification with the recipe; with `is_choice`, evaluated on images that no table reports."""
        args = self.args
        files = {"recipe": args.recipe, "train_file": f"{args.data}/train.parquet"}
        files |= {"validation_file": f"{args.data}/val.parquet"} if is_choice else {}
        files |= {"dataloader_num_workers": args.dataloader_num_workers}
        arguments = {"seed": self.seed, **arguments}
        folder, data = self._folder("choices" if is_choice else "classification", row), Path(args.data)
        return Run(row, self.seed, "classification", folder, arguments, self.recipe, data, files, start_from=start_from)

    def train_source(self, row: str, schedule: dict[str, Any], **kind: bool) -> Run:
        """The source, trained further."""
        return self.train(row, {**BASELINE, "config_overrides": {}, **schedule}, self.source, **kind)

    def convert(self, row: str, start: Start) -> Conversion:
        """The source, converted to ClusTR."""
        ratios = self.args.one_scale if start.scales == "one" else self.recipe["config_overrides"]["reduction_ratios"]
        calibration = CALIBRATION if start.is_calibrated else {**CALIBRATION, "num_calibration_images": 0}
        arguments = {"seed": self.seed, **calibration, "config_overrides": {"reduction_ratios": ratios}}
        arguments |= {field: self.recipe[field] for field in DATA_FIELDS if field in self.recipe}
        folder, data = self._folder("conversion", row), Path(self.args.data)
        files = {"train_file": f"{self.args.data}/train.parquet"}
        return Conversion(row, self.seed, "conversion", folder, arguments, {}, data, files, start_from=self.source)

    def tune(self, row: str, conversion: Conversion, arguments: dict[str, Any], **kind: bool) -> Run:
        """Converted weights, trained further."""
        return self.train(row, {"config_overrides": {}, **arguments}, conversion, **kind)

    def distill(
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
        return replace(self.tune(row, conversion, {**schedule, **settings}, **kind), teacher=teacher)

    def segment(self, start: Run) -> Run:
        """Semantic segmentation that starts from a classifier, with the recipe's head: a conversion has a wider one."""
        data = Path(self.args.segmentation_data)
        files = {"recipe": self.args.segmentation_recipe, **map_files(self.args.segmentation_data)}
        arguments = {"num_pictures": 0, "seed": self.seed, **(BASELINE if start.row == "source" else {})}
        folder = self._folder("segmentation", start.row)
        contents = self.args.read_recipe("segmentation")
        if isinstance(start, Conversion):
            variant = ClusTRConfig.from_variant(contents["variant"])
            arguments["config_overrides"] = {field: getattr(variant, field) for field in HEAD_WIDTHS}
        return Run(start.row, self.seed, "segmentation", folder, arguments, contents, data, files, start_from=start)

    def _folder(self, kind: str, row: str) -> Path:
        return Path(self.args.output_dir) / kind / f"{row}-seed{self.seed}"
