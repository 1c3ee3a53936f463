# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Images to `pixel_values`, segmentation maps to `labels`, and logits back to maps."""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

import math
import os
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from transformers import BatchFeature, BeitImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    is_valid_image,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .image_files_clustr import find_format, scan_file
from .image_reading_clustr import (
    as_rgb,
    guard_pil,
    load_image,
    open_image,
    read_array,
    read_image,
    read_label_map,
    rgb_to_tensor,
)


logger = logging.get_logger(__name__)

# What becomes of the values of an image.
SCALE_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean")

# Label of pixels that do not count, in maps and where a crop reaches beyond its map.
IGNORE_INDEX = 255

# Images are not enlarged to more pixels than these: those of a few rows or columns would take gigabytes.
MOST_PIXELS = 2**27
# Of images whose sides differ by more than this factor, only what the crop may show is resized ...
LONGEST_RATIO = 64
# ... and so many pixels around it, in which the filters look.
CROP_MARGIN = 4

# Classes whose logits are resized together: their number bounds the memory, whatever the number of all classes.
CLASSES_AT_ONCE = 8


class ClusTRImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether to shift the labels of segmentation maps down by one, and 0 to 255, as ADE20K needs.
    """

    do_reduce_labels: bool


class ReadsImagesMixin:
    """
    What images may be, for all image processors of ClusTR: PIL images and image files are turned upright by their
    metadata, and greyscale, palette, CMYK, 16-bit and float ones become 8-bit RGB; transparency is laid on white.
    Arrays of values that no image has are refused.
    """

    # For `handler.py`, which stands alone in a repository and reaches its code through the processor.
    find_format, scan_file, guard_pil = staticmethod(find_format), staticmethod(scan_file), staticmethod(guard_pil)

    def read_image(self, image: Image.Image | str | os.PathLike | bytes, timeout: float | None = None) -> Image.Image:
        """
        An image as the model sees it before it is resized. Pipelines of transformers read paths on their own, and fail
        where EXIF is malformed; they take what this returns.

        Args:
            image (`PIL.Image.Image`, `str`, `os.PathLike` or `bytes`):
                An image, path, URL, image file in base64, or the bytes of one.
            timeout (`float`, *optional*):
                Seconds to wait for the server of a URL.

        Returns:
            `PIL.Image.Image`: upright, 8-bit RGB, without metadata.

        Raises:
            ValueError: if it cannot be decoded.
        """
        return read_image(image, timeout)

    def fetch_images(self, image_url_or_urls: Any):
        """Files are opened by PIL, which knows more modes and metadata than the tensor decoders."""
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_image(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        One image of any supported kind as a tensor `(channels, height, width)`. What becomes of its values,
        `do_rescale` to `image_mean`, says which ones an array may have.
        """
        is_picture, scale = bool(do_convert_rgb), 1.0
        highest = _highest_value(do_rescale, rescale_factor, do_normalize, image_mean)
        if isinstance(image, Image.Image):
            image = as_rgb(image) if is_picture else load_image(image)
            if highest == 1.0:
                read_array(np.asarray(image), highest)  # refuses what has 8 bits
            if is_picture:
                image, input_data_format = rgb_to_tensor(image), ChannelDimension.FIRST
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            image = read_array(image, highest)
            _warn_of_shares(image, do_rescale)
            if is_picture and image.is_floating_point() and 4 in (*image.shape[:1], *image.shape[-1:]):
                scale = highest or 1.0  # upstream blends transparency of floats in [0, 1]
            is_row = image.ndim == 3 and image.shape[0] == 1 and image.shape[2] in (3, 4)
            if is_picture and input_data_format is None and is_row:
                input_data_format = ChannelDimension.LAST  # one row of colours rather than one channel of 3 columns
        image = image / scale if scale != 1 else image
        shape = tuple(getattr(image, "shape", ()))
        try:
            tensor = super().process_image(
                image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
            )
        except (RuntimeError, ValueError) as error:  # upstream says nothing of the array
            raise ValueError(
                "`images` must have shape (height, width), (height, width, channels) or (channels, height, width) and "
                f"1, 3 or 4 channels, got {shape}: {error}"
            ) from error
        if min(tensor.shape[-2:]) == 0:
            raise ValueError(f"`images` must have pixels, got one of (height, width) = {tuple(tensor.shape[-2:])}.")
        tensor = tensor * scale if scale != 1 else tensor
        return tensor.expand(3, -1, -1) if is_picture and tensor.shape[0] == 1 else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        """Greyscale arrays (height, width) get a channel dimension; else as upstream, which names no argument."""
        name = "images" if expected_ndims == 3 else "segmentation_maps"
        _check_kinds(name, images)
        if expected_ndims == 3 and isinstance(images, (list, tuple)):
            images = [_with_channels(image) for image in images]
        elif expected_ndims == 3:
            images = _with_channels(images)
        shapes = [tuple(getattr(image, "shape", ())) for image in (images if isinstance(images, list) else [images])]
        try:
            return super()._prepare_images_structure(images, expected_ndims=expected_ndims)
        except ValueError as error:
            if str(error).startswith("`"):  # it is ours
                raise
            raise ValueError(
                f"`{name}` must be images of {expected_ndims} dimensions, got {reprlib.repr(shapes)}."
            ) from error

    def resize(self, image: torch.Tensor, size: SizeDict, *args, **kwargs) -> torch.Tensor:
        """
        As upstream, but a side has one pixel at least.

        Raises:
            ValueError: if the image would become larger than any picture: one whose sides differ extremely.
        """
        extents, target = tuple(image.shape[-2:]), None
        if size.shortest_edge and size.longest_edge:
            target = get_size_with_aspect_ratio(extents, size.shortest_edge, size.longest_edge)
        elif size.shortest_edge:
            target = [int(size.shortest_edge * extent / min(extents)) for extent in extents]
        elif size.max_height and size.max_width:
            target = get_image_size_for_max_height_width(extents, size.max_height, size.max_width)
        if target is None:
            return super().resize(image, size, *args, **kwargs)
        height, width = (max(1, extent) for extent in target)
        if height * width > max(MOST_PIXELS, math.prod(extents)):
            raise ValueError(
                f"`images` must not be enlarged to more than {MOST_PIXELS} pixels, but one of (height, width) = "
                f"{extents} would have {(height, width)}: give `size` a 'longest_edge'."
            )
        return super().resize(image, SizeDict(height=height, width=width), *args, **kwargs)


