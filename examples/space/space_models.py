# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The models of the Space: those that `models.json` or the command line names, and what comes with the package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import Pipeline, PreTrainedConfig, pipeline

from clustr_hf import ClusTRKeypointDetectionPipeline, bundled_checkpoint
from clustr_hf.remote_code.handler_clustr import limit_masks, pipeline_task


HERE = Path(__file__).resolve().parent
MODELS_FILE = HERE / "models.json"

# Title of a tab -> the class of models that it can show.
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
    What the Space shows.

    Args:
        pipelines (`dict[str, Pipeline]`): Title of a tab -> the pipeline behind it.
        names (`dict[str, str]`): Title of a tab -> what its model is called.
        notes (`list[str]`): What could not be loaded, and what is shown instead.
    """

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, model: str, revision: str | None = None):
        """Load a model from the Hub or a folder into the tab of its task."""
        loaded = load_pipeline(model, revision)
        kind = type(loaded.model).__name__
        title = next((title for title, name in TASKS.items() if name == kind), None)
        if title is None:
            raise ValueError(f"{model} must be a model of a task, got a {kind}.")
        if title in self.pipelines:
            self.notes.append(f"{model} is shown for {title.lower()}, instead of {self.names[title]}.")
        self.pipelines[title], self.names[title] = loaded, Path(model).name if Path(model).is_dir() else model


def load_pipeline(model: str, revision: str | None = None) -> Pipeline:
    """The pipeline of a repository or folder, by the classes of this package: code in the repository is not run."""
    config, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    task = pipeline_task(config)
    # A pipeline that transformers does not know would be taken from the repository.
    own = {"pipeline_class": ClusTRKeypointDetectionPipeline} if task == "keypoint-detection" else {}
    run = pipeline(task, model=model, revision=revision, trust_remote_code=False, **own)  # False: it would ask
    limit_masks(run)
    return run


def read_entries(names: Sequence[str], path: Path) -> list[dict[str, str | None]]:
    """Models with revisions: `folder-or-id` and `id@revision` of the command line, or else what the JSON file lists."""
    if names:
        parts = [str(name).partition("@") for name in names]
        return [{"model": model, "revision": revision or None} for model, _, revision in parts]
    return json.loads(path.read_text()) if path.is_file() else []


def load_models(names: Sequence[str] = (), path: Path = MODELS_FILE) -> SpaceModels:
    """
    Load what the Space shows, and the package's checkpoint where that leaves the first tab empty: because nothing is
    named, or because the Hub cannot be reached.

    Args:
        names (`Sequence[str]`): Folders, or ids on the Hub, with `@revision` behind them if need be.
        path (`Path`): JSON file to take instead: `[{"model": "me/clustr-nano-camvid", "revision": "4f2a..."}, ...]`.
    """
    models = SpaceModels()
    for entry in read_entries(names, path):
        try:
            models.add(entry["model"], entry.get("revision"))
        except Exception as error:  # a page without one of its models is better than none
            models.notes.append(f"{entry} could not be loaded: {type(error).__name__} {str(error)[:200]}")
    if "Classification" not in models.pipelines:
        models.add(str(bundled_checkpoint()))
        models.names["Classification"] += ", which comes with the package and knows ten kinds of animals and vehicles"
    poses, detector = models.pipelines.get("Poses"), models.pipelines.get("Object detection")
    if poses is not None and detector is not None and "person" in detector.model.config.id2label.values():
        poses.detector = detector
    return models
