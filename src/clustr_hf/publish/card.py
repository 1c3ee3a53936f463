# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The card of a checkpoint: a README.md with the metadata that the Hub reads, written from `card_template.md`."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open

from ..name_lists import join_names
from ..remote_code.handler_clustr import pipeline_task


CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
# Placeholder for the owner, which `publish.push` replaces.
UNKNOWN_REPOSITORY = "your-name"
# A card cannot name its own commit, so it asks the reader to replace this revision.
REVISION = "main"

# Pictures that a card shows if they are in its folder, and their captions.
PICTURES = {
    "clusters.png": "Clusters that the model finds in a photograph.",
    "training_curve.png": "Loss and metric during training.",
    "predictions.png": "Predictions for held-out images.",
}

# Photographs by Hugging Face, for the widgets of repositories without example images.
_SAMPLES = "https://huggingface.co/datasets/mishig/sample_images/resolve/main"
_SCENES = {"Savanna": f"{_SAMPLES}/savanna.jpg", "Football match": f"{_SAMPLES}/football-match.jpg"}
SAMPLE_IMAGES = {
    "image-classification": {"Tiger": f"{_SAMPLES}/tiger.jpg", "Palace": f"{_SAMPLES}/palace.jpg"},
    "keypoint-detection": {"Football match": f"{_SAMPLES}/football-match.jpg"},
}

# Name of a metric in training scripts -> its type on the Hub, and its name on a card.
METRICS = {
    "eval_accuracy": ("accuracy", "Top-1 accuracy"),
    "eval_mean_iou": ("mean_iou", "Mean IoU"),
    "eval_overall_accuracy": ("accuracy", "Pixel accuracy"),
    "eval_box_ap": ("mean_average_precision", "Box AP"),
    "eval_box_ap50": ("mean_average_precision", "Box AP50"),
    "eval_mask_ap": ("mean_average_precision", "Mask AP"),
    "eval_mask_ap50": ("mean_average_precision", "Mask AP50"),
    "eval_wholebody_ap": ("mean_average_precision", "Whole-body AP"),
    "eval_wholebody_ar": ("mean_average_recall", "Whole-body AR"),
    "eval_body_ap": ("mean_average_precision", "Body AP"),
    "eval_body_ar": ("mean_average_recall", "Body AR"),
}

# Parameters in a card's examples, and a description of what they return.
_PARAMETERS = {
    "image-classification": {"top_k": 3},
    "image-segmentation": {"threshold": 0.5},
    "object-detection": {"threshold": 0.5},
    "keypoint-detection": {"boxes": [[200, 80, 120, 300]]},
    "image-feature-extraction": {"pool": True},
}
_ANSWERS = {
    "image-classification": "label and score of the best classes",
    "image-segmentation": "label, score and mask of each segment",
    "object-detection": "label, score and box of each object",
    "keypoint-detection": "score, box and keypoints of each person; boxes are (x, y, width, height)",
    "image-feature-extraction": "numbers",
}


@dataclass
class Measurement:
    """
    A result on a card, with its origin.

    Args:
        metric (`str`): Type of the metric on the Hub, such as `"accuracy"`, `"mean_iou"`, `"mean_average_precision"`.
        name (`str`): Name of the metric on the card.
        value (`float`): Value of the metric; shares are in [0, 1].
        dataset (`str`): Name of the data set that the metric was measured on.
        command (`str`): The command that measured it.
        dataset_id (`str`, *optional*): Id of the data set on the Hub.
        split (`str`, *optional*): Split of the data set.
        num_samples (`int`, *optional*): Number of images or persons.

    Raises:
        ValueError: for a value that is not finite.
    """

    metric: str
    name: str
    value: float
    dataset: str
    command: str
    dataset_id: str | None = None
    split: str | None = None
    num_samples: int | None = None

    def __post_init__(self):
        if not math.isfinite(self.value):
            raise ValueError(f"`value` of {self.name} must be finite, got {self.value}.")


@dataclass
class CardContents:
    """
    Contents of a card that cannot be read from the checkpoint. All are optional; the card states what is missing.

    Args:
        name (`str`, *optional*): Name of the model. Default: the name of the folder.
        summary (`str`, *optional*): Purpose of the model, in one or two sentences.
        datasets (`Sequence[str]`): Ids of the training data sets on the Hub.
        base_model (`str`, *optional*): Id on the Hub of the model that was fine-tuned.
        training (`str`, *optional*): Data, duration and hardware of the training.
        command (`str`, *optional*): The training command.
        recipe (`Mapping[str, Any]`): Settings of the training.
        measurements (`Sequence[Measurement]`): Results.
        tables (`Sequence[str]`): Further results in Markdown.
        limitations (`str`, *optional*): Limitations of the model.
        license (`str`, defaults to `"apache-2.0"`): License of the weights, as named on the Hub.
        license_name, license_link (`str`, *optional*): Name and address of a license that the Hub calls `"other"`.
    """

    name: str | None = None
    summary: str | None = None
    datasets: Sequence[str] = ()
    base_model: str | None = None
    training: str | None = None
    command: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    tables: Sequence[str] = ()
    limitations: str | None = None
    license: str = "apache-2.0"
    license_name: str | None = None
    license_link: str | None = None


