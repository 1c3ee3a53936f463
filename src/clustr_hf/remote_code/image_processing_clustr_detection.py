# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The image processor of both detectors: images and COCO annotations to inputs and labels, outputs to boxes and masks.

K classes, n objects or detections per image. Sizes are (height, width).
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch.nn.functional import grid_sample, pad
from torchvision.ops import batched_nms, box_convert
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import BatchFeature, DeformableDetrImageProcessor
from transformers.image_utils import AnnotationFormat

from .annotations_clustr import (
    check_annotations,
    clean_annotation,
    clean_image_id,
    decode_masks,
    decode_segmentation,
    encode_mask,
)
from .devices_clustr import default_device
from .image_processing_clustr import ReadsImagesMixin


class ClusTRDetectionImageProcessor(ReadsImagesMixin, DeformableDetrImageProcessor):
    r"""
    Image processor of [`ClusTRForObjectDetection`] and [`ClusTRForInstanceSegmentation`]: shorter side to 800 pixels,
    without exceeding 1333 on the longer side (bilinear, Table A4 of the paper), normalises with ImageNet's mean and
    standard deviation, and zero-pads on the right and bottom to the largest height and width of a call; `pixel_mask`,
    `(B, H, W)` int64, is 1 for pixels of the image.

    Images are as in [`ClusTRImageProcessor`]. They may come with `annotations`: for each image a dictionary with
    `image_id` and `annotations`, a list of COCO annotations with `bbox` (x, y, width, height) in pixels of the upright
    image, `category_id` in `[0, K)`, and optionally `area`, `iscrowd` and `segmentation`: polygons, or a run-length
    encoding, compressed or not. The annotations become `labels`, for each image a dictionary: `class_labels` `(n,)`
    int64; `boxes` `(n, 4)` float32, (centre x, centre y, width, height) **relative to the size of the image without its
    padding**; `area` `(n,)` float32 in pixels of the resized image; `iscrowd` `(n,)`; `image_id`; `orig_size` and
    `size`, the size of the image before and after resizing; and, with `return_segmentation_masks=True`, `masks`
    `(n, H, W)` bool, padded like the images. Crowds and boxes without area inside the image are dropped.

    Args:
        do_resize (`bool`, defaults to `True`): Whether to resize.
        size (`dict`, defaults to `{"shortest_edge": 800, "longest_edge": 1333}`):
            Target size in pixels; or `max_height` and `max_width`, or `height` and `width`.
        resample (`PILImageResampling`, defaults to `BILINEAR`): Resampling filter for images.
        do_pad (`bool`, defaults to `True`): Whether to pad.
        pad_size (`dict`, *optional*): Common height and width in pixels. Default: the largest of the images.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: As in [`ClusTRImageProcessor`].
        do_convert_annotations (`bool`, defaults to `True`): Whether to make boxes relative; otherwise they are corners
            in pixels.

    Raises:
        ValueError: if an image cannot be decoded, or if annotations are malformed or differ from the images in number.
            The message names the image by its `image_id`, the annotation by its index in the image, and the field.
    """

    _auto_class = "AutoImageProcessor"

    do_convert_rgb = True

    def prepare_annotation(
        self,
        image: torch.Tensor,
        target: dict,
        format: AnnotationFormat | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: Any = None,
        input_data_format: Any = None,
    ) -> dict:
        """As upstream, but with masks from run-length encodings, too, and only for the boxes that are kept."""
        format = self.format if format is None else format
        if format != AnnotationFormat.COCO_DETECTION:
            raise ValueError(f"`format` must be {AnnotationFormat.COCO_DETECTION.value!r}, got {format!r}.")
        size, image_id = tuple(image.shape[-2:]), clean_image_id(target["image_id"])
        try:
            cleaned = enumerate(map(clean_annotation, target["annotations"], count()))
            kept = [(index, annotation) for index, annotation in cleaned if _is_valid(annotation, size)]
            masks = decode_masks(kept, size).to(image.device) if return_segmentation_masks else None
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
        objects = [{"area": row["bbox"][2] * row["bbox"][3], **row} for _, row in kept]
        target = {**target, "image_id": image_id, "annotations": objects}
        prepared = super().prepare_annotation(image, target, format, False)
        prepared["size"] = prepared["orig_size"]  # until it is resized
        return prepared if masks is None else {**prepared, "masks": masks}

    def _preprocess(self, images: list[torch.Tensor], annotations: Any, *args, **kwargs) -> BatchFeature:
        """As upstream, but with a precise error for malformed annotations."""
        if annotations is not None and kwargs.get("format") in (None, AnnotationFormat.COCO_DETECTION):
            annotations = check_annotations(annotations, len(images))
        return super()._preprocess(images, annotations, *args, **kwargs)

    def resize_annotation(
        self, annotation: dict, orig_size: tuple[int, int], target_size: tuple[int, int], *args: Any, **kwargs: Any
    ) -> dict:
        """As upstream, but resizes all masks at once and supports images without masks."""
        masks = annotation.get("masks")
        others = {name: value for name, value in annotation.items() if name != "masks"}
        resized = super().resize_annotation(others, orig_size, target_size, *args, **kwargs)
        resized["size"] = torch.tensor(target_size, dtype=torch.int64, device=annotation["boxes"].device)
        if masks is not None:
            resized["masks"] = masks.new_zeros((0, *target_size))
            if len(masks) > 0:
                resized["masks"] = resize(masks, list(target_size), interpolation=InterpolationMode.NEAREST_EXACT)
        return resized

    def _update_annotation_for_padded_image(
        self, annotation: dict, input_image_size: tuple[int, int], output_image_size: tuple[int, int], *args, **kwargs
    ) -> dict:
        """
        Keep boxes relative to the image. (Upstream makes them relative to the padded image, but its post-processing
        expects them relative to the original image.)
        """
        if "masks" not in annotation:
            return annotation
        added = [target - extent for target, extent in zip(output_image_size, input_image_size)]
        return {**annotation, "masks": pad(annotation["masks"], (0, added[1], 0, added[0]))}

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
        max_candidates: int | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """
        Convert outputs to detections as torchvision's RetinaNet does: take the best candidates of each pyramid level
        and apply non-maximum suppression per class. The outputs of Mask R-CNN are detections already.

        Args:
            outputs ([`ClusTRDetectionOutput`], [`ClusTRInstanceSegmentationOutput`] or another with their fields):
                `logits` `(B, A, K)` and `pred_boxes` `(B, A, 4)`, relative (centre x, centre y, width, height).
                `level_sizes` `(B, levels)`, if present, give the number of logits of each level.
            threshold (`float`, defaults to 0.5):
                Keep detections with higher scores.
            target_sizes (`torch.Tensor` of shape `(B, 2)` or `Sequence[tuple[int, int]]`, *optional*):
                (height, width) of the original images in pixels. Without it, boxes stay relative.
            nms_threshold (`float`, *optional*):
                Maximum intersection over union of two detections of the same class. Default: 0.5, or 1 for outputs with
                `pred_masks`, which the model has filtered by `config.detection_nms_threshold`.
            max_detections (`int`, *optional*):
                Maximum number of detections per image. Default: 100, or unlimited for outputs with `pred_masks`, which
                the model has limited to `config.detections_per_image`.
            max_candidates (`int`, *optional*):
                Maximum number of candidates per level. Default: 1000, or unlimited for outputs with `pred_masks`.

        Returns:
            `list[dict[str, torch.Tensor]]`: for each image `scores` `(n,)` in [0, 1] in descending order, `labels`
            `(n,)`, and `boxes` `(n, 4)`, (x0, y0, x1, y1), clipped to the image; at least float32.

        Raises:
            ValueError: if the number of target sizes differs from the number of images.
        """
        return [
            {name: found[name] for name in ("scores", "labels", "boxes")}
            for found in self._detect(outputs, threshold, target_sizes, nms_threshold, max_detections, max_candidates)
        ]

    def _detect(
        self,
        outputs: Any,
        threshold: float,
        target_sizes,
        nms_threshold=None,
        max_detections=None,
        max_candidates=None,
    ) -> list[dict[str, torch.Tensor]]:
        """For each image the scores, labels and boxes of its detections, and their indices in the output."""
        logits, pred_boxes = _at_least_float32(outputs.logits), _at_least_float32(outputs.pred_boxes)
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(
                f"`target_sizes` must have one entry for each of the {len(logits)} images, got {len(target_sizes)}."
            )
        if getattr(outputs, "pred_masks", None) is not None:
            nms_threshold = 1.0 if nms_threshold is None else nms_threshold
            max_detections = logits.shape[1] if max_detections is None else max_detections
            max_candidates = logits[0].numel() if max_candidates is None else max_candidates
        nms_threshold = 0.5 if nms_threshold is None else nms_threshold
        max_detections = 100 if max_detections is None else max_detections
        max_candidates = 1000 if max_candidates is None else max_candidates
        level_sizes = getattr(outputs, "level_sizes", None)
        level_sizes = [[logits.shape[1]]] * len(logits) if level_sizes is None else level_sizes.tolist()
        detections = []
        for index, image_levels in enumerate(level_sizes):
            anchors, labels, scores = _best_candidates(logits[index], image_levels, threshold, max_candidates)
            boxes = _to_corners(pred_boxes[index][anchors]).clamp(0, 1)
            if target_sizes is not None:
                boxes = _scale(boxes, target_sizes[index])
            with default_device(boxes.device):
                kept = batched_nms(boxes, scores.to(boxes.dtype), labels, nms_threshold)[:max_detections]
            detections.append(
                {"scores": scores[kept], "labels": labels[kept], "boxes": boxes[kept], "indices": anchors[kept]}
            )
        return detections

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[dict[str, Any]]:
        """
        Convert outputs to objects with masks at the size of the original images.

        Args:
            outputs ([`ClusTRInstanceSegmentationOutput`]):
                `logits` and `pred_boxes` as in `post_process_object_detection`, and `pred_masks` `(B, D, h, w)`,
                probabilities on a grid over the box, or over `mask_boxes` if present. A mask never starts before its
                box. It may extend to the end of the grid, unless a grid cell is larger than an input pixel of the
                model: then it ends with its box.
            threshold (`float`, defaults to 0.5):
                Keep objects with higher scores.
            mask_threshold (`float`, defaults to 0.5):
                Pixels with higher probabilities belong to the object.
            overlap_mask_area_threshold (`float`, defaults to 0):
                In a segmentation map, objects with higher scores cover those with lower scores. Objects are dropped
                unless a larger fraction of their area than this stays visible.
            target_sizes (`torch.Tensor` of shape `(B, 2)` or `Sequence[tuple[int, int]]`):
                (height, width) of the original images in pixels.
            return_coco_annotation (`bool`, defaults to `False`):
                Whether to return COCO run-length encodings, which may overlap, instead of a segmentation map.
            return_binary_maps (`bool`, defaults to `False`):
                Whether to return one mask per object, which may overlap, instead of a segmentation map.
            nms_threshold, max_detections:
                As in `post_process_object_detection`.

        Returns:
            `list[dict]`: for each image

            - `segments_info`: for each object, by descending score, a dictionary with `id` (starting at 0), `label_id`,
              `score`, `box` (x0, y0, x1, y1) in pixels, and `was_fused`, which is False;
            - `segmentation`: `(height, width)` int32, the id of the object at each pixel, or -1; or bool masks
              `(n, height, width)`; or a list of dictionaries `size` and `counts` (uncompressed run lengths).

        Raises:
            ValueError: if the number of target sizes differs from the number of images, or if both
                `return_coco_annotation` and `return_binary_maps` are set.
        """
        if target_sizes is None:
            raise ValueError("`target_sizes` must give (height, width) of each image, got None.")
        if return_coco_annotation and return_binary_maps:
            raise ValueError("`return_coco_annotation` and `return_binary_maps` must not both be True.")
        boxes = _at_least_float32(outputs.pred_boxes)
        mask_boxes = getattr(outputs, "mask_boxes", None)
        mask_boxes = boxes if mask_boxes is None else _at_least_float32(mask_boxes)
        results = []
        for index, found in enumerate(self._detect(outputs, threshold, target_sizes, nms_threshold, max_detections)):
            size = tuple(int(extent) for extent in target_sizes[index])
            grids = _at_least_float32(outputs.pred_masks[index][found["indices"]])
            corners = (_scale(_to_corners(b[index][found["indices"]]), size).tolist() for b in (mask_boxes, boxes))
            masks = (_paste(grid, *pair, size) > mask_threshold for grid, *pair in zip(grids, *corners))
            segments = _describe_segments(found)
            if return_coco_annotation:
                segmentation = [encode_mask(mask) for mask in masks]
            elif return_binary_maps:
                segmentation = grids.new_zeros((len(segments), *size), dtype=torch.bool)
                for row, mask in zip(segmentation, masks):
                    row[:] = mask
            else:
                segmentation, segments = _draw_map(masks, segments, size, overlap_mask_area_threshold)
                segmentation = segmentation.to(grids.device)
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _to_corners(boxes: torch.Tensor) -> torch.Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def _scale(corners: torch.Tensor, size) -> torch.Tensor:
    """Relative corners (n, 4) -> corners in pixels of an image of the given (height, width)."""
    height, width = map(float, size)
    return corners * corners.new_tensor([width, height, width, height])


