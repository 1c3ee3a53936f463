# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Persons in images to crops and target heat maps, and heat maps back to keypoints in the images.

n persons of an image, K keypoints; crops of H x W pixels, heat maps of h x w. Points are (x, y), in pixels from the
centre of the upper left one; sizes are (height, width). The corners of a crop are the centres of its outermost pixels,
and so for heat maps ("unbiased data processing", Huang et al. 2020): mirroring is exact.
"""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

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


# What makes pixels of a crop those that the model takes.
PIXEL_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# Coordinates in pixels: float32 does not hold all larger integers, and no image is so large.
GREATEST_COORDINATE = 2**24
# Heat beyond so many sigmas of a target is 0.
TARGET_RADIUS = 3.0
# Keypoints are fitted to the heat in a square of 2r + 1 pixels around the hottest one, ...
FIT_RADIUS = 2
# ... in which it counts as at least this share of the greatest: the logarithm of less is noise.
LEAST_SHARE = 1e-4
# The fitted curve bends down at least so much (-1 / 2 sigma^2), for heat that is flat.
LEAST_CURVATURE = 1e-3
# Keypoints of lower scores do not count in the score of a person, as in mmpose.
LEAST_KEYPOINT_SCORE = 0.2
# Values of an image above which its channels are cropped one by one.
VALUES_AT_ONCE = 2**24


class ClusTRPoseImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    padding_factor (`float`, *optional*, defaults to `self.padding_factor`):
        Size of a crop over that of its box.
    keypoint_heatmap_downscale_factor (`int`, *optional*, defaults to `self.keypoint_heatmap_downscale_factor`):
        Size of the crops over that of the heat maps.
    keypoint_heatmap_sigma (`float`, *optional*, defaults to `self.keypoint_heatmap_sigma`):
        Standard deviation of the target Gaussians in pixels of the heat maps.
    """

    padding_factor: float
    keypoint_heatmap_downscale_factor: int
    keypoint_heatmap_sigma: float