def measurements_of(
    results: Mapping[str, Any], dataset: str, command: str, dataset_id: str | None = None, split: str = "validation"
) -> list[Measurement]:
    """Measurements from the `eval_...` results of a training script that are in [`METRICS`] and not NaN."""
    return [
        Measurement(metric, name, results[key], dataset, command, dataset_id, split, results.get("eval_samples"))
        for key, (metric, name) in METRICS.items()
        if results.get(key) is not None and not math.isnan(results[key])
    ]


def write_model_card(
    folder: str | Path, contents: CardContents | None = None, widget: Mapping[str, str] | None = None
) -> None:
    """
    Write the README.md of a checkpoint.

    Args:
        folder (`str` or `Path`): Folder with `config.json` and `model.safetensors`.
        contents ([`CardContents`], *optional*): Contents of the card.
        widget (`Mapping[str, str]`, *optional*): Title -> address of an image that the Hub offers to try; paths are
            relative to the folder. Default: photographs on the Hub.

    Raises:
        FileNotFoundError: if there is no configuration.
        ValueError: if the configuration does not belong to a ClusTR model of a known class.
    """
    folder, contents = Path(folder), contents or CardContents()
    config = json.loads((folder / "config.json").read_text())
    task = pipeline_task(config)
    name = contents.name or folder.resolve().name
    examples = widget or SAMPLE_IMAGES.get(task, _SCENES)
    data = ModelCardData(
        library_name="transformers",
        license=contents.license,
        license_name=contents.license_name,
        license_link=contents.license_link,
        pipeline_tag=task,
        base_model=contents.base_model,
        datasets=list(contents.datasets) or None,
        metrics=list(dict.fromkeys(measured.metric for measured in contents.measurements)) or None,
        tags=["custom_code", "clustr", "vision"],
        widget=[{"src": source, "example_title": title} for title, source in examples.items()],
        model_name=name if contents.measurements else None,
        eval_results=[_eval_result(task, measured) for measured in contents.measurements] or None,
    )
    pictures = [file for file in PICTURES if (folder / file).is_file()]
    arguments = ", ".join(f"{key}={value!r}" for key, value in _PARAMETERS[task].items())
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=_cell(name),
        summary=contents.summary or f"A model for {task.replace('-', ' ')}.",
        task=task,
        model_id=f"{UNKNOWN_REPOSITORY}/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}",
        revision=REVISION,
        call=f'answer = predict("image.jpg", {arguments})  # {_ANSWERS[task]}',
        request=json.dumps({"inputs": "<base64>", "parameters": _PARAMETERS[task]}),
        facts=_with_picture(_facts(config, folder), "clusters.png", pictures),
        training=_with_picture(_training(contents), "training_curve.png", pictures),
        results=_with_picture(_results(contents), "predictions.png", pictures),
        limitations=_limitations(contents, task),
    )
    card.save(folder / CARD)


def check_card(path: str | Path, task: str, files: Sequence[str] = ()) -> None:
    """
    Check the metadata of a card, the images of its widget, and that the template is filled in.

    Args:
        path (`str` or `Path`): The README.md.
        task (`str`): Task of the pipeline that runs the model.
        files (`Sequence[str]`): Paths of the files in the repository.

    Raises:
        ValueError: if the card is about another task, lacks metadata or an image of its widget, or is not filled in.
    """
    card = load_card(path)
    data = card.data.to_dict()
    if data.get("pipeline_tag") != task:
        raise ValueError(f"{path} must have the pipeline_tag {task} of its model, got {data.get('pipeline_tag')}.")
    missing = [key for key in ("library_name", "license", "tags", "widget") if not data.get(key)]
    if missing:
        raise ValueError(f"{path} must have metadata for {missing}.")
    for source in widget_sources(card):
        if "://" not in source and source not in files:
            raise ValueError(f"{path}: the widget's image {source!r} must be one of the repository's, images/...")
    names = "|".join(re.findall(r"\{\{ (\w+) \}\}", TEMPLATE.read_text()))
    unfilled = re.search(rf"\{{\{{ ({names}) \}}\}}", card.content)
    if unfilled:
        raise ValueError(f"{path} must be filled in, but has {unfilled[0]!r}.")


def load_card(path: str | Path) -> ModelCard:
    """
    Load a card.

    Raises:
        ValueError: if the file has no valid metadata.
    """
    try:
        card = ModelCard.load(path)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} must begin with metadata in YAML: {error}") from error
    widget = card.data.get("widget") or []
    if not isinstance(widget, list) or not all(isinstance(part, dict) and "src" in part for part in widget):
        raise ValueError(f"{path} must have a widget of images, each with a `src`, got {widget}.")
    return card


