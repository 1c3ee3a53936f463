# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Images and COCO annotations to what the detectors learn from, and their outputs back to boxes and masks.

K classes, n objects or detections of an image. Sizes are (height, width).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample, pad
from torchvision.ops import batched_nms, box_convert
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import DeformableDetrImageProcessor
from transformers.image_utils import AnnotationFormat

from .image_processing_clustr import ReadsImagesMixin


try:  # only polygons and compressed masks need it
    from faster_coco_eval.core import mask as coco_mask
except ImportError:
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        coco_mask = None


# How `pred_boxes` become corners.
TO_CORNERS = ("cxcywh", "xyxy")


class ClusTRDetectionImageProcessor(ReadsImagesMixin, DeformableDetrImageProcessor):
    r"""
    Image processor of [`ClusTRForObjectDetection`] and [`ClusTRForInstanceSegmentation`]: shorter side to 800 pixels,
    but the longer one to 1333 at the most (bilinear, Table A4 of the paper), ImageNet mean and standard deviation, and
    0 on the right and below up to the largest height and width of a call; `pixel_mask`, `(B, H, W)` int64, is 1 where
    there is an image.

    Images are what they are for [`ClusTRImageProcessor`]. Annotations go along with them as `annotations`, for each
    image a dictionary with `image_id` and `annotations`, a list of COCO's dictionaries: `bbox` (x, y, width, height) in
    pixels of the upright image, `category_id` in `[0, K)`, and perhaps `area`, `iscrowd`, and `segmentation`: polygons,
    or a run-length encoding, compressed or not. They become `labels`, for each image a dictionary:
    `class_labels` `(n,)` int64, `boxes` `(n, 4)` float32, (centre x, centre y, width, height) **as shares of the image
    without its padding**, `area` `(n,)` float32 in pixels of the resized image, `iscrowd` `(n,)`, `image_id`,
    `orig_size` and `size`, those of the image before and after it was resized, and, with
    `return_segmentation_masks=True`, `masks` `(n, H, W)` bool, padded like the images. Crowds, and boxes without area
    inside the image, are left out.

    Args:
        do_resize (`bool`, defaults to `True`): Whether to resize.
        size (`dict`, defaults to `{"shortest_edge": 800, "longest_edge": 1333}`):
            Target size in pixels; or `max_height` and `max_width`, or `height` and `width`.
        resample (`PILImageResampling`, defaults to `BILINEAR`): Filter for the images.
        do_pad (`bool`, defaults to `True`): Whether to pad.
        pad_size (`dict`, *optional*): Height and width in pixels; default is the least that holds all images.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: As in [`ClusTRImageProcessor`].
        do_convert_annotations (`bool`, defaults to `True`): Whether boxes become shares, else corners in pixels.

    Raises:
        ValueError: for images that cannot be decoded, and annotations that differ from them in number or are malformed.
    """

    _auto_class = "AutoImageProcessor"

    do_convert_rgb = True

    def prepare_annotation(
        self,
        image: torch.Tensor,
        target: dict,
        format: AnnotationFormat | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path=None,
        input_data_format=None,
    ) -> dict:
        """As upstream; masks also of run-length encodings, and only those of the boxes that are kept."""
        format = self.format if format is None else format
        if format != AnnotationFormat.COCO_DETECTION:
            raise ValueError(f"`format` must be {AnnotationFormat.COCO_DETECTION.value!r}, got {format!r}.")
        size = tuple(image.shape[-2:])
        kept = [_with_area(annotation) for annotation in target["annotations"] if _counts(annotation, size)]
        prepared = super().prepare_annotation(image, {**target, "annotations": kept}, format, False)
        prepared["size"] = prepared["orig_size"]  # until it is resized
        if return_segmentation_masks:
            masks = [decode_segmentation(annotation.get("segmentation"), size) for annotation in kept]
            prepared["masks"] = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool)
            prepared["masks"] = prepared["masks"].to(image.device)
        return prepared

    def resize_annotation(
        self, annotation: dict, orig_size: tuple[int, int], target_size: tuple[int, int], *args, **kwargs
    ) -> dict:
        """As upstream, but all masks at once, and also none of them."""
        masks = annotation.get("masks")
        others = {name: value for name, value in annotation.items() if name != "masks"}
        resized = super().resize_annotation(others, orig_size, target_size, *args, **kwargs)
        if masks is not None:
            resized["masks"] = masks.new_zeros((0, *target_size))
            if len(masks) > 0:
                resized["masks"] = resize(masks, list(target_size), interpolation=InterpolationMode.NEAREST_EXACT)
        return resized

    def _update_annotation_for_padded_image(
        self, annotation: dict, input_image_size: tuple[int, int], output_image_size: tuple[int, int], *args, **kwargs
    ) -> dict:
        """
        Boxes remain shares of the image. (Upstream makes them shares of the padded image, and its post-processing takes
        them for shares of the original one.)
        """
        if "masks" not in annotation:
            return annotation
        added = [target - extent for target, extent in zip(output_image_size, input_image_size)]
        return {**annotation, "masks": pad(annotation["masks"], (0, added[1], 0, added[0]))}

    def post_process_object_detection(
        self,
        outputs,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        max_candidates: int = 1000,
    ) -> list[dict[str, torch.Tensor]]:
        """
        Detections, as torchvision's RetinaNet makes them: the best candidates of each level of the pyramid, of which
        those of one class that overlap a better one are suppressed.

        Args:
            outputs ([`ClusTRDetectionOutput`], [`ClusTRInstanceSegmentationOutput`] or another with them):
                Has `logits` `(B, A, K)` and `pred_boxes` `(B, A, 4)`, (centre x, centre y, width, height) as shares.
                `level_sizes` `(B, levels)`, if it has them, say which logits belong to a level.
            threshold (`float`, defaults to 0.5):
                Detections have higher scores than this.
            target_sizes (`torch.Tensor` of shape `(B, 2)` or `Sequence[tuple[int, int]]`, *optional*):
                (height, width) of the original images in pixels; without them boxes remain shares.
            nms_threshold (`float`, defaults to 0.5):
                Largest intersection over union that two detections of a class may have.
            max_detections (`int`, defaults to 100):
                The most detections of an image.
            max_candidates (`int`, defaults to 1000):
                The most candidates of a level.

        Returns:
            `list[dict[str, torch.Tensor]]`: for each image `scores` `(n,)` in [0, 1], the best first, `labels` `(n,)`,
            and `boxes` `(n, 4)`, (x0, y0, x1, y1) within the image.

        Raises:
            ValueError: if there are not as many target sizes as images.
        """
        limits = (threshold, nms_threshold, max_detections, max_candidates)
        return [
            {name: found[name] for name in ("scores", "labels", "boxes")}
            for found in self._detect(outputs, target_sizes, *limits)
        ]

    def _detect(
        self,
        outputs,
        target_sizes,
        threshold: float,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        max_candidates: int = 1000,
    ) -> list[dict[str, torch.Tensor]]:
        """For each image the scores, labels and boxes of its detections, and the places of these in the output."""
        logits, pred_boxes = outputs.logits, outputs.pred_boxes
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"`target_sizes` must be as many as images, {len(logits)}, got {len(target_sizes)}.")
        level_sizes = getattr(outputs, "level_sizes", None)
        level_sizes = [[logits.shape[1]]] * len(logits) if level_sizes is None else level_sizes.tolist()
        detections = []
        for index, image_levels in enumerate(level_sizes):
            anchors, labels, scores = _best_candidates(logits[index], image_levels, threshold, max_candidates)
            boxes = box_convert(pred_boxes[index][anchors], *TO_CORNERS).clamp(0, 1)
            if target_sizes is not None:
                height, width = map(float, target_sizes[index])
                boxes = boxes * boxes.new_tensor([width, height, width, height])
            kept = batched_nms(boxes, scores.to(boxes.dtype), labels, nms_threshold)[:max_detections]
            detections.append(
                {"scores": scores[kept], "labels": labels[kept], "boxes": boxes[kept], "places": anchors[kept]}
            )
        return detections

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> list[dict[str, Any]]:
        """
        Objects with their masks at the size of the original images.

        Args:
            outputs ([`ClusTRInstanceSegmentationOutput`]):
                Output of the model: `logits` and `pred_boxes` as in `post_process_object_detection`, and `pred_masks`
                `(B, D, h, w)`, probabilities on a grid over the box, or over `mask_boxes` if it has them.
            threshold (`float`, defaults to 0.5):
                Objects have higher scores than this.
            mask_threshold (`float`, defaults to 0.5):
                Pixels of an object have higher probabilities than this.
            overlap_mask_area_threshold (`float`, defaults to 0):
                In a map of objects, better ones lie above worse ones; those are left out of which no larger share of
                the area than this remains visible.
            target_sizes (`torch.Tensor` of shape `(B, 2)` or `Sequence[tuple[int, int]]`):
                (height, width) of the original images in pixels.
            return_coco_annotation (`bool`, defaults to `False`):
                Whether to return COCO's run-length encodings instead of a map; objects may then overlap.
            return_binary_maps (`bool`, defaults to `False`):
                Whether to return one mask for each object instead of a map; objects may then overlap.
            nms_threshold, max_detections:
                As in `post_process_object_detection`.

        Returns:
            `list[dict]`: for each image

            - `segments_info`: for each object, the best first, a dictionary with `id` (from 0 on), `label_id`, `score`,
              `box` (x0, y0, x1, y1) in pixels, and `was_fused`, False;
            - `segmentation`: `(height, width)` int32, the id of the object at each pixel, or -1; or bool masks
              `(n, height, width)`; or a list of dictionaries `size` and `counts` (uncompressed, as COCO's tools read).

        Raises:
            ValueError: without as many target sizes as images, and if both kinds of masks are asked for.
        """
        if target_sizes is None:
            raise ValueError("`target_sizes` must give (height, width) of each image, got None.")
        if return_coco_annotation and return_binary_maps:
            raise ValueError("`return_coco_annotation` and `return_binary_maps` must not both be True.")
        results = []
        limits = {"nms_threshold": nms_threshold, "max_detections": max_detections}
        for index, found in enumerate(self._detect(outputs, target_sizes, threshold, **limits)):
            size = tuple(int(extent) for extent in target_sizes[index])
            grids = outputs.pred_masks[index][found["places"]]
            boxes = getattr(outputs, "mask_boxes", None)
            boxes = box_convert((outputs.pred_boxes if boxes is None else boxes)[index][found["places"]], *TO_CORNERS)
            boxes = boxes * boxes.new_tensor([size[1], size[0], size[1], size[0]])
            masks = (_paste(grid, box, size) > mask_threshold for grid, box in zip(grids, boxes.tolist()))
            segments = _describe_segments(found)
            if return_coco_annotation:
                segmentation = [encode_mask(mask) for mask in masks]
            elif return_binary_maps:
                segmentation = grids.new_zeros((len(segments), *size), dtype=torch.bool)
                for row, mask in zip(segmentation, masks):
                    row[:] = mask
            else:
                segmentation, segments = _lay_over(masks, segments, size, overlap_mask_area_threshold)
                segmentation = segmentation.to(grids.device)
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results


