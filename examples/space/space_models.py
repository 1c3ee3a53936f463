# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The models of the Space: those on the command line or in `models.json`, and the bundled checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import Pipeline, PreTrainedConfig, pipeline

from clustr_hf import ClusTRKeypointDetectionPipeline, bundled_checkpoint
from clustr_hf.remote_code.handler_clustr import limit_masks, pipeline_task


HERE = Path(__file__).resolve().parent
MODELS_FILE = HERE / "models.json"

# Title of a tab -> the class of its model.
TASKS = {
    "Classification": "ClusTRForImageClassification",
    "Semantic segmentation": "ClusTRForSemanticSegmentation",
    "Object detection": "ClusTRForObjectDetection",
    "Instance segmentation": "ClusTRForInstanceSegmentation",
    "Poses": "ClusTRForPoseEstimation",
}


@dataclass
class SpaceModels:
    """
    The models that the Space shows.

    Args:
        pipelines (`dict[str, Pipeline]`): Title of a tab -> its pipeline.
        names (`dict[str, str]`): Title of a tab -> name of its model.
        notes (`list[str]`): Messages about models that could not be loaded or were replaced.
    """

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, model: str, revision: str | None = None):
        """Load a model from the Hub or a folder for the tab of its task."""
        loaded = load_pipeline(model, revision)
        kind = type(loaded.model).__name__
        title = next((title for title, name in TASKS.items() if name == kind), None)
        if title is None:
            raise ValueError(f"{model} must be a model with a head for one of the tasks, got a {kind}.")
        if title in self.pipelines:
            self.notes.append(f"{model} is shown for {title.lower()}, instead of {self.names[title]}.")
        self.pipelines[title], self.names[title] = loaded, Path(model).name if Path(model).is_dir() else model


def load_pipeline(model: str, revision: str | None = None) -> Pipeline:
    """The pipeline of a repository or folder, with the classes of this package; code in the repository is not run."""
    config, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    task = pipeline_task(config)
    # transformers would load a pipeline that it does not know from the repository.
    own = {"pipeline_class": ClusTRKeypointDetectionPipeline} if task == "keypoint-detection" else {}
    run = pipeline(task, model=model, revision=revision, trust_remote_code=False, **own)  # the default prompts
    limit_masks(run)
    return run


def read_entries(names: Sequence[str], path: Path) -> list[dict[str, str | None]]:
    """Models and revisions from `folder-or-id` or `id@revision` arguments, or from the JSON file if there are none."""
    if names:
        parts = [str(name).partition("@") for name in names]
        return [{"model": model, "revision": revision or None} for model, _, revision in parts]
    return json.loads(path.read_text()) if path.is_file() else []


def load_models(names: Sequence[str] = (), path: Path = MODELS_FILE) -> SpaceModels:
    """
    Load the models of the Space. If there is no classifier, because none is listed or the Hub cannot be reached, the
    bundled checkpoint takes its place.

    Args:
        names (`Sequence[str]`): Folders or ids on the Hub, optionally followed by `@revision`.
        path (`Path`): JSON file to read if `names` is empty:
            `[{"model": "me/clustr-nano-camvid", "revision": "4f2a..."}, ...]`.
    """
    models = SpaceModels()
    for entry in read_entries(names, path):
        try:
            models.add(entry["model"], entry.get("revision"))
        except Exception as error:  # the page opens without this model
            models.notes.append(f"{entry} could not be loaded: {type(error).__name__} {str(error)[:200]}")
    if "Classification" not in models.pipelines:
        models.add(str(bundled_checkpoint()))
        models.names["Classification"] += ", bundled with the package; it knows ten kinds of animals and vehicles"
    poses, detector = models.pipelines.get("Poses"), models.pipelines.get("Object detection")
    if poses is not None and detector is not None and "person" in detector.model.config.id2label.values():
        poses.detector = detector
    return models
