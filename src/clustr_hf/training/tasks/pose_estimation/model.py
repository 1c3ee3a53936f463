# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pose estimators and their image processors."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForPoseEstimation

from .... import ClusTRForPoseEstimation, ClusTRPoseImageProcessor
from ....keypoints import KeypointConvention
from ...data.class_names import KnownNames
from ...known_names import known_names
from ...models import ModelArguments, load_model, name_labels


# Part of the class names of models with a head for the task.
HEADS = ("ForPoseEstimation",)


def load_pose_estimator(
    args: ModelArguments, convention: KeypointConvention, known: KnownNames | None = None, **fields: Any
) -> tuple[ClusTRForPoseEstimation, ClusTRPoseImageProcessor]:
    """
    A model for the convention's keypoints, and its image processor.

    Args:
        args ([`ModelArguments`]): The model. `image_size` is the height of the crops, their width is three quarters of
            it.
        convention ([`KeypointConvention`]): Keypoints, in the order of the model's heatmaps.
        known ([`KnownNames`], *optional*): Keypoints of the checkpoint that is trained further or evaluated; default:
            those of `args`.
        fields: Fields of the configuration.
    """
    known = known_names(args, HEADS) if known is None else known
    names = list(convention.names) if known is None else known.match(convention.names)
    fields = {**{name: convention.config_fields()[name] for name in ("flip_pairs", "edges")}, **fields}
    processor = ClusTRPoseImageProcessor()
    model, loaded = load_model(args, names, ClusTRForPoseEstimation, AutoModelForPoseEstimation, processor, **fields)
    order_keypoints(model, names, convention)
    if not hasattr(loaded, "post_process_pose_estimation"):  # the processor of a classifier
        loaded = processor
    changes = {"keypoint_heatmap_downscale_factor": max(1, round(model.heatmap_stride))}
    if changes["keypoint_heatmap_downscale_factor"] != model.heatmap_stride:
        raise ValueError(f"the ratio of crops to heatmaps must be an integer, got {model.heatmap_stride}")
    if args.image_size is not None:
        changes["size"] = {"height": args.image_size, "width": round(0.75 * args.image_size)}
    return model, type(loaded).from_dict({**loaded.to_dict(), **changes})


def order_keypoints(model: ClusTRForPoseEstimation, names: Sequence[str], convention: KeypointConvention):
    """Reorder the heatmaps of a model from the order of the given keypoint names to that of the convention."""
    if list(names) == list(convention.names):
        return
    layer = model.head[-1]
    order = torch.tensor([list(names).index(name) for name in convention.names], device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[order])
    for name, value in name_labels(list(convention.names)).items():
        setattr(model.config, name, value)
