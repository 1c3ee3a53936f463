# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The card of a model that an example has trained: README.md from the template in model_cards/."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "template.md"


def write_classifier_card(folder: Path, datasets: list[str] | None = None, **sections: str):
    """README.md of an image classifier; see [`write_card`]."""
    write_card(folder, "image-classification", "accuracy", datasets, **sections)


def write_segmenter_card(folder: Path, datasets: list[str] | None = None, **sections: str):
    """README.md of a model for semantic segmentation; see [`write_card`]."""
    write_card(folder, "image-segmentation", "mean_iou", datasets, **sections)


def write_detector_card(folder: Path, datasets: list[str] | None = None, **sections: str):
    """README.md of an object detector; see [`write_card`]."""
    write_card(folder, "object-detection", "mean_average_precision", datasets, **sections)


def write_instance_segmenter_card(folder: Path, datasets: list[str] | None = None, **sections: str):
    """README.md of a model for instance segmentation; see [`write_card`]."""
    write_card(folder, "image-segmentation", "mean_average_precision", datasets, **sections)


def write_pose_estimator_card(folder: Path, datasets: list[str] | None = None, **sections: str):
    """README.md of a pose estimator; see [`write_card`]."""
    write_card(folder, "keypoint-detection", "mean_average_precision", datasets, **sections)


def trained_sections(model_name: str, script: str, num_steps: int, dataset_name: str | None) -> dict[str, Any]:
    """What the cards of all models have in common that the training scripts write; `script` is the script's name."""
    return {
        "datasets": [dataset_name] if dataset_name else None,
        "model_name": model_name,
        "model_id": model_name,
        "training": f"{num_steps} steps by `{script}` of clustr_hf.",
        "limitations": "It knows what it was trained on, and images like those.",
    }


def write_card(folder: Path, pipeline_tag: str, metric: str, datasets: list[str] | None = None, **sections: str):
    """
    Write README.md of a model.

    Args:
        folder (`Path`): Where the model lies.
        pipeline_tag (`str`): Task of the pipeline that runs it.
        metric (`str`): What it was measured by.
        datasets (`list[str]`, *optional*): Data sets on the Hub that it was trained on.
        sections (`str`): What the template names: `model_name`, `model_id`, `summary`, `training`, `results`,
            `limitations`.
    """
    data = ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        pipeline_tag=pipeline_tag,
        datasets=datasets,
        metrics=[metric],
        tags=["custom_code", "clustr"],
    )
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), task=pipeline_tag, **sections)
    card.save(folder / "README.md")
