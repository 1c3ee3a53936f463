# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The card of a converted model: where its weights come from, under which license, and how exact the conversion is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from ...convert_checkpoint import CalibrationReport
from ...publish.card import CardContents, Measurement, read_metadata
from ..command_line import shorten_path
from .arguments import ConversionArguments


class License(NamedTuple):
    """A license as the Hub names it; `name` and `link` of one that the Hub calls `other`."""

    license: str
    name: str | None = None
    link: str | None = None

    def describe(self) -> str:
        return self.license if self.name is None else f"{self.name} ({self.link})"


# The authors of the architectures on the Hub, and the licenses of the weights that they have released.
AUTHORS = {"pvt_v2": "OpenGVLab", "segformer": "nvidia"}
RELEASED = {
    "pvt_v2": License("apache-2.0"),
    "segformer": License(
        "other",
        "nvidia-source-code-license-for-segformer",
        "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
    ),
}
TERMS = {
    "segformer": (
        "The SegFormer weights that NVIDIA has released are under NVIDIA's own license, which allows non-commercial "
        "use only (research and evaluation); it also applies to weights that are converted from them."
    )
}


def find_license(args: ConversionArguments, model_type: str) -> License:
    """
    The license of the source: `--license`, what its card says, or that of the weights that the authors have released.

    Raises:
        ValueError: if the card of another source does not name one license, and `--license` is not given.
    """
    released, name = RELEASED[model_type], args.model_name_or_path
    if args.license is not None:
        return released if args.license == released.license else License(args.license)
    metadata = read_metadata(name, **args.hub_arguments)
    stated = metadata.get("license")
    if isinstance(stated, str):
        stated = License(stated, metadata.get("license_name"), metadata.get("license_link"))
        return released if stated == License(released.license) else stated
    if stated is None and not Path(name).exists() and name.split("/")[0] == AUTHORS[model_type]:
        return released
    found = "no card that names the license of its weights" if stated is None else f"a card that names {stated}"
    raise ValueError(f"--license is needed: {name} has {found}. {TERMS.get(model_type, '')}".strip())


def conversion_card(
    args: ConversionArguments,
    source: PreTrainedModel,
    licensed: License,
    report: CalibrationReport,
    num_images: int,
    measurements: Sequence[Measurement],
    command: str,
) -> CardContents:
    """
    The contents of the card.

    Args:
        args: The arguments of the conversion.
        source: The converted model.
        licensed ([`License`]): The license of its weights.
        report ([`CalibrationReport`]): Errors and scores of each step.
        num_images (`int`): Number of images of the calibration.
        measurements (`Sequence[Measurement]`): Scores of the final weights.
        command (`str`): The command of the conversion.
    """
    name = shorten_path(args.model_name_or_path)
    is_hub_id = not Path(args.model_name_or_path).exists()
    origin = f"`{name}` ({type(source).__name__}" + (f", revision {args.model_revision})" if is_hub_id else ")")
    return CardContents(
        name=Path(args.output_dir).resolve().name,
        summary=f"ClusTR with weights converted from {origin}. License of the weights: {licensed.describe()}.",
        base_model=args.model_name_or_path if is_hub_id else None,
        training=_origin(args, source, origin, licensed, num_images),
        command=command,
        measurements=measurements,
        tables=[text for text in (_score_table(report), _error_table(report)) if text],
        limitations=_limitations(source, num_images),
        license=licensed.license,
        license_name=licensed.name,
        license_link=licensed.link,
    )


def _origin(args: ConversionArguments, source: PreTrainedModel, origin: str, licensed: License, num_images: int) -> str:
    parts = [
        f"The weights are those of {origin}, whose attention to a grid was replaced by attention to clusters. Patch "
        f"embeddings, norms, queries, feed-forward networks and the classifier, if there is one, were carried over."
    ]
    if num_images:
        steps = f"{args.transfer_steps:,} step{'s' if args.transfer_steps > 1 else ''}"
        transfer = f", then by {steps} of attention transfer" if args.transfer_steps else ""
        parts.append(
            f"Keys and values were fitted to the source's on {num_images:,} images without labels, by least "
            f"squares{transfer}."
        )
    parts.append(f"License of the source's weights, which also applies to these: {licensed.describe()}.")
    if source.config.model_type in TERMS:
        parts.append(TERMS[source.config.model_type])
    return "\n\n".join(parts)


def _score_table(report: CalibrationReport) -> str:
    if not report.scores:
        return ""
    lines = ["| model | top-1 (%) |", "| --- | --- |"]
    lines += [f"| {step} | {100 * scores['eval_accuracy']:.1f} |" for step, scores in report.scores.items()]
    note = "*attention off*: the source with the output projections of its attention set to 0, a control."
    return "\n".join([*lines, "", note])


def _error_table(report: CalibrationReport) -> str:
    if not report.errors:
        return ""
    text = (
        "Squared difference between the outputs of the converted and of the source's attention, relative to the "
        "variance of the source's output (0 is exact, 1 is as good as a constant):"
    )
    return f"{text}\n\n{report.as_table()}"


def _limitations(source: PreTrainedModel, num_images: int) -> str:
    parts = ["The model was not fine-tuned after the conversion."]
    if "ForSemanticSegmentation" in type(source).__name__:
        parts.append("Its segmentation head has random weights and must be trained.")
    if num_images == 0:
        parts.append("Its attention was not fitted to the source's.")
    return " ".join(parts)


def plain_report(report: CalibrationReport) -> dict[str, Any]:
    """Errors and scores as JSON; blocks are named by stage and block, counted from 1."""
    errors = {
        step: {f"{stage + 1}, {block + 1}": error for (stage, block), error in by_block.items()}
        for step, by_block in report.errors.items()
    }
    return {"errors": errors, "scores": report.scores}
