# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The card of a model that an example has trained: README.md from the template in model_cards/."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "template.md"


def write_classifier_card(folder: Path, datasets: list[str] | None = None, **sections: str):
    """
    Write README.md of an image classifier.

    Args:
        folder (`Path`): Where the model lies.
        datasets (`list[str]`, *optional*): Data sets on the Hub that it was trained on.
        sections (`str`): What the template names: `model_name`, `model_id`, `summary`, `training`, `results`,
            `limitations`.
    """
    data = ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        pipeline_tag="image-classification",
        datasets=datasets,
        metrics=["accuracy"],
        tags=["custom_code", "clustr"],
    )
    ModelCard.from_template(data, template_path=str(TEMPLATE), **sections).save(folder / "README.md")
