# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The image processor of pose estimation: people in images to crops and target heatmaps, heatmaps to keypoints.

n people in an image, B in all images, K keypoints; crops of H x W pixels, heatmaps of h x w. Points are (x, y), in
pixels from the centre of the upper left pixel; sizes are (height, width). Crops and heatmaps are aligned by the centres
of their corner pixels ("unbiased data processing", Huang et al. 2020), so mirroring is exact.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample
from transformers import BatchFeature, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_processing_clustr import SCALE_SETTINGS, ReadsImagesMixin
from .image_reading_clustr import MAX_COORDINATE


# Settings of rescaling and normalisation.
PIXEL_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# Targets are cut to 0 beyond this number of standard deviations.
TARGET_RADIUS = 3.0
# A keypoint is fitted to the square of 2r + 1 pixels around the peak of its heatmap ...
FIT_RADIUS = 2
# ... with values of at least this fraction of the peak, because the logarithm of smaller values is noise.
MIN_RELATIVE_HEAT = 1e-4
# Minimum curvature (-1 / 2 sigma^2) of the fitted Gaussian, for flat heatmaps.
MIN_CURVATURE = 1e-3
# Keypoints with lower scores do not contribute to the score of a person, as in mmpose.
MIN_KEYPOINT_SCORE = 0.2
# Images with more values are cropped channel by channel to limit memory.
VALUES_AT_ONCE = 2**24


class ClusTRPoseImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    padding_factor (`float`, *optional*, defaults to `self.padding_factor`):
        Size of a crop relative to its box.
    keypoint_heatmap_downscale_factor (`int`, *optional*, defaults to `self.keypoint_heatmap_downscale_factor`):
        Size of the crops relative to the heatmaps.
    keypoint_heatmap_sigma (`float`, *optional*, defaults to `self.keypoint_heatmap_sigma`):
        Standard deviation of the target Gaussians in pixels of the heatmaps.
    """

    padding_factor: float
    keypoint_heatmap_downscale_factor: int
    keypoint_heatmap_sigma: float


class ClusTRPoseImageProcessor(ReadsImagesMixin, TorchvisionBackend):
    r"""
    Image processor of [`ClusTRForPoseEstimation`]: crops 256 x 192 pixels (height, width) around the box of each person
    (bilinear, black outside the image) and normalises with ImageNet's mean and standard deviation. Boxes are extended
    to the aspect ratio of the crop and enlarged by a quarter. (Section 4.4 of the paper gives none of these settings
    and refers to TCFormer.)

    Images are as in [`ClusTRImageProcessor`]. `boxes` holds, for each image, the boxes of its people, (x, y, width,
    height) in pixels of the upright image, as a list of lists or an array `(n, 4)`. Without boxes, each image is taken
    as one person. Boxes may extend beyond the image. `pixel_values` `(B, 3, H, W)` are the crops of all images in
    order; B is 0 if there are no people.

    `keypoints`, for each image an array `(n, K, 3)` or `(n, K, 2)`, adds training targets: `labels` `(B, K, h, w)`, for
    each keypoint a Gaussian with maximum 1, and `label_weights` `(B, K)`. The weight is 1 for visible keypoints (their
    third value is positive) inside the crop or less than three standard deviations outside. For other keypoints the
    weight is 0, and so is the heatmap.

    Args:
        size (`dict`, defaults to `{"height": 256, "width": 192}`): Size of the crops in pixels.
        padding_factor (`float`, defaults to 1.25): Size of a crop relative to its box.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: As in [`ClusTRImageProcessor`].
        keypoint_heatmap_downscale_factor (`int`, defaults to 4): Size of the crops relative to the heatmaps.
        keypoint_heatmap_sigma (`float`, defaults to 2.0): Standard deviation of the Gaussians in heatmap pixels.

    Raises:
        ValueError: if an image cannot be decoded or an array is not an image; if boxes or keypoints differ from the
            images in number, have a wrong shape or are not finite; or if a box has no area.
    """

    _auto_class = "AutoImageProcessor"
    model_input_names = ["pixel_values"]
    valid_kwargs = ClusTRPoseImageProcessorKwargs

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 256, "width": 192}
    padding_factor = 1.25
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    keypoint_heatmap_downscale_factor = 4
    keypoint_heatmap_sigma = 2.0

    def preprocess(self, images: Any, boxes: Any = None, keypoints: Any = None, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: An image or a list of images.
            boxes, keypoints (*optional*): As described in the class.
            kwargs: Overrides of the processor's settings, and `return_tensors`.
        """
        return super().preprocess(images, boxes, keypoints, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        boxes: Any,
        keypoints: Any,
        do_convert_rgb: bool,
        input_data_format,
        return_tensors,
        size: SizeDict,
        padding_factor: float,
        keypoint_heatmap_downscale_factor: int,
        keypoint_heatmap_sigma: float,
        device=None,
        **kwargs,
    ) -> BatchFeature:
        """Crops of all images and, with keypoints, their targets."""
        scale = {name: kwargs[name] for name in SCALE_SETTINGS}
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device, **scale
        )
        crop_size = _crop_size(size)
        if boxes is None:
            boxes = [[[0, 0, image.shape[-1], image.shape[-2]]] for image in images]
        boxes = check_boxes(boxes, len(images))
        regions = [box_regions(of_image, crop_size, padding_factor) for of_image in boxes]
        crops = [crop_persons(image, *of_image, crop_size) for image, of_image in zip(images, regions)]
        pixel_values = self.rescale_and_normalize(torch.cat(crops), **{name: kwargs[name] for name in PIXEL_SETTINGS})
        data = {"pixel_values": pixel_values}
        if keypoints is not None:
            keypoints = check_keypoints(keypoints, [len(of_image) for of_image in boxes])
            centers, extents = (torch.cat(parts) for parts in zip(*regions))
            _check_positive("keypoint_heatmap_sigma", keypoint_heatmap_sigma)
            target_size = heatmap_size(crop_size, keypoint_heatmap_downscale_factor)
            points = image_to_crop(keypoints[..., :2], crop_matrices(centers, extents, target_size))
            data["labels"], data["label_weights"] = heatmap_targets(
                points, keypoints[..., 2] > 0, target_size, keypoint_heatmap_sigma
            )
        return BatchFeature(data=data, tensor_type=return_tensors)

    def post_process_pose_estimation(
        self,
        outputs: Any,
        boxes: Sequence[Any],
        outputs_flipped: Any = None,
        threshold: float | None = None,
        size: Mapping[str, int] | None = None,
        padding_factor: float | None = None,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """
        Decode heatmaps to keypoints with sub-pixel accuracy.

        Args:
            outputs ([`ClusTRPoseEstimatorOutput`] or another with `heatmaps` `(B, K, h, w)`):
                Output for the people of all images, in order.
            boxes (`Sequence`):
                The boxes that were passed with the images.
            outputs_flipped (*optional*):
                Output for the mirrored crops, `model(pixel_values.flip(-1), flip_pairs=model.config.flip_pairs)`. The
                mean of both outputs is decoded (flip test).
            threshold (`float`, *optional*):
                Return only keypoints with higher scores. Default: all keypoints.
            size, padding_factor (*optional*):
                The values that were passed with the images. Default: those of the processor.

        Returns:
            `list[list[dict]]`: for each image and person `keypoints` `(K', 2)` in pixels of the image, `scores`
            `(K',)`, the peak values, roughly in [0, 1], `labels` `(K',)`, the keypoint indices, `bbox` `(4,)`, the
            corners of the person's box, and `score` `()`, the mean of the keypoint scores above 0.2, or 0. K' is K
            without a threshold.

        Raises:
            ValueError: if the heatmaps have a wrong rank, differ from the boxes in number, or differ from the flipped
                heatmaps in shape.
        """
        heatmaps = _average_heatmaps(outputs, outputs_flipped)
        boxes = check_boxes(boxes)
        number = sum(map(len, boxes))
        if number != len(heatmaps):
            raise ValueError(f"`boxes` must have one box for each of the {len(heatmaps)} heatmaps, got {number}.")
        points, scores = decode_heatmaps(heatmaps)
        all_boxes = torch.cat([*boxes, torch.zeros((0, 4), device="cpu")]).to(points)
        size = self.size if size is None else SizeDict(**size)
        padding_factor = self.padding_factor if padding_factor is None else padding_factor
        regions = box_regions(all_boxes, _crop_size(size), padding_factor)
        points = crop_to_image(points, crop_matrices(*regions, tuple(heatmaps.shape[-2:])))
        corners = torch.cat([all_boxes[:, :2], all_boxes[:, :2] + all_boxes[:, 2:]], dim=1)
        people = (_describe_person(*person, threshold) for person in zip(points, scores, corners))
        return [[next(people) for _ in of_image] for of_image in boxes]


def _average_heatmaps(outputs: Any, outputs_flipped: Any) -> torch.Tensor:
    """Heatmaps (B, K, h, w) of an output, averaged with those of the mirrored crops if given."""
    heatmaps = outputs.heatmaps
    if heatmaps.ndim != 4:
        raise ValueError(f"`outputs.heatmaps` must have shape (B, K, h, w), got {tuple(heatmaps.shape)}.")
    if outputs_flipped is None:
        return heatmaps
    if outputs_flipped.heatmaps.shape != heatmaps.shape:
        raise ValueError(
            f"`outputs_flipped` must have heatmaps of shape {tuple(heatmaps.shape)}, like `outputs`, got "
            f"{tuple(outputs_flipped.heatmaps.shape)}."
        )
    return (heatmaps + outputs_flipped.heatmaps) / 2


def _describe_person(
    points: torch.Tensor, scores: torch.Tensor, corners: torch.Tensor, threshold: float | None
) -> dict[str, torch.Tensor]:
    """Result for a person with keypoints (K, 2), their scores (K,) and the corners (4,) of the box."""
    is_scored = scores > MIN_KEYPOINT_SCORE
    kept = slice(None) if threshold is None else scores > threshold
    return {
        "keypoints": points[kept],
        "scores": scores[kept],
        "labels": torch.arange(len(scores), device=points.device)[kept],
        "bbox": corners,
        "score": (scores * is_scored).sum() / is_scored.sum().clamp(min=1),
    }


def _crop_size(size: SizeDict) -> tuple[int, int]:
    if not size.height or not size.width or min(size.height, size.width) < 1:
        raise ValueError(f"`size` must have a positive height and width, got {dict(size)}.")
    return size.height, size.width


def heatmap_size(crop_size: tuple[int, int], downscale_factor: int) -> tuple[int, int]:
    """Size of the heatmaps for crops of the given size, rounded up."""
    _check_positive("keypoint_heatmap_downscale_factor", downscale_factor)
    return tuple(math.ceil(extent / downscale_factor) for extent in crop_size)


def _check_positive(name: str, value: float):
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be positive, got {value}.")


def _is_list(values: Any) -> bool:
    """Whether it is a sequence with one entry per image."""
    return isinstance(values, (list, tuple)) or (isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim > 0)


def check_boxes(boxes: Sequence[Any], num_images: int | None = None) -> list[torch.Tensor]:
    """
    The boxes of each image as a float32 tensor `(n, 4)` on the CPU.

    Raises:
        ValueError: unless there is one entry per image and each box has four numbers of magnitude at most 2**24, with
            positive width and height.
    """
    if not _is_list(boxes):
        raise ValueError(f"`boxes` must have one list for each image, got {reprlib.repr(boxes)}.")
    if num_images is not None and len(boxes) != num_images:
        raise ValueError(f"`boxes` must have one list for each of the {num_images} images, got {len(boxes)}.")
    checked = []
    for index, of_image in enumerate(boxes):
        of_image = _as_tensor(f"boxes[{index}]", of_image)
        of_image = of_image.reshape(0, 4) if of_image.numel() == 0 else of_image
        if of_image.ndim != 2 or of_image.shape[1] != 4:
            raise ValueError(
                f"`boxes[{index}]` must have shape (n, 4), (x, y, width, height), got {tuple(of_image.shape)}."
            )
        invalid = ~((of_image.abs() <= MAX_COORDINATE).all(dim=1) & (of_image[:, 2:] > 0).all(dim=1))
        if invalid.any():
            row = int(invalid.nonzero()[0])
            raise ValueError(
                f"`boxes[{index}]` must be finite, at most {MAX_COORDINATE}, and have a positive width and height, got "
                f"{of_image[row].tolist()} at index {row}."
            )
        checked.append(of_image)
    return checked


def check_keypoints(keypoints: Sequence[Any], numbers: Sequence[int]) -> torch.Tensor:
    """
    The keypoints of all people `(B, K, 3)`, float32, on the CPU. Without a visibility, keypoints count as visible.

    Raises:
        ValueError: unless each image has keypoints for as many people as `numbers` says, with the same K for all,
            and the coordinates of visible keypoints have a magnitude of at most 2**24.
    """
    if not _is_list(keypoints) or len(keypoints) != len(numbers):
        got = len(keypoints) if _is_list(keypoints) else reprlib.repr(keypoints)
        raise ValueError(f"`keypoints` must have one list for each of the {len(numbers)} images, got {got}.")
    checked = []
    for index, (of_image, number) in enumerate(zip(keypoints, numbers)):
        of_image = _as_tensor(f"keypoints[{index}]", () if of_image is None else of_image)
        if number == 0 and len(of_image) == 0:
            continue
        if of_image.ndim != 3 or len(of_image) != number or of_image.shape[2] not in (2, 3):
            raise ValueError(
                f"`keypoints[{index}]` must have shape ({number}, K, 3), (x, y, visibility) for each box, got "
                f"{tuple(of_image.shape)}."
            )
        if of_image.shape[2] == 2:
            of_image = torch.cat([of_image, torch.ones_like(of_image[..., :1])], dim=-1)
        visible = of_image[of_image[..., 2] > 0]
        if not ((visible.abs() <= MAX_COORDINATE).all() and of_image[..., 2].isfinite().all()):
            raise ValueError(
                f"`keypoints[{index}]` must be finite and at most {MAX_COORDINATE}, got NaN, infinity or more."
            )
        checked.append(of_image)
    if len({of_image.shape[1] for of_image in checked}) > 1:
        raise ValueError(f"`keypoints` must have the same K for all people, got {[x.shape[1] for x in checked]}.")
    return torch.cat(checked) if checked else torch.zeros((0, 0, 3), device="cpu")


def _as_tensor(name: str, values: Any) -> torch.Tensor:
    """An array of numbers as float32 on the CPU. (numpy would also convert strings to numbers and None to NaN.)"""
    try:
        if not isinstance(values, torch.Tensor):
            numbers = np.asarray(values)
            if numbers.size and numbers.dtype.kind not in "biuf":
                raise TypeError(f"of dtype {numbers.dtype}")
            with np.errstate(over="ignore"):  # overflows become infinity, which is rejected
                values = numbers.astype(np.float32)
        return torch.atleast_1d(torch.as_tensor(values, dtype=torch.float32, device="cpu"))
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers, got {reprlib.repr(values)}: {error}.") from error


def box_regions(boxes: torch.Tensor, size: tuple[int, int], padding_factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Centres (n, 2) and extents (n, 2), (width, height), of the image regions for crops of the given size: boxes (n, 4),
    (x, y, width, height), extended to the aspect ratio of the crops and enlarged by `padding_factor`.
    """
    _check_positive("padding_factor", padding_factor)
    aspect = size[1] / size[0]
    width, height = boxes[:, 2], boxes[:, 3]
    extents = torch.stack([torch.maximum(width, aspect * height), torch.maximum(height, width / aspect)], dim=1)
    return boxes[:, :2] + boxes[:, 2:] / 2, padding_factor * extents


def crop_matrices(
    centers: torch.Tensor, extents: torch.Tensor, size: tuple[int, int], rotations: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Matrices (n, 2, 3) that map points of a crop (or heatmap) of the given size to the image.

    Args:
        centers, extents (`torch.Tensor` of shape `(n, 2)`): Regions as returned by [`box_regions`]. A negative width
            mirrors the crop.
        size (`tuple[int, int]`): Size of the crops.
        rotations (`torch.Tensor` of shape `(n,)`, *optional*): Clockwise rotation of the regions in degrees.
    """
    last = extents.new_tensor([max(1, size[1] - 1), max(1, size[0] - 1)])
    angles = torch.zeros_like(extents[:, 0]) if rotations is None else torch.deg2rad(rotations)
    cos, sin = angles.cos(), angles.sin()
    turn = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    linear = turn * (extents / last)[:, None]
    middle = extents.new_tensor([size[1] - 1, size[0] - 1]) / 2
    return torch.cat([linear, (centers - (linear * middle).sum(dim=-1))[..., None]], dim=2)


# Products are written out because matrix products lose pixels of accuracy under autocast and TF32.
def crop_to_image(points: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Points (n, K, 2) of crops -> points of the image, by the matrices (n, 2, 3) of [`crop_matrices`]."""
    return (matrices[:, None, :, :2] * points[..., None, :]).sum(dim=-1) + matrices[:, None, :, 2]


def image_to_crop(points: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Points (n, K, 2) of the image -> points of crops; the inverse of [`crop_to_image`]."""
    inverse = torch.linalg.inv(matrices[..., :2])
    return (inverse[:, None] * (points - matrices[:, None, :, 2])[..., None, :]).sum(dim=-1)


def crop_persons(
    image: torch.Tensor,
    centers: torch.Tensor,
    extents: torch.Tensor,
    size: tuple[int, int],
    rotations: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Crop regions of an image `(C, H', W')` -> `(n, C, *size)`, float32: bilinear, 0 outside the image. `centers`,
    `extents` and `rotations` are as in [`crop_matrices`].
    """
    if len(centers) == 0:
        return image.new_zeros((0, len(image), *size), dtype=torch.float32)
    pixels = [torch.arange(extent, dtype=torch.float32, device=centers.device) for extent in size]
    rows, columns = torch.meshgrid(*pixels, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).expand(len(centers), -1, -1)
    points = crop_to_image(pixels, crop_matrices(centers, extents, size, rotations))
    # `grid_sample` maps the centres of the first and last pixel to -1 and 1, and that of a single pixel to -1.
    last = points.new_tensor([image.shape[2] - 1, image.shape[1] - 1])
    grid = (2 * points / last.clamp(min=1) - 1).reshape(len(centers), *size, 2).to(image.device)
    # Large images are converted to float channel by channel, because floats take four times the memory.
    parts = image.split(1) if image.numel() > VALUES_AT_ONCE else [image]
    batches = (part.to(torch.float32).expand(len(centers), -1, -1, -1) for part in parts)
    return torch.cat([grid_sample(batch, grid, mode="bilinear", align_corners=True) for batch in batches], dim=1)


def heatmap_targets(
    points: torch.Tensor, is_visible: torch.Tensor, size: tuple[int, int], sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Target heatmaps: Gaussians around keypoints.

    Args:
        points (`torch.Tensor` of shape `(n, K, 2)`): In pixels of the heatmaps, not rounded.
        is_visible (`torch.BoolTensor` of shape `(n, K)`): Which keypoints are annotated.
        size (`tuple[int, int]`): Size (h, w) of the heatmaps.
        sigma (`float`): Standard deviation in pixels of the heatmaps.

    Returns:
        `torch.Tensor` of shape `(n, K, h, w)`: 1 at the keypoint, 0 from three standard deviations away, all 0 for
        keypoints that are not annotated; and weights `(n, K)`: 1 for heatmaps that are not all 0, else 0.
    """
    profiles = []
    for axis, extent in ((1, size[0]), (0, size[1])):
        distance = torch.arange(extent, dtype=points.dtype, device=points.device) - points[..., axis, None].nan_to_num()
        profiles.append(torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() < TARGET_RADIUS * sigma))
    heatmaps = profiles[0][..., :, None] * profiles[1][..., None, :] * is_visible[..., None, None]
    return heatmaps, (heatmaps.flatten(2).amax(dim=2) > 0).to(heatmaps)


def decode_heatmaps(heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Decode heatmaps to keypoints with sub-pixel accuracy. The keypoint is the centre of the Gaussian that best fits the
    heatmap around its peak, by least squares of the logarithms weighted by the squared values (Guo 2011). The result is
    exact for Gaussians with standard deviations of 0.6 to 15 pixels, even if the border cuts them. NaN counts as 0.

    Args:
        heatmaps (`torch.Tensor` of shape `(n, K, h, w)`).

    Returns:
        `torch.Tensor` of shape `(n, K, 2)`: points in pixels of the heatmaps, at most one pixel from the peak; and
        `(n, K)`: values of the peaks. float32.
    """
    n, k, height, width = heatmaps.shape
    flat = heatmaps.float().flatten(2).nan_to_num()
    if n * k == 0:
        return flat.new_zeros((n, k, 2)), flat.new_zeros((n, k))
    scores, peak_index = flat.max(dim=2)
    peak = torch.stack([peak_index % width, peak_index.div(width, rounding_mode="floor")], dim=-1)
    steps = torch.arange(-FIT_RADIUS, FIT_RADIUS + 1, device=flat.device)
    offsets = torch.cartesian_prod(steps, steps)  # (P, 2), (x, y)
    pixels = peak[:, :, None] + offsets
    is_inside = ((pixels >= 0) & (pixels < pixels.new_tensor([width, height]))).all(dim=-1)
    pixels = pixels.clamp(min=pixels.new_zeros(2), max=pixels.new_tensor([width - 1, height - 1]))
    heat = flat.gather(2, pixels[..., 1] * width + pixels[..., 0])
    heat = (heat / scores[..., None].clamp(min=torch.finfo(flat.dtype).tiny)).clamp(MIN_RELATIVE_HEAT, 1)
    shift = _fit_centers(heat, offsets, is_inside)
    return peak + shift.clamp(-1, 1), scores


def _fit_centers(heat: torch.Tensor, offsets: torch.Tensor, is_inside: torch.Tensor) -> torch.Tensor:
    """Centres (n, K, 2) of the Gaussians that best fit heat (n, K, P) at offsets (P, 2), where `is_inside` the map."""
    device, dtype = heat.device, heat.dtype
    if device.type == "mps":  # does not support float64
        heat, offsets, is_inside = heat.cpu(), offsets.cpu(), is_inside.cpu()
    heat = heat.double()
    weights = heat.square() * is_inside
    # log heat = c0 + c1 x + c2 y + c3 (x^2 + y^2)
    x, y = offsets.double().unbind(dim=1)
    terms = torch.stack([torch.ones_like(x), x, y, x.square() + y.square()], dim=1)
    normal = torch.einsum("nkp,pi,pj->nkij", weights, terms, terms) + 1e-9 * torch.eye(
        4, dtype=terms.dtype, device=terms.device
    )
    solution = torch.linalg.solve(normal, torch.einsum("nkp,pi,nkp->nki", weights, terms, heat.log()))
    return (-solution[..., 1:3] / (2 * solution[..., 3:]).clamp(max=-MIN_CURVATURE)).to(device, dtype)


__all__ = ["ClusTRPoseImageProcessor"]
