# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The `keypoint-detection` pipeline: from an image, and boxes or a detector of people, to keypoints."""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Pipeline, pipeline
from transformers.modeling_outputs import ModelOutput
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .image_reading_clustr import as_rgb, read_image


# Batch size of the model: crops of people, of one or several images.
PERSON_BATCH_SIZE = 16


class ClusTRKeypointDetectionPipeline(Pipeline):
    r"""
    Predicts the keypoints of the people in an image.

    ```python
    estimate = pipeline("keypoint-detection", model="...", trust_remote_code=True)
    people = estimate("people.jpg", boxes=[[412, 157, 53, 138], [384, 172, 15, 35]])

    detector = pipeline("object-detection", model="...")
    estimate = pipeline("keypoint-detection", model="...", detector=detector, trust_remote_code=True)
    people = estimate("people.jpg")
    ```

    Args:
        detector (`Pipeline`, `Callable`, `str` or `os.PathLike`, *optional*): Detects people in images without boxes:
            an `object-detection` pipeline, the name or folder of a model for one, or a function that takes a PIL image
            and returns what such a pipeline returns.
        trust_remote_code (`bool`, *optional*): Whether a detector that is given by name may run code from its
            repository. `pipeline(...)` does not forward its own argument. Defaults to True if this pipeline or its
            model is remote code, which requires `pipeline(..., trust_remote_code=True)`, and to False otherwise.
        kwargs: As for any pipeline.

    A call takes an image (PIL image, path, URL), a dictionary with `image` and `boxes`, or a list, generator or data
    set of these, and the following arguments:

        boxes (*optional*): Boxes of the people in the image, (x, y, width, height) in pixels; for a list of images, a
            list of boxes for each. Without boxes and without a detector, the whole image is taken as one person.
        detector_label (`str`, *optional*, defaults to `"person"`): Class name of people in the detector's output.
        detector_threshold (`float`, *optional*, defaults to 0.5): Minimum score of the detector's boxes.
        threshold (`float`, *optional*): Return only keypoints with higher scores. Default: all keypoints.
        flip_test (`bool`, *optional*): Whether to average with the heatmaps of the mirrored crop. Default: True if the
            configuration has `flip_pairs`.
        batch_size (`int`, *optional*, defaults to 1): Number of images whose people are batched, at most 16 people per
            forward pass.

    It returns a list of people for each image, each a dictionary: `score` (mean of the keypoint scores above 0.2, times
    the score of the detector if there is one), `box` (`xmin`, `ymin`, `xmax`, `ymax`), and `keypoints`, a list of
    dictionaries with `label`, `score`, `x`, `y`, in pixels of the image.

    Raises:
        ValueError: if boxes do not match the images or are malformed, or if a dictionary has other keys.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(
        self,
        *args: Any,
        detector: Callable[..., Any] | str | os.PathLike[str] | None = None,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if isinstance(detector, (str, os.PathLike)):
            if trust_remote_code is None and (_is_remote_code(self) or _is_remote_code(self.model)):
                trust_remote_code = True
            detector = pipeline(
                "object-detection",
                model=os.fspath(detector),
                device=self.device,
                trust_remote_code=trust_remote_code,
            )
        self.detector = detector

    def _sanitize_parameters(
        self,
        detector_label: str | None = None,
        detector_threshold: float | None = None,
        threshold: float | None = None,
        flip_test: bool | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        if kwargs:
            raise TypeError(f"the keypoint-detection pipeline has no parameters {sorted(kwargs)}.")
        preprocess = {"label": detector_label, "min_score": detector_threshold, "timeout": timeout}
        forward, postprocess = {"flip_test": flip_test}, {"threshold": threshold}
        return tuple(
            {name: value for name, value in parameters.items() if value is not None}
            for parameters in (preprocess, forward, postprocess)
        )

    def __call__(self, inputs: Any, boxes: Sequence[Any] | None = None, **kwargs: Any) -> list[Any]:
        """Keypoints of the people in one or several images; the class documents the arguments."""
        inputs = list(inputs) if isinstance(inputs, (list, tuple)) else inputs
        if isinstance(inputs, list) and not inputs:
            return []
        if boxes is not None:
            inputs = _with_boxes(inputs, boxes)
        return super().__call__(inputs, **kwargs)

    def preprocess(
        self, inputs: Any, label: str = "person", min_score: float = 0.5, timeout: float | None = None
    ) -> dict[str, Any]:
        inputs = inputs if isinstance(inputs, dict) else {"image": inputs}
        if not {"image"} <= set(inputs) <= {"image", "boxes"}:
            raise ValueError(f"`inputs` must have the keys 'image' and optionally 'boxes', got {sorted(inputs)}.")
        image = inputs["image"]
        image = as_rgb(image) if isinstance(image, Image.Image) else read_image(image, timeout)
        boxes, scores = inputs.get("boxes"), None
        if boxes is None and self.detector is not None:
            # By default pipelines drop scores below 0.5.
            settings = {"threshold": min_score} if isinstance(self.detector, Pipeline) else {}
            boxes, scores = _detected_people(self.detector(image, **settings), label, min_score)
        elif boxes is None:
            boxes = [[0, 0, image.width, image.height]]
        crops = self.image_processor(image, boxes=[boxes], return_tensors="pt").to(self.dtype)
        return {"persons": {"crops": crops.pixel_values, "boxes": boxes, "scores": scores}}

    def _forward(self, inputs: dict, flip_test: bool | None = None) -> dict[str, Any]:
        flip_pairs = getattr(self.model.config, "flip_pairs", None)
        if flip_test and flip_pairs is None:
            raise ValueError("`flip_test` must be False: the configuration has no `flip_pairs`.")
        flip_pairs = flip_pairs if flip_test or flip_test is None else None
        is_batch = isinstance(inputs["persons"], list)  # transformers collates several images to a list
        of_images = inputs["persons"] if is_batch else [inputs["persons"]]
        heatmaps = self._heatmaps(torch.cat([persons["crops"] for persons in of_images]), flip_pairs)
        heatmaps = heatmaps.split([len(persons["crops"]) for persons in of_images])
        results = [
            {"heatmaps": heat, "boxes": persons["boxes"], "scores": persons["scores"]}
            for heat, persons in zip(heatmaps, of_images)
        ]
        return {"persons": results if is_batch else results[0]}

    def _heatmaps(self, crops: torch.Tensor, flip_pairs: Sequence[tuple[int, int]] | None) -> torch.Tensor:
        """Crops (B, 3, H, W) of any number of people -> heatmaps (B, K, h, w), or (0,) without people."""
        heatmaps = []
        for part in crops.split(PERSON_BATCH_SIZE) if len(crops) else ():
            heat = self.model(part).heatmaps
            if flip_pairs is not None:
                heat = (heat + self.model(part.flip(-1), flip_pairs=flip_pairs).heatmaps) / 2
            heatmaps.append(heat)
        return torch.cat(heatmaps) if heatmaps else crops.new_zeros(0)

    def postprocess(self, outputs: dict, threshold: float | None = None) -> list[dict[str, Any]]:
        outputs = outputs["persons"]
        if len(outputs["heatmaps"]) == 0:
            return []
        heat = ModelOutput(heatmaps=outputs["heatmaps"])
        [persons] = self.image_processor.post_process_pose_estimation(heat, [outputs["boxes"]])
        names, scores = self.model.config.id2label, outputs["scores"] or [1.0] * len(persons)
        results = []
        for person, box_score in zip(persons, scores):
            columns = (person[key].tolist() for key in ("keypoints", "scores", "labels"))
            keypoints = [
                {"label": names[label], "score": score, "x": x, "y": y} for (x, y), score, label in zip(*columns)
            ]
            kept = [point for point in keypoints if threshold is None or point["score"] > threshold]
            results.append(
                {
                    "score": box_score * person["score"].item(),
                    "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), person["bbox"].tolist())),
                    "keypoints": kept,
                }
            )
        return results


def _is_remote_code(value: Any) -> bool:
    """Whether its class was loaded from a repository, which requires `trust_remote_code=True`."""
    return type(value).__module__.partition(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def _with_boxes(inputs: Any, boxes: Sequence[Any]) -> Any:
    """Combine images and their boxes into dictionaries."""
    if not isinstance(inputs, list):
        if isinstance(inputs, dict) or not isinstance(inputs, (str, os.PathLike, Image.Image)):
            raise ValueError(f"`boxes` require an image or a list of images, got a {type(inputs).__name__}.")
        return {"image": inputs, "boxes": boxes}
    if len(boxes) != len(inputs):
        raise ValueError(f"`boxes` must have one list for each of the {len(inputs)} images, got {len(boxes)}.")
    return [{"image": image, "boxes": of_image} for image, of_image in zip(inputs, boxes)]


def _detected_people(detections: list[dict], label: str, min_score: float) -> tuple[list[list[float]], list[float]]:
    """Boxes (x, y, width, height) and scores of the detections with the label of people."""
    kept = [found for found in detections if found["label"] == label and found["score"] >= min_score]
    corners = [[float(found["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for found in kept]
    boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
    whole = [index for index, box in enumerate(boxes) if min(box[2:]) > 0]  # pipelines round boxes to whole pixels
    return [boxes[index] for index in whole], [kept[index]["score"] for index in whole]


__all__ = ["ClusTRKeypointDetectionPipeline"]
