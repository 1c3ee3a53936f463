# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The image processor of ClusTR: images to `pixel_values`, segmentation maps to `labels`, logits to class maps."""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (checks versions, so it is first)

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

# Settings that transform the values of an image.
SCALE_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean")

# Label of ignored pixels, in maps and where a crop extends beyond its map.
IGNORE_INDEX = 255

# Images are not enlarged beyond this number of pixels: images of a few rows or columns would take gigabytes.
MAX_PIXELS = 2**27
# If the aspect ratio of an image exceeds this, only the visible part of the crop is resized ...
MAX_ASPECT_RATIO = 64
# ... plus a margin in pixels for the support of the resampling filters.
CROP_MARGIN = 4

# Number of classes whose logits are resized at once, which bounds the memory for any number of classes.
CLASSES_AT_ONCE = 8


class ClusTRImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether to decrement the labels of segmentation maps by one and replace 0 by 255, as ADE20K requires.
    """

    do_reduce_labels: bool


class ReadsImagesMixin:
    """
    Image decoding that all image processors of ClusTR share: PIL images and image files are rotated by their metadata;
    greyscale, palette, CMYK, 16-bit and float images become 8-bit RGB; transparent pixels are blended with white.
    Arrays with values outside the valid range are rejected.
    """

    # For `handler.py`, which has no imports from its repository and accesses its code through the processor.
    find_format, scan_file, guard_pil = staticmethod(find_format), staticmethod(scan_file), staticmethod(guard_pil)

    def read_image(
        self, image: Image.Image | str | os.PathLike[str] | bytes, timeout: float | None = None
    ) -> Image.Image:
        """
        Decode an image as the model sees it, before resizing. Pipelines of transformers accept the returned image; they
        would decode paths themselves and fail on malformed EXIF.

        Args:
            image (`PIL.Image.Image`, `str`, `os.PathLike` or `bytes`):
                An image, path, URL, base64-encoded image file, or the bytes of an image file.
            timeout (`float`, *optional*):
                Timeout of a URL's server in seconds.

        Returns:
            `PIL.Image.Image`: the rotated image, 8-bit RGB, without metadata.

        Raises:
            ValueError: if the image cannot be decoded.
        """
        return read_image(image, timeout)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open files with PIL, which supports more modes and metadata than the tensor decoders."""
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
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Convert an image of any supported kind to a tensor `(channels, height, width)`. `do_rescale` to `image_mean`
        determine the valid range of array values.
        """
        is_picture, scale = bool(do_convert_rgb), 1.0
        highest = _highest_value(do_rescale, rescale_factor, do_normalize, image_mean)
        if isinstance(image, Image.Image):
            image = _read_pil_image(image, is_picture, highest)
            input_data_format = ChannelDimension.FIRST if is_picture else input_data_format
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            image = read_array(image, highest)
            _warn_of_low_values(image, do_rescale)
            if is_picture and image.is_floating_point() and 4 in (*image.shape[:1], *image.shape[-1:]):
                scale = highest or 1.0  # upstream blends transparency for floats in [0, 1]
            if is_picture and input_data_format is None and _is_row(image):
                input_data_format = ChannelDimension.LAST
        image = image / scale if scale != 1 else image
        shape = tuple(getattr(image, "shape", ()))
        try:
            tensor = super().process_image(
                image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
            )
        except (RuntimeError, ValueError) as error:  # upstream's message does not describe the array
            raise ValueError(
                "`images` must have shape (height, width), (height, width, channels) or (channels, height, width) and "
                f"1, 3 or 4 channels, got {shape}: {error}"
            ) from error
        if min(tensor.shape[-2:]) == 0:
            raise ValueError(f"`images` must have pixels, got one of (height, width) = {tuple(tensor.shape[-2:])}.")
        tensor = tensor * scale if scale != 1 else tensor
        return tensor.expand(3, -1, -1) if is_picture and tensor.shape[0] == 1 else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        """As upstream, but adds a channel dimension to greyscale arrays (height, width) and names the argument."""
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
            if str(error).startswith("`"):  # our own message
                raise
            raise ValueError(
                f"`{name}` must be images with {expected_ndims} dimensions, got {reprlib.repr(shapes)}."
            ) from error

    def resize(self, image: torch.Tensor, size: SizeDict, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        As upstream, but each side keeps at least one pixel.

        Raises:
            ValueError: if the resized image would be larger than any photograph, due to an extreme aspect ratio.
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
        if height * width > max(MAX_PIXELS, math.prod(extents)):
            raise ValueError(
                f"`images` must not be enlarged to more than {MAX_PIXELS} pixels, but one of (height, width) = "
                f"{extents} would have {(height, width)}: give `size` a 'longest_edge'."
            )
        return super().resize(image, SizeDict(height=height, width=width), *args, **kwargs)


class ClusTRImageProcessor(ReadsImagesMixin, BeitImageProcessor):
    r"""
    Image processor of ClusTR: resizes the shorter side to 256 pixels (bicubic), center-crops to 224 (section 4.1 of the
    paper) and normalises with ImageNet's mean and standard deviation.

    Images are PIL images, arrays, tensors, paths or URLs, or lists of these. PIL images and image files are rotated by
    their EXIF or XMP orientation (malformed metadata are ignored); greyscale, palette, CMYK, 16-bit and float images
    become 8-bit RGB; transparent pixels are blended with white. Pipelines of transformers decode paths and convert
    images to 8-bit RGB before they call the processor, and fail on malformed EXIF; they accept what
    [`~ClusTRImageProcessor.read_image`] returns.

    Arrays and tensors have shape `(height, width)`, `(height, width, channels)` or `(channels, height, width)` with 1,
    3 or 4 channels. bool arrays are black and white; uint16 arrays have 16 bits, [0, 65535]. Other integers and floats
    have values in [0, 255], or in [0, 1 / `rescale_factor`] if that is larger; floats are multiplied by
    `rescale_factor`, too. With `do_rescale=False` values are in [0, 1]; if also `do_normalize=False`, floats may have
    any finite value.

    Resized images have sides of at least one pixel. Images with an aspect ratio above 64 are cut to the part that the
    center crop may show before they are resized, because the whole image would take gigabytes. Without a crop and
    without `longest_edge`, images that would be resized to more than 2**27 pixels are rejected.

    Segmentation maps are passed as `segmentation_maps` and returned as `labels`, `(height, width)` int64. They are
    resized to the nearest label without blending and cropped like the image; where the crop extends beyond the map,
    labels are 255 (ignored). Maps of any dtype are accepted if they hold non-negative integers.
    `do_reduce_labels=True` decrements labels by one and replaces 0 by 255, as ADE20K requires.

    For dense prediction of whole images use `do_center_crop=False`, for example with
    `size={"shortest_edge": 512, "longest_edge": 2048}`. If the images of a call then differ in size, they are
    zero-padded on the right and bottom to the largest height and width, labels are padded with 255, and `pixel_mask`,
    `(B, H, W)` int64, is 1 for pixels of the image. [`ClusTRForSemanticSegmentation`] accepts the mask, the classifier
    rejects it; other models may treat the padding as part of the image. Pipelines support images of different sizes
    only with `batch_size=1`, their default.

    Args:
        do_resize (`bool`, defaults to `True`): Whether to resize.
        size (`dict`, defaults to `{"shortest_edge": 256}`): Target size in pixels.
        resample (`PILImageResampling`, defaults to `BICUBIC`): Resampling filter for images.
        do_center_crop (`bool`, defaults to `True`): Whether to center-crop.
        crop_size (`dict`, defaults to `{"height": 224, "width": 224}`): Size of the crop in pixels.
        do_pad (`bool`, defaults to `True`): Whether to pad images of different sizes to a common size.
        pad_size (`dict`, *optional*): Common height and width in pixels. Default: the largest of the images.
        do_rescale (`bool`, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, defaults to 1/255): Factor for rescaling.
        do_normalize (`bool`, defaults to `True`): Whether to subtract `image_mean` and divide by `image_std`.
        image_mean, image_std (`list[float]`): Mean and standard deviation per channel, in [0, 1]. Default: ImageNet's.
        do_reduce_labels (`bool`, defaults to `False`): Whether to decrement labels by one and replace 0 by 255.

    Raises:
        TypeError: if an image or segmentation map has an unsupported type.
        ValueError: if an image cannot be decoded, is built to exhaust memory or time (PNG, JPEG, WebP, GIF and TIFF
            files) or has no pixels; if an array has an unsupported dtype or shape, NaN, infinity or values out of
            range; or if the segmentation maps differ from the images in number or size or hold invalid labels.
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
        **kwargs: Any,
    ) -> BatchFeature:
        """Images and, if given, their segmentation maps."""
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
        """As upstream, but first cuts very long images to the part in the crop; resizing them whole takes gigabytes."""
        size, crop_size = kwargs["size"], kwargs["crop_size"]
        if kwargs["do_resize"] and kwargs["do_center_crop"] and size.shortest_edge and not size.longest_edge:
            images = [_cut_to_center(image, size.shortest_edge, crop_size) for image in images]
        return super()._preprocess(images, **kwargs)

    def _preprocess_label_maps(self, label_maps: list[torch.Tensor], **kwargs) -> list[torch.Tensor]:
        """Maps (1, height, width), resized and cropped like the images -> (height, width) int64."""
        kwargs.update(do_rescale=False, do_normalize=False, resample=InterpolationMode.NEAREST_EXACT)
        # Crops are padded with 0. Labels are incremented before, which tells class 0 from the padding.
        processed = self._preprocess([label_map.to(torch.int32) + 1 for label_map in label_maps], **kwargs)
        labels = [label_map.squeeze(0).to(torch.int64) - 1 for label_map in processed]
        return [torch.where(label < 0, IGNORE_INDEX, label) for label in labels]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list:
        """
        Convert logits to segmentation maps.

        Args:
            outputs ([`ClusTRSemanticSegmenterOutput`] or another with `logits` `(B, K, h, w)`):
                Output of the model. `logits_sizes`, if present, give the sizes of the logits without padding.
            target_sizes (`Sequence[tuple[int, int]]`, *optional*):
                (height, width) of each map in pixels. Default: the size of the logits.
            return_segmentation_scores (`bool`, defaults to `False`):
                Whether to also return the resized logits.

        Returns:
            `list[torch.LongTensor]`: for each image the class of every pixel, `(height, width)`; with scores, a
            dictionary of `segmentation` and `segmentation_scores` `(K, height, width)` for each image.

        Raises:
            ValueError: if the number of target sizes differs from the number of images.
        """
        logits, sizes = outputs.logits, getattr(outputs, "logits_sizes", None)
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(
                f"`target_sizes` must have one entry for each of the {len(logits)} images, got {len(target_sizes)}."
            )
        sizes = [logits.shape[2:]] * len(logits) if sizes is None else sizes.tolist()
        postprocess = super().post_process_semantic_segmentation
        maps = []
        for index, (height, width) in enumerate(sizes):
            image_logits = logits[index : index + 1, :, :height, :width]
            if target_sizes is not None and not return_segmentation_scores:
                maps.append(_classes_at_size(image_logits[0], tuple(map(int, target_sizes[index]))))
                continue
            image_size = None if target_sizes is None else target_sizes[index : index + 1]
            maps += postprocess(SemanticSegmenterOutput(logits=image_logits), image_size, return_segmentation_scores)
        return maps