class ClusTRImageProcessor(ReadsImagesMixin, BeitImageProcessor):
    r"""
    Image processor of ClusTR: shorter side to 256 pixels (bicubic), centre crop of 224, ImageNet mean and standard
    deviation; the evaluation protocol of section 4.1 of the paper.

    Images are PIL images, arrays, tensors, paths or URLs, one or a list. PIL images and image files are turned upright
    by their EXIF or XMP orientation (malformed metadata count as none), and greyscale, palette, CMYK, 16-bit and float
    ones become 8-bit RGB; transparency is laid on white. Pipelines of transformers decode paths and convert images to
    8-bit RGB before the processor sees them, and fail where EXIF is malformed; they take what
    [`~ClusTRImageProcessor.read_image`] returns.

    Arrays and tensors have shape `(height, width)`, `(height, width, channels)` or `(channels, height, width)` with 1,
    3 or 4 channels. Those of bool are black and white, those of uint16 have 16 bits, [0, 65535]. All other integers,
    and floats, have values in [0, 255], or [0, 1 / `rescale_factor`] if that is more; floats are multiplied by
    `rescale_factor` too. With `do_rescale=False` values are in [0, 1]; with `do_normalize=False`, too, floats may have
    any finite value.

    Sides of less than a pixel after resizing become one. An image more than 64 times as long as wide is cut to what the
    centre crop may show before it is resized, since the whole would take gigabytes. Without crop and `longest_edge`,
    one that would have more than 2**27 pixels is refused.

    Segmentation maps go along with the images as `segmentation_maps` and become `labels`, `(height, width)` int64:
    resized to the nearest label, never blended, and cropped like the image, 255 (ignored) where the crop is larger.
    They may be of any dtype, but hold whole numbers, from 0 on. `do_reduce_labels=True` shifts labels down by one and
    makes 0 the ignored 255, as ADE20K needs.

    For dense prediction of whole images use `do_center_crop=False`, for example with
    `size={"shortest_edge": 512, "longest_edge": 2048}`. Where the images of a call then differ in size, they are padded
    to the largest height and width, with 0 on the right and below, and `pixel_mask`, `(B, H, W)` int64, is 1 where
    there is an image; labels are padded with 255. [`ClusTRForSemanticSegmentation`] takes the mask, the classifier
    refuses it; models of others may take padding for image. Pipelines put images of several sizes together only one by
    one (`batch_size=1`, their default).

    Args:
        do_resize (`bool`, defaults to `True`): Whether to resize.
        size (`dict`, defaults to `{"shortest_edge": 256}`): Target size in pixels.
        resample (`PILImageResampling`, defaults to `BICUBIC`): Filter for the images.
        do_center_crop (`bool`, defaults to `True`): Whether to crop.
        crop_size (`dict`, defaults to `{"height": 224, "width": 224}`): Size of the crop in pixels.
        do_pad (`bool`, defaults to `True`): Whether to pad images of different sizes to a common one.
        pad_size (`dict`, *optional*): Height and width of it in pixels; default is the least that holds all images.
        do_rescale (`bool`, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, defaults to 1/255): That factor.
        do_normalize (`bool`, defaults to `True`): Whether to subtract `image_mean` and divide by `image_std`.
        image_mean, image_std (`list[float]`): Per channel, in [0, 1]; defaults are ImageNet's.
        do_reduce_labels (`bool`, defaults to `False`): See above.

    Raises:
        TypeError: for what is no image at all, or no segmentation map.
        ValueError: for images that cannot be decoded, are made to exhaust memory or time (of PNG, JPEG, WebP, GIF and
            TIFF files) or have no pixels, arrays of other dtypes or shapes, with NaN, infinity or values beyond these
            ranges, and for segmentation maps that differ from the images in number or size, or hold something else
            than labels.
    """

    _auto_class = "AutoImageProcessor"
    model_input_names = ["pixel_values"]
    valid_kwargs = ClusTRImageProcessorKwargs

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_pad = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_reduce_labels = False

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        segmentation_maps: Any,
        do_convert_rgb: bool,
        input_data_format,
        return_tensors,
        device=None,
        do_reduce_labels: bool = False,
        do_pad: bool = False,
        pad_size: SizeDict | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Images and, if there are any, their segmentation maps."""
        scale = {name: kwargs[name] for name in SCALE_SETTINGS}
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device, **scale
        )
        data = {"pixel_values": self._preprocess(images, **kwargs)}
        if segmentation_maps is not None:
            label_maps = self._prepare_images_structure(segmentation_maps, expected_ndims=2)
            label_maps = [_to_label_map(label_map).to(images[0].device) for label_map in label_maps]
            _check_maps(images, label_maps)
            label_maps = self.reduce_label(label_maps) if do_reduce_labels else label_maps
            data["labels"] = self._preprocess_label_maps(label_maps, **kwargs)
        if do_pad and (pad_size is not None or len({image.shape for image in data["pixel_values"]}) > 1):
            data["pixel_values"], data["pixel_mask"] = self.pad(data["pixel_values"], pad_size, return_mask=True)
            if "labels" in data:
                padded = self.pad([labels[None] for labels in data["labels"]], pad_size, fill_value=IGNORE_INDEX)
                data["labels"] = [labels[0] for labels in padded]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(self, images: list[torch.Tensor], **kwargs) -> list[torch.Tensor]:
        """As upstream; very long images without what the crop leaves out, which would take gigabytes when resized."""
        size, crop_size = kwargs["size"], kwargs["crop_size"]
        if kwargs["do_resize"] and kwargs["do_center_crop"] and size.shortest_edge and not size.longest_edge:
            images = [_cut_to_center(image, size.shortest_edge, crop_size) for image in images]
        return super()._preprocess(images, **kwargs)

    def _preprocess_label_maps(self, label_maps: list[torch.Tensor], **kwargs) -> list[torch.Tensor]:
        """Maps (1, height, width) through the geometry of the images -> (height, width) int64."""
        kwargs.update(do_rescale=False, do_normalize=False, resample=InterpolationMode.NEAREST_EXACT)
        # The crop pads with 0: labels are counted from 1 meanwhile, so that the padding can be told from class 0.
        processed = self._preprocess([label_map.to(torch.int32) + 1 for label_map in label_maps], **kwargs)
        labels = [label_map.squeeze(0).to(torch.int64) - 1 for label_map in processed]
        return [torch.where(label < 0, IGNORE_INDEX, label) for label in labels]

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: Sequence[tuple[int, int]] | None = None, return_segmentation_scores: bool = False
    ) -> list:
        """
        Logits to maps of classes.

        Args:
            outputs ([`ClusTRSemanticSegmenterOutput`] or another with `logits` `(B, K, h, w)`):
                Output of the model. `logits_sizes`, if it has them, say how much of the logits is no padding.
            target_sizes (`Sequence[tuple[int, int]]`, *optional*):
                (height, width) in pixels of each map; default is the size of the logits.
            return_segmentation_scores (`bool`, defaults to `False`):
                Whether to return the resized logits, too.

        Returns:
            `list[torch.LongTensor]`: for each image the class of every pixel, `(height, width)`; with scores, for each
            image `segmentation` and `segmentation_scores` `(K, height, width)`.

        Raises:
            ValueError: if there are not as many target sizes as images.
        """
        logits, sizes = outputs.logits, getattr(outputs, "logits_sizes", None)
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"`target_sizes` must be as many as images, {len(logits)}, got {len(target_sizes)}.")
        sizes = [logits.shape[2:]] * len(logits) if sizes is None else sizes.tolist()
        postprocess = super().post_process_semantic_segmentation
        # The first transformers of version 5 know no scores.
        settings = {"return_segmentation_scores": True} if return_segmentation_scores else {}
        maps = []
        for index, (height, width) in enumerate(sizes):
            image_logits = logits[index : index + 1, :, :height, :width]
            if target_sizes is not None and not return_segmentation_scores:
                maps.append(_classes_at_size(image_logits[0], tuple(map(int, target_sizes[index]))))
                continue
            image_size = None if target_sizes is None else target_sizes[index : index + 1]
            maps += postprocess(SemanticSegmenterOutput(logits=image_logits), image_size, **settings)
        return maps


def _classes_at_size(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Logits (K, h, w), resized to (height, width) -> the class with the largest one of each pixel, int64; without all
    classes' logits at that size, which may be gigabytes.
    """
    best, labels = None, None
    for first in range(0, len(logits), CLASSES_AT_ONCE):
        part = logits[None, first : first + CLASSES_AT_ONCE]
        part = nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
        values, indices = part.max(dim=0)
        if best is None:
            best, labels = values, indices
        else:
            is_better = values > best
            best, labels = torch.where(is_better, values, best), torch.where(is_better, indices + first, labels)
    return labels


