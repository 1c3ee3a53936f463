# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The conversion itself: source in, repository out."""

import sys
from pathlib import Path

from transformers import AutoImageProcessor, PreTrainedModel

from ...convert_checkpoint import (
    CalibrationReport,
    calibrate,
    convert_grid_backbone,
    convert_image_processor,
    load_grid_source,
)
from ...publish import build_repository
from ...publish.card import measurements_of
from ...publish.repository import check_replaceable
from ...remote_code.image_processing_clustr import ClusTRImageProcessor
from ..attention_off import attention_off
from ..checkpoints import write_json
from ..command_line import command_line
from ..report import RESULTS
from ..tasks.image_classification.data import ClassificationDataArguments
from ..tasks.image_classification.model import resized_processor
from ..training_card import describe_data
from .arguments import ConversionArguments
from .card import TERMS, conversion_card, find_license, plain_report
from .images import calibration_images, load_labelled, make_evaluation


# Share of the images of a calibration that only measure its errors.
MEASURED_SHARE = 0.2


def convert(args: ConversionArguments, data_args: ClassificationDataArguments) -> CalibrationReport:
    """
    Convert a model, and write its repository and `all_results.json` to `args.output_dir`.

    Args:
        args ([`ConversionArguments`]): The source, the calibration and the output.
        data_args ([`ClassificationDataArguments`]):
            A labelled data set: images of its training split are the default of the calibration, and a classifier is
            evaluated on its validation split before and after each step.

    Returns:
        [`CalibrationReport`]: errors and scores of each step; scores also have `"source"`, and `"attention off"`, the
        source without its attention, a control.

    Raises:
        ValueError: for a source that cannot be converted, missing images, and a license that is not known.
        FileExistsError: if the output folder holds anything but an earlier repository.
    """
    check_replaceable(Path(args.output_dir))
    source = load_grid_source(args.model_name_or_path, **args.hub_arguments).to(args.device)
    if source.config.num_channels != 3:
        raise ValueError(
            f"--model_name_or_path must be a model of RGB images, got `num_channels={source.config.num_channels}`"
        )
    licensed = find_license(args, source.config.model_type)
    print(f"License of the source's weights: {licensed.describe()}. {TERMS.get(source.config.model_type, '')}")
    model = convert_grid_backbone(source, **(args.config_overrides or {}))
    processor = load_processor(args)
    data = load_labelled(args, data_args, source)
    images = calibration_images(args, data, data_args.image_column_name, processor)
    evaluate = make_evaluation(args, data_args, data, source, processor)
    report = CalibrationReport(scores=_score_source(source, evaluate))
    num_images = _calibrate(args, model, source, images, evaluate, report)
    _write(args, data_args, model, source, processor, licensed, report, num_images)
    return report


def _score_source(source: PreTrainedModel, evaluate) -> dict[str, dict[str, float]]:
    """Scores of the source, with its attention and without; none without data."""
    if evaluate is None:
        return {}
    scores = {"source": evaluate(source)}
    with attention_off(source):
        return {**scores, "attention off": evaluate(source)}


def load_processor(args: ConversionArguments) -> ClusTRImageProcessor:
    """The source's image processor as ClusTR's; with `--image_size`, for square crops of that size."""
    try:
        processor = convert_image_processor(
            AutoImageProcessor.from_pretrained(args.model_name_or_path, **args.hub_arguments)
        )
    except OSError:
        if args.image_size is None:
            raise ValueError(f"--image_size is needed: {args.model_name_or_path} has no image processor") from None
        processor = ClusTRImageProcessor()
    return processor if args.image_size is None else resized_processor(processor, args.image_size)


def _calibrate(
    args, model: PreTrainedModel, source: PreTrainedModel, images, evaluate, report: CalibrationReport
) -> int:
    """Calibrate the model, and add errors and scores to the report; returns the number of images it was fitted to."""
    if images is None:
        if evaluate is not None:
            report.scores["as converted"] = evaluate(model)
        return 0
    measured = round(MEASURED_SHARE * len(images))
    calibrated = calibrate(
        model,
        source,
        images[measured:],
        images[:measured] if measured else None,
        num_steps=args.transfer_steps,
        batch_size=args.transfer_batch_size,
        learning_rate=args.transfer_learning_rate,
        train_queries=args.train_queries,
        seed=args.seed,
        evaluate=evaluate,
    )
    report.errors |= calibrated.errors
    report.scores |= calibrated.scores
    return len(images) - measured


def _write(args, data_args, model, source, processor, licensed, report: CalibrationReport, num_images: int):
    """Write the repository, then the results."""
    command, measurements = command_line(sys.argv[0], sys.argv[1:]), []
    if report.scores:
        final = next(reversed(report.scores.values()))
        name, dataset_id, part = describe_data(data_args)
        measurements = measurements_of(final, name, command, dataset_id, part)
    card = conversion_card(args, source, licensed, report, num_images, measurements, command)
    folder = build_repository(model.cpu(), processor, args.output_dir, card)
    write_json(folder / RESULTS, plain_report(report))
    for step, scores in report.scores.items():
        print(f"{step:>14}: top-1 {100 * scores['eval_accuracy']:.1f} %")
    if report.errors:
        print(f"\nRelative squared error of each attention:\n\n{report.as_table()}\n")
    print(f"Wrote {Path(args.output_dir)}: {model.num_parameters():,} parameters.")