def _read_pil_image(image: Image.Image, is_picture: bool, highest: float | None) -> Image.Image | torch.Tensor:
    """A decoded PIL image, as an RGB tensor (3, height, width) if it is to be converted to RGB."""
    image = as_rgb(image) if is_picture else load_image(image)
    if highest == 1.0:
        read_array(np.asarray(image), highest)  # rejects 8-bit values
    return rgb_to_tensor(image) if is_picture else image


def _is_row(image: torch.Tensor) -> bool:
    """Whether an array is a row of RGB(A) pixels (1, width, channels), rather than 3 or 4 columns of one channel."""
    return image.ndim == 3 and image.shape[0] == 1 and image.shape[2] in (3, 4)


def _classes_at_size(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Logits (K, h, w) -> class of each pixel (height, width), int64: the maximum of the resized logits, without the
    resized logits of all classes in memory at once, which may take gigabytes.
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
    """Largest valid value of an array; None if arrays are neither rescaled nor normalised."""
    if do_rescale or do_rescale is None:
        return max(255.0, 1 / rescale_factor) if rescale_factor else 255.0
    if not do_normalize:
        return None
    return 1.0 if image_mean is None or np.max(image_mean) <= 1 else 255.0


def _warn_of_low_values(image: torch.Tensor, do_rescale: bool | None):
    if image.is_floating_point() and do_rescale and image.numel() and 0 < image.max() <= 1:
        logger.warning_once(
            "`images` has a float array with values in [0, 1], but `do_rescale=True` expects values in [0, 255]: pass "
            "`do_rescale=False`."
        )


def _to_label_map(label_map: Any) -> torch.Tensor:
    """A segmentation map as labels (channels, height, width), int64, normally with a single channel."""
    if isinstance(label_map, Image.Image):
        label_map = np.asarray(load_image(label_map))
        label_map = label_map.transpose(2, 0, 1) if label_map.ndim == 3 else label_map
    labels = read_label_map(label_map)
    return labels[None] if labels.ndim == 2 else labels


def _check_kinds(name: str, images: Any):
    """Raise an error unless it is an image, or a (nested) list of images."""
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
    Cut an image (channels, height, width) with an extreme aspect ratio along the longer side to the part that a center
    crop of the resized image may show. The resulting crop is the same to within a pixel. Other images are unchanged.
    """
    shorter, longer = sorted(image.shape[-2:])
    if longer <= MAX_ASPECT_RATIO * shorter:
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
    """Raise an error unless there is one label map (1, height, width) per image, of the size of the image."""
    if len(images) != len(label_maps):
        raise ValueError(
            f"`segmentation_maps` must have one map per image, got {len(label_maps)} maps for {len(images)} images."
        )
    for index, (image, label_map) in enumerate(zip(images, label_maps)):
        if label_map.shape != (1, *image.shape[1:]):
            raise ValueError(
                f"`segmentation_maps[{index}]` must have one label per pixel and the size of the upright image, "
                f"(height, width) = {tuple(image.shape[1:])}, got (channels, height, width) = {tuple(label_map.shape)}."
            )


__all__ = ["ClusTRImageProcessor", "ReadsImagesMixin"]