class ClusTRPoseImageProcessor(ReadsImagesMixin, TorchvisionBackend):
    r"""
    Image processor of [`ClusTRForPoseEstimation`]: a crop of 256 x 192 pixels (height, width) around each person's box,
    which is widened to that shape and by a quarter (bilinear; black where it reaches beyond the image), ImageNet mean
    and standard deviation (section 4.4 of the paper).

    Images are what they are for [`ClusTRImageProcessor`]. `boxes` has for each image those of its persons, (x, y,
    width, height) in pixels of the upright image, as a list of lists or an array `(n, 4)`; without it, each image is of
    one person. Boxes may reach beyond the image, or lie outside: what is not there is black. `pixel_values` has the
    crops of all images, one after the other, `(B, 3, H, W)` for B persons in all; B is 0 where there are none.

    `keypoints`, for each image an array `(n, K, 3)` or `(n, K, 2)`, adds the targets of the training: `labels`
    `(B, K, h, w)`, for each keypoint a Gaussian whose maximum is 1, and `label_weights` `(B, K)`, 1 for keypoints whose
    third value, the visibility, is positive and that are in the crop (or less than three sigmas beyond it), else 0, and
    then without heat.

    Args:
        size (`dict`, defaults to `{"height": 256, "width": 192}`): Size of the crops in pixels.
        padding_factor (`float`, defaults to 1.25): Size of a crop over that of its box.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: As in [`ClusTRImageProcessor`].
        keypoint_heatmap_downscale_factor (`int`, defaults to 4): Size of the crops over that of the heat maps.
        keypoint_heatmap_sigma (`float`, defaults to 2.0): Of the Gaussians, in pixels of the heat maps.

    Raises:
        ValueError: for images that cannot be decoded, arrays that are none, and boxes or keypoints that differ from
            them in number, have another shape, are not finite, or, for boxes, have no area.
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

    def preprocess(self, images: Any, boxes: Any = None, keypoints: Any = None, **kwargs) -> BatchFeature:
        """
        Args:
            images: One image or a list.
            boxes, keypoints (*optional*): As the class describes them.
            kwargs: Other values for the settings of the processor, and `return_tensors`.
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
        """Crops of all images, and their targets if there are keypoints."""
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
        outputs,
        boxes: Sequence[Any],
        outputs_flipped=None,
        threshold: float | None = None,
        size: Mapping[str, int] | None = None,
        padding_factor: float | None = None,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """
        Heat maps to keypoints, to fractions of a heat map's pixel.

        Args:
            outputs ([`ClusTRPoseEstimatorOutput`] or another with `heatmaps` `(B, K, h, w)`):
                Of the persons of all images, one after the other.
            boxes (`Sequence`):
                The boxes that were given with the images.
            outputs_flipped (*optional*):
                Of the mirrored crops, `model(pixel_values.flip(-1), flip_pairs=model.config.flip_pairs)`: the mean of
                both is decoded (flip test).
            threshold (`float`, *optional*):
                Only keypoints with a higher score; default is all of them.
            size, padding_factor (*optional*):
                Those that were given with the images; default is the processor's own.

        Returns:
            `list[list[dict]]`: for each image and person `keypoints` `(K', 2)` in pixels of the image, `scores`
            `(K',)`, the greatest heat, about in [0, 1], `labels` `(K',)`, indices of the keypoints, all K of them
            without a threshold, `bbox` `(4,)`, the corners of the person's box, and `score` `()`, the mean of those of
            all K keypoints' scores that are above 0.2, else 0.

        Raises:
            ValueError: for heat maps of another rank, or not as many as boxes, or flipped ones of another shape.
        """
        heatmaps = outputs.heatmaps
        if heatmaps.ndim != 4:
            raise ValueError(f"`outputs.heatmaps` must have shape (B, K, h, w), got {tuple(heatmaps.shape)}.")
        if outputs_flipped is not None:
            if outputs_flipped.heatmaps.shape != heatmaps.shape:
                raise ValueError(
                    f"`outputs_flipped` must have heat maps of shape {tuple(heatmaps.shape)}, as `outputs`, got "
                    f"{tuple(outputs_flipped.heatmaps.shape)}."
                )
            heatmaps = (heatmaps + outputs_flipped.heatmaps) / 2
        boxes = check_boxes(boxes)
        number = sum(map(len, boxes))
        if number != len(heatmaps):
            raise ValueError(f"`boxes` must be as many as heat maps, {len(heatmaps)}, got {number}.")
        points, scores = decode_heatmaps(heatmaps)
        all_boxes = torch.cat([*boxes, torch.zeros((0, 4), device="cpu")]).to(points)
        size = self.size if size is None else SizeDict(**size)
        padding_factor = self.padding_factor if padding_factor is None else padding_factor
        regions = box_regions(all_boxes, _crop_size(size), padding_factor)
        points = crop_to_image(points, crop_matrices(*regions, tuple(heatmaps.shape[-2:])))
        corners = torch.cat([all_boxes[:, :2], all_boxes[:, :2] + all_boxes[:, 2:]], dim=1)
        persons = []
        for person_points, person_scores, person_corners in zip(points, scores, corners):
            labels = torch.arange(len(person_scores), device=points.device)
            is_seen = person_scores > LEAST_KEYPOINT_SCORE
            kept = slice(None) if threshold is None else person_scores > threshold
            persons.append(
                {
                    "keypoints": person_points[kept],
                    "scores": person_scores[kept],
                    "labels": labels[kept],
                    "bbox": person_corners,
                    "score": (person_scores * is_seen).sum() / is_seen.sum().clamp(min=1),
                }
            )
        remaining = iter(persons)
        return [[next(remaining) for _ in of_image] for of_image in boxes]


def _crop_size(size: SizeDict) -> tuple[int, int]:
    if not size.height or not size.width or min(size.height, size.width) < 1:
        raise ValueError(f"`size` must have a positive height and width, got {dict(size)}.")
    return size.height, size.width


def heatmap_size(crop_size: tuple[int, int], downscale_factor: int) -> tuple[int, int]:
    """Size of the heat maps of crops of a size, rounded up."""
    _check_positive("keypoint_heatmap_downscale_factor", downscale_factor)
    return tuple(math.ceil(extent / downscale_factor) for extent in crop_size)


def _check_positive(name: str, value: float):
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be positive, got {value}.")


def _is_list(values: Any) -> bool:
    """Whether these are as many values as `len` says, for several images."""
    return isinstance(values, (list, tuple)) or (isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim > 0)