def read_metadata(name_or_path: str, **hub_arguments: Any) -> dict[str, Any]:
    """
    Metadata of the card of a model; empty if there is no card, no metadata or no network.

    Args:
        name_or_path (`str`): Folder, or id on the Hub.
        hub_arguments: Arguments of `hf_hub_download`, such as `revision`.
    """
    folder = Path(name_or_path)
    try:
        path = folder / CARD if folder.exists() else hf_hub_download(name_or_path, CARD, **hub_arguments)
        return ModelCard.load(path).data.to_dict() if Path(path).is_file() else {}
    except (HfHubHTTPError, LocalEntryNotFoundError, yaml.YAMLError, ValueError):
        return {}


def widget_sources(card: ModelCard) -> list[str]:
    """Addresses of the images that a card offers to try."""
    return [example["src"] for example in card.data.get("widget") or []]


def _eval_result(task: str, measured: Measurement) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=measured.dataset_id
        or re.sub(r"[^a-z0-9/.]+", "-", measured.dataset.lower()).strip("-")
        or "unnamed",
        dataset_name=measured.dataset,
        dataset_split=measured.split,
        metric_type=measured.metric,
        metric_name=measured.name,
        metric_value=measured.value,
    )


def _facts(config: Mapping[str, Any], folder: Path) -> str:
    """Table rows with the facts from the checkpoint's files."""
    rows = {
        "class": f"`{config['architectures'][0]}`",
        "parameters": f"{_count_parameters(folder) / 1e6:.2f} M",
        "depths": config["depths"],
        "hidden sizes": config["hidden_sizes"],
        "reduction ratios, of each stage and scale": config["reduction_ratios"],
    }
    if config.get("attention_type", "clustered") != "clustered":
        rows["attention"] = f"`{config['attention_type']}`, not the paper's"
    labels = list((config.get("id2label") or {}).values())
    if labels:
        rows["keypoints" if "Pose" in rows["class"] else "classes"] = f"{len(labels)}: {join_names(labels)}"
    return _table_rows(rows.items())


def _count_parameters(folder: Path) -> int:
    """Number of values in all tensors except the statistics of batch norms, which are not trained."""
    number = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():
                if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                    number += math.prod(weights.get_slice(name).get_shape())
    return number


def plain_value(value: Any) -> Any:
    """An argument as written on a command line: enumerations become their values, also within lists and mappings."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {plain_value(key): plain_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(part) for part in value]
    return value


def _training(contents: CardContents) -> str:
    parts = [contents.training or "The training data was not stated when this card was written."]
    if contents.command:
        parts.append(f"```bash\n{contents.command}\n```")
    if contents.recipe:
        rows = _table_rows((name, f"`{plain_value(value)}`") for name, value in contents.recipe.items())
        parts.append(
            f"<details><summary>Settings</summary>\n\n| setting | value |\n| --- | --- |\n{rows}\n\n</details>"
        )
    return "\n\n".join(parts)


def _results(contents: CardContents) -> str:
    if not contents.measurements:
        return "\n\n".join(["Not measured.", *contents.tables])
    commands = list(dict.fromkeys(measured.command for measured in contents.measurements))
    lines = ["| metric | value | data | samples |", "| --- | --- | --- | --- |"]
    for measured in contents.measurements:
        data = measured.dataset + (f", {measured.split}" if measured.split else "")
        number = "" if measured.num_samples is None else f"{measured.num_samples:,}"
        lines.append(f"| {measured.name} | {measured.value:.4f} | {_cell(data)} | {number} |")
    if commands == [contents.command]:
        measured_by = f"Measured {'at the end of training, ' if contents.recipe else ''}by the same command."
    else:
        measured_by = "\n\n".join(["Measured by:", *(f"```bash\n{command}\n```" for command in commands)])
    return "\n\n".join(["\n".join(lines), measured_by, *contents.tables])


def _limitations(contents: CardContents, task: str) -> str:
    parts = [contents.limitations or "The model works best on images similar to its training data."]
    if task == "keypoint-detection":
        parts.append("This model does not detect people; pass their boxes, or use a detector.")
    parts.append("The Hub's own widgets do not run custom code: use the pipeline, an Inference Endpoint, or a Space.")
    return "\n".join(parts)


def _with_picture(text: str, file: str, pictures: Sequence[str]) -> str:
    return f"{text}\n\n![{PICTURES[file]}]({file})\n\n*{PICTURES[file]}*" if file in pictures else text


def _table_rows(rows: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)


def _cell(value: Any) -> str:
    """Text as a cell of a Markdown table, without line breaks and bars."""
    return " ".join(str(value).split()).replace("|", "&#124;")


__all__ = [
    "CardContents",
    "Measurement",
    "check_card",
    "load_card",
    "measurements_of",
    "plain_value",
    "widget_sources",
    "write_model_card",
]