def _best_candidates(
    logits: torch.Tensor, level_sizes: Sequence[int], threshold: float, max_candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (A, K) of all levels -> anchors, classes and scores (n,) of the best candidates of each level."""
    num_labels = logits.shape[1]
    best, first = [], 0
    for level_size in level_sizes:
        scores = logits[first : first + level_size].sigmoid().flatten()
        indices = torch.where(scores > threshold)[0]
        scores, order = scores[indices].topk(min(max_candidates, len(indices)))
        best.append((first + indices[order] // num_labels, indices[order] % num_labels, scores))
        first += level_size
    return tuple(torch.cat(columns) for columns in zip(*best))


def _paste(grid: torch.Tensor, mask_box: Sequence[float], box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """
    Resample probabilities on a grid (h, w) over a mask box, (x0, y0, x1, y1) in pixels, at the pixel centres of an
    image (height, width); 0 outside the area that the object of the box may cover. (torchvision's own pasting rounds
    boxes, which is inaccurate for small objects.)
    """
    pasted, axes = grid.new_zeros(size), []
    for axis, number in ((1, grid.shape[0]), (0, grid.shape[1])):
        low, high = mask_box[axis], mask_box[axis + 2]
        begin, end = _extent(low, high, box[axis], box[axis + 2], number)
        first, last = max(0, math.ceil(begin - 0.5)), min(size[1 - axis], math.floor(end + 0.5))
        if first >= last:
            return pasted
        centers = torch.arange(first, last, device=grid.device, dtype=grid.dtype) + 0.5
        axes.append((slice(first, last), (centers - low) / (high - low) * 2 - 1))
    (rows, y), (columns, x) = axes
    points = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    sampled = grid_sample(grid[None, None], points[None], padding_mode="border", align_corners=False)
    pasted[rows, columns] = sampled[0, 0]
    return pasted


def _extent(mask_low: float, mask_high: float, low: float, high: float, num_cells: int) -> tuple[float, float]:
    """
    Range of an object along an axis, given its mask box and its box, which starts half an input pixel earlier. The
    range starts with the box although the grid starts later. It ends with the grid, which is more accurate than the
    box, unless a grid cell is larger than an input pixel: then it ends with the box.
    """
    input_pixel, cell = 2 * (mask_low - low), (mask_high - mask_low) / num_cells
    return min(low, mask_low), mask_high if cell < input_pixel else high


def _describe_segments(found: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist())
    return [
        {"id": index, "label_id": label, "was_fused": False, "score": score, "box": box}
        for index, (label, score, box) in enumerate(rows)
    ]


def _draw_map(
    masks: Iterable[torch.Tensor], segments: Sequence[dict[str, Any]], size: tuple[int, int], min_visible: float
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """A segmentation map (height, width) with higher scores drawn over lower ones, and its visible objects."""
    segmentation, visible = torch.full(size, -1, dtype=torch.int32, device="cpu"), []
    for mask, segment in zip(masks, segments):
        mask = mask.cpu()
        free = mask & (segmentation < 0)
        if free.count_nonzero() > min_visible * mask.count_nonzero():  # ten times faster than `sum`
            segmentation[free] = len(visible)
            visible.append({**segment, "id": len(visible)})
    return segmentation, visible


def _is_valid(annotation: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether an object is not a crowd and its box has an area inside the image, in float32 like upstream."""
    x0, y0, width, height = torch.tensor(annotation["bbox"], dtype=torch.float32, device="cpu")
    has_area = min(x0 + width, size[1]) > max(x0, 0) and min(y0 + height, size[0]) > max(y0, 0)
    return bool(has_area) and not annotation["iscrowd"]


__all__ = ["ClusTRDetectionImageProcessor", "clean_annotation", "decode_segmentation", "encode_mask"]