def check_boxes(boxes: Sequence[Any], num_images: int | None = None) -> list[torch.Tensor]:
    """
    The boxes of each image as a tensor `(n, 4)`, float32, on the CPU.

    Raises:
        ValueError: unless there is one entry for each image, and a box is four numbers of at most 2**24, its sides
            positive.
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
        wrong = ~((of_image.abs() <= GREATEST_COORDINATE).all(dim=1) & (of_image[:, 2:] > 0).all(dim=1))
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise ValueError(
                f"`boxes[{index}]` must be finite, with a positive width and height, and numbers of at most "
                f"{GREATEST_COORDINATE}, got {of_image[place].tolist()} in place {place}."
            )
        checked.append(of_image)
    return checked


def check_keypoints(keypoints: Sequence[Any], numbers: Sequence[int]) -> torch.Tensor:
    """
    The keypoints of all persons `(B, K, 3)`, float32, on the CPU; those that come without a visibility have 1.

    Raises:
        ValueError: unless there are those of as many persons in each image as `numbers` says, equally many of each, and
            all that are visible are numbers of at most 2**24.
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
                f"`keypoints[{index}]` must have shape ({number}, K, 3) for as many boxes, (x, y, visibility), got "
                f"{tuple(of_image.shape)}."
            )
        if of_image.shape[2] == 2:
            of_image = torch.cat([of_image, torch.ones_like(of_image[..., :1])], dim=-1)
        visible = of_image[of_image[..., 2] > 0]
        if not ((visible.abs() <= GREATEST_COORDINATE).all() and of_image[..., 2].isfinite().all()):
            raise ValueError(
                f"`keypoints[{index}]` must be finite, and numbers of at most {GREATEST_COORDINATE}, got NaN, infinity "
                f"or more."
            )
        checked.append(of_image)
    if len({of_image.shape[1] for of_image in checked}) > 1:
        raise ValueError(f"`keypoints` must be equally many of all persons, got {[x.shape[1] for x in checked]}.")
    return torch.cat(checked) if checked else torch.zeros((0, 0, 3), device="cpu")


def _as_tensor(name: str, values: Any) -> torch.Tensor:
    """An array of numbers as float32 on the CPU; numpy would take strings for numbers, and None for NaN."""
    try:
        if not isinstance(values, torch.Tensor):
            numbers = np.asarray(values)
            if numbers.size and numbers.dtype.kind not in "biuf":
                raise TypeError(f"of dtype {numbers.dtype}")
            with np.errstate(over="ignore"):  # infinite, which is refused
                values = numbers.astype(np.float32)
        return torch.atleast_1d(torch.as_tensor(values, dtype=torch.float32, device="cpu"))
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers, got {reprlib.repr(values)}: {error}.") from error