def _highest_value(
    do_rescale: bool | None,
    rescale_factor: float | None,
    do_normalize: bool | None,
    image_mean: float | Sequence[float] | None,
) -> float | None:
    """The largest value that an array may have; None for those that are neither rescaled nor normalised."""
    if do_rescale or do_rescale is None:
        return max(255.0, 1 / rescale_factor) if rescale_factor else 255.0
    if not do_normalize:
        return None
    return 1.0 if image_mean is None or np.max(image_mean) <= 1 else 255.0


def _warn_of_shares(image: torch.Tensor, do_rescale: bool | None):
    if image.is_floating_point() and do_rescale and image.numel() and 0 < image.max() <= 1:
        logger.warning_once(
            "`images` has a float array with values in [0, 1], and `do_rescale=True` takes them for values in "
            "[0, 255]: pass `do_rescale=False`."
        )


def _to_label_map(label_map: Any) -> torch.Tensor:
    """A segmentation map as labels (channels, height, width), int64; those of a map have one channel."""
    if isinstance(label_map, Image.Image):
        label_map = np.asarray(load_image(label_map))
        label_map = label_map.transpose(2, 0, 1) if label_map.ndim == 3 else label_map
    labels = read_label_map(label_map)
    return labels[None] if labels.ndim == 2 else labels