def _best_candidates(
    logits: torch.Tensor, level_sizes: Sequence[int], threshold: float, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (A, K) of all levels -> anchors, classes and scores (n,) of the best pairs of each level."""
    num_labels = logits.shape[1]
    best, first = [], 0
    for level_size in level_sizes:
        scores = logits[first : first + level_size].sigmoid().flatten()
        places = torch.where(scores > threshold)[0]
        scores, order = scores[places].topk(min(most, len(places)))
        best.append((first + places[order] // num_labels, places[order] % num_labels, scores))
        first += level_size
    return tuple(torch.cat(columns) for columns in zip(*best))


def _paste(grid: torch.Tensor, box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """
    Probabilities on a grid (h, w) over a box, (x0, y0, x1, y1) in pixels, at the centres of the pixels of an image:
    (height, width), 0 outside the box. (torchvision's own pasting rounds boxes, which costs small objects much.)
    """
    pasted, axes = grid.new_zeros(size), []
    for low, high, extent in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        first, last = max(0, math.ceil(low - 0.5)), min(extent, math.floor(high + 0.5))
        if first >= last:
            return pasted
        centers = torch.arange(first, last, device=grid.device, dtype=grid.dtype) + 0.5
        axes.append((slice(first, last), (centers - low) / (high - low) * 2 - 1))
    (rows, y), (columns, x) = axes
    points = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    sampled = grid_sample(grid[None, None], points[None], padding_mode="border", align_corners=False)
    pasted[rows, columns] = sampled[0, 0]
    return pasted


def _describe_segments(found: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist())
    return [
        {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6), "box": box}
        for index, (label, score, box) in enumerate(rows)
    ]


def _lay_over(
    masks, segments: Sequence[dict[str, Any]], size: tuple[int, int], least_visible: float
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """A map (height, width) of the objects, the better ones above the worse ones, and the objects that are on it."""
    segmentation, visible = torch.full(size, -1, dtype=torch.int32), []
    for mask, segment in zip(masks, segments):
        mask = mask.cpu()
        free = mask & (segmentation < 0)
        if free.sum() > least_visible * mask.sum():
            segmentation[free] = len(visible)
            visible.append({**segment, "id": len(visible)})
    return segmentation, visible


def encode_mask(mask: torch.Tensor) -> dict[str, list[int]]:
    """
    COCO's uncompressed run-length encoding.

    Args:
        mask (`torch.BoolTensor` of shape `(height, width)`): Where the object is.

    Returns:
        `dict`: `size` [height, width] and `counts`, the lengths of runs of 0 and 1 by turns, down the columns.
    """
    pixels = mask.cpu().numpy().T.flatten()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(pixels)]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(pixels) and pixels[0] else counts}


def decode_segmentation(segmentation: Mapping[str, Any] | Sequence, size: tuple[int, int]) -> torch.Tensor:
    """
    The mask of an object.

    Args:
        segmentation (`dict` or `list[list[float]]`): A run-length encoding of COCO, compressed or not, or polygons,
            x and y of their corners by turns.
        size (`tuple[int, int]`): (height, width) of the image.

    Returns:
        `torch.BoolTensor` of shape `(height, width)`.

    Raises:
        ImportError: for polygons and compressed encodings without faster-coco-eval or pycocotools.
        ValueError: if there is none, or it is of another size.
    """
    return torch.from_numpy(_decode(segmentation, size))


def _decode(segmentation: Mapping[str, Any] | Sequence, size: tuple[int, int]) -> np.ndarray:
    if not segmentation:
        raise ValueError(
            "`annotations` must have 'segmentation' for masks, polygons or a run-length encoding, got none."
        )
    if isinstance(segmentation, Mapping):
        if tuple(segmentation["size"]) != size:
            raise ValueError(
                f"`annotations` must have masks of the size of their upright image, {size}, got {segmentation['size']}."
            )
        if isinstance(segmentation["counts"], (list, tuple)):
            values = np.arange(len(segmentation["counts"])) % 2 == 1
            return np.repeat(values, segmentation["counts"]).reshape(size[::-1]).T.copy()
    if coco_mask is None:
        raise ImportError("polygons and compressed masks need a package: pip install faster-coco-eval")
    if isinstance(segmentation, Mapping):
        return coco_mask.decode(segmentation).astype(bool)
    # Polygons of fewer than three corners enclose nothing.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return np.zeros(size, dtype=bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def _counts(annotation: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether an object is no crowd, and its box has some area inside the image."""
    x, y, width, height = annotation["bbox"]
    is_inside = min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)
    return is_inside and not annotation.get("iscrowd", 0)


def _with_area(annotation: Mapping[str, Any]) -> dict[str, Any]:
    return {"area": annotation["bbox"][2] * annotation["bbox"][3], **annotation}


__all__ = ["ClusTRDetectionImageProcessor", "decode_segmentation", "encode_mask"]