def box_regions(boxes: torch.Tensor, size: tuple[int, int], padding_factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Centres (n, 2) and extents (n, 2), (width, height), of the regions of an image that become crops of the given size:
    boxes (n, 4), (x, y, width, height), widened to the shape of the crops and by the factor.
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
    Matrices (n, 2, 3) that map points of a crop (or heat map) of the given size to the image.

    Args:
        centers, extents (`torch.Tensor` of shape `(n, 2)`): Of regions, as [`box_regions`] gives them; a negative width
            mirrors the crop.
        size (`tuple[int, int]`): Size of the crops.
        rotations (`torch.Tensor` of shape `(n,)`, *optional*): Angle of the region in degrees, clockwise in the image.
    """
    last = extents.new_tensor([max(1, size[1] - 1), max(1, size[0] - 1)])
    angles = torch.zeros_like(extents[:, 0]) if rotations is None else torch.deg2rad(rotations)
    cos, sin = angles.cos(), angles.sin()
    turn = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    linear = turn * (extents / last)[:, None]
    middle = extents.new_tensor([size[1] - 1, size[0] - 1]) / 2
    return torch.cat([linear, (centers - (linear * middle).sum(dim=-1))[..., None]], dim=2)


# Products are written out: autocast, and TF32, would round those of matrices to pixels.
def crop_to_image(points: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Points (n, K, 2) of crops -> of the image, by the matrices (n, 2, 3) of [`crop_matrices`]."""
    return (matrices[:, None, :, :2] * points[..., None, :]).sum(dim=-1) + matrices[:, None, :, 2]


def image_to_crop(points: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Points (n, K, 2) of the image -> of crops, the inverse of [`crop_to_image`]."""
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
    Regions of an image `(C, H', W')` as crops `(n, C, *size)`, float32: bilinear, 0 beyond the image. `centers`,
    `extents`, `rotations` are those of [`crop_matrices`].
    """
    if len(centers) == 0:
        return image.new_zeros((0, len(image), *size), dtype=torch.float32)
    places = [torch.arange(extent, dtype=torch.float32, device=centers.device) for extent in size]
    rows, columns = torch.meshgrid(*places, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).expand(len(centers), -1, -1)
    points = crop_to_image(pixels, crop_matrices(centers, extents, size, rotations))
    # Between the centres of the outermost pixels -1 is the first one and 1 the last one; a single one is at -1.
    last = points.new_tensor([image.shape[2] - 1, image.shape[1] - 1])
    grid = (2 * points / last.clamp(min=1) - 1).reshape(len(centers), *size, 2).to(image.device)
    # As floats a photograph is four times as large: of large images one channel is so at a time.
    parts = image.split(1) if image.numel() > VALUES_AT_ONCE else [image]
    batches = (part.to(torch.float32).expand(len(centers), -1, -1, -1) for part in parts)
    return torch.cat([grid_sample(batch, grid, mode="bilinear", align_corners=True) for batch in batches], dim=1)


def heatmap_targets(
    points: torch.Tensor, is_visible: torch.Tensor, size: tuple[int, int], sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gaussians around keypoints.

    Args:
        points (`torch.Tensor` of shape `(n, K, 2)`): In pixels of the heat maps, not rounded.
        is_visible (`torch.BoolTensor` of shape `(n, K)`): Which of them are annotated.
        size (`tuple[int, int]`): Size (h, w) of the heat maps.
        sigma (`float`): Standard deviation in their pixels.

    Returns:
        `torch.Tensor` of shape `(n, K, h, w)`, 1 at a keypoint, 0 from three sigmas away from it, and where the
        keypoint is not annotated; and weights `(n, K)`, 1 where there is heat, else 0.
    """
    profiles = []
    for axis, extent in ((1, size[0]), (0, size[1])):
        distance = torch.arange(extent, dtype=points.dtype, device=points.device) - points[..., axis, None].nan_to_num()
        profiles.append(torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() < TARGET_RADIUS * sigma))
    heatmaps = profiles[0][..., :, None] * profiles[1][..., None, :] * is_visible[..., None, None]
    return heatmaps, (heatmaps.flatten(2).amax(dim=2) > 0).to(heatmaps)


def decode_heatmaps(heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Keypoints of heat maps, to fractions of a pixel: the centre of the Gaussian that fits best to the heat around the
    hottest pixel, by least squares of the logarithms, each weighted with its squared heat (Guo 2011). It is exact for
    Gaussians whose sigma is between 0.6 and 15 pixels, also where the border cuts them. Heat that is NaN counts as 0.

    Args:
        heatmaps (`torch.Tensor` of shape `(n, K, h, w)`).

    Returns:
        `torch.Tensor` of shape `(n, K, 2)`: points in pixels of the heat maps, at most one from the hottest; and
        `(n, K)`: the greatest heat. float32.
    """
    n, k, height, width = heatmaps.shape
    flat = heatmaps.float().flatten(2).nan_to_num()
    if n * k == 0:
        return flat.new_zeros((n, k, 2)), flat.new_zeros((n, k))
    scores, hottest = flat.max(dim=2)
    peak = torch.stack([hottest % width, hottest.div(width, rounding_mode="floor")], dim=-1)
    steps = torch.arange(-FIT_RADIUS, FIT_RADIUS + 1, device=flat.device)
    offsets = torch.cartesian_prod(steps, steps)  # P of them, (x, y)
    places = peak[:, :, None] + offsets
    is_inside = ((places >= 0) & (places < places.new_tensor([width, height]))).all(dim=-1)
    places = places.clamp(min=places.new_zeros(2), max=places.new_tensor([width - 1, height - 1]))
    heat = flat.gather(2, places[..., 1] * width + places[..., 0])
    heat = (heat / scores[..., None].clamp(min=torch.finfo(flat.dtype).tiny)).clamp(LEAST_SHARE, 1)
    shift = _fit_centers(heat, offsets, is_inside)
    return peak + shift.clamp(-1, 1), scores


def _fit_centers(heat: torch.Tensor, offsets: torch.Tensor, is_inside: torch.Tensor) -> torch.Tensor:
    """
    Centres (n, K, 2) of the Gaussians that fit best to heat (n, K, P) at offsets (P, 2), where that is inside the map.
    """
    device, dtype = heat.device, heat.dtype
    if device.type == "mps":  # has no float64
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
    return (-solution[..., 1:3] / (2 * solution[..., 3:]).clamp(max=-LEAST_CURVATURE)).to(device, dtype)


__all__ = ["ClusTRPoseImageProcessor"]