def _check_kinds(name: str, images: Any):
    """Raise unless it is an image, or a list of some, or of lists."""
    if not isinstance(images, (list, tuple)):
        if not isinstance(images, (str, os.PathLike)) and not is_valid_image(images):
            raise TypeError(
                f"`{name}` must be a PIL image, an array, a tensor, a path or a URL, got {reprlib.repr(images)}."
            )
        return
    if not images:
        raise ValueError(f"`{name}` must hold at least one image, got none.")
    for index, image in enumerate(images):
        _check_kinds(f"{name}[{index}]", image)


def _cut_to_center(image: torch.Tensor, shortest_edge: int, crop_size: SizeDict) -> torch.Tensor:
    """
    An image (channels, height, width) whose sides differ extremely, cut along the longer one to what a centre crop of
    the resized image may show; others as they are. The crop is the same to within a pixel.
    """
    shorter, longer = sorted(image.shape[-2:])
    if longer <= LONGEST_RATIO * shorter:
        return image
    axis = -2 if image.shape[-2] == longer else -1
    crop = crop_size.height if axis == -2 else crop_size.width
    scale = shorter / shortest_edge
    length = max(shorter, math.ceil(crop * scale) + 2 * math.ceil(CROP_MARGIN * max(1, scale)))
    length += (longer - length) % 2
    return image.narrow(axis, (longer - length) // 2, length) if length < longer else image


def _with_channels(image: Any) -> Any:
    return image[None] if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2 else image


def _check_maps(images: Sequence[torch.Tensor], label_maps: Sequence[torch.Tensor]):
    """Raise unless there is one map of labels (1, height, width) for each image, of its size."""
    if len(images) != len(label_maps):
        raise ValueError(f"`segmentation_maps` must be as many as `images`, got {len(label_maps)} for {len(images)}.")
    for index, (image, label_map) in enumerate(zip(images, label_maps)):
        if label_map.shape != (1, *image.shape[1:]):
            raise ValueError(
                f"`segmentation_maps[{index}]` must hold one label a pixel and have the size of its upright image, "
                f"(height, width) = {tuple(image.shape[1:])}, got (channels, height, width) = {tuple(label_map.shape)}."
            )


__all__ = ["ClusTRImageProcessor", "ReadsImagesMixin"]
