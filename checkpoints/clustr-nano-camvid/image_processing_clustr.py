# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Images to `pixel_values`, segmentation maps to `labels`, and logits back to maps."""

from .versions_clustr import MINIMUM_VERSIONS  # noqa: F401  # isort: skip (before what older releases lack)

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from transformers import BatchFeature, BeitImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import ImagesKwargs


# PIL's modes for 16 bits of grey.
_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# Label of pixels that do not count, in maps and where a crop reaches beyond its map.
IGNORE_INDEX = 255

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
    What images may be, for all image processors of ClusTR: PIL images and image files are turned upright by their EXIF
    tag, and greyscale, palette, CMYK, 16-bit and float ones become 8-bit RGB; transparency is laid on white.
    """

    def fetch_images(self, image_url_or_urls: Any):
        """Paths are opened by PIL, which knows more modes and EXIF tags than the tensor decoders; URLs as upstream."""
        path = image_url_or_urls
        if isinstance(path, os.PathLike) or (isinstance(path, str) and os.path.isfile(path)):
            try:
                return Image.open(path)
            except OSError as error:
                raise _unreadable(path, error) from error
        return super().fetch_images(image_url_or_urls)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """One image of any supported kind as a tensor `(channels, height, width)`."""
        is_picture = bool(do_convert_rgb)  # segmentation maps come here too, and keep their values
        if isinstance(image, Image.Image):
            image = _decode(image, is_picture)
        elif is_picture and isinstance(image, (np.ndarray, torch.Tensor)):
            image = _to_8_bit(image)
            if input_data_format is None and image.ndim == 3 and image.shape[0] == 1 and image.shape[2] in (3, 4):
                input_data_format = ChannelDimension.LAST  # one row of colours rather than one channel of 3 columns
        tensor = super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError("`images` must be finite, got NaN or infinity in an image array.")
        return tensor.expand(3, -1, -1) if is_picture and tensor.shape[0] == 1 else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        """Greyscale arrays (height, width) get a channel dimension; else as upstream."""
        if expected_ndims == 3 and isinstance(images, (list, tuple)):
            images = [_with_channels(image) for image in images]
        elif expected_ndims == 3:
            images = _with_channels(images)
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)


class ClusTRImageProcessor(ReadsImagesMixin, BeitImageProcessor):
    r"""
    Image processor of ClusTR: shorter side to 256 pixels (bicubic), centre crop of 224, ImageNet mean and standard
    deviation; the evaluation protocol of section 4.1 of the paper.

    Images are PIL images, arrays, tensors, paths or URLs, one or a list. PIL images and image files are turned upright
    by their EXIF tag, and greyscale, palette, CMYK, 16-bit and float ones become 8-bit RGB; transparency is laid on
    white. uint16 arrays count as 16-bit images. Float arrays are multiplied by `rescale_factor` too: pass
    `do_rescale=False` for values in [0, 1]. (Pipelines convert images to 8-bit RGB before the processor sees them.)

    Segmentation maps go along with the images as `segmentation_maps` and become `labels`, `(height, width)` int64:
    resized to the nearest label, never blended, and cropped like the image, 255 (ignored) where the crop is larger.
    `do_reduce_labels=True` shifts labels down by one and makes 0 the ignored 255, as ADE20K needs.

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
        ValueError: for images that cannot be decoded, hold NaN or infinity or values beyond their kind, and for
            segmentation maps that differ from the images in number or size.
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
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        data = {"pixel_values": self._preprocess(images, **kwargs)}
        if segmentation_maps is not None:
            label_maps = self._prepare_image_like_inputs(
                images=segmentation_maps,
                expected_ndims=2,
                do_convert_rgb=False,
                input_data_format=ChannelDimension.FIRST,
                device=device,
            )
            _check_maps(images, label_maps)
            label_maps = self.reduce_label(label_maps) if do_reduce_labels else label_maps
            data["labels"] = self._preprocess_label_maps(label_maps, **kwargs)
        if do_pad and (pad_size is not None or len({image.shape for image in data["pixel_values"]}) > 1):
            data["pixel_values"], data["pixel_mask"] = self.pad(data["pixel_values"], pad_size, return_mask=True)
            if "labels" in data:
                padded = self.pad([labels[None] for labels in data["labels"]], pad_size, fill_value=IGNORE_INDEX)
                data["labels"] = [labels[0] for labels in padded]
        return BatchFeature(data=data, tensor_type=return_tensors)

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


def _decode(image: Image.Image, is_picture: bool) -> Image.Image:
    """Read the pixels of a lazily opened PIL image; turn a picture upright and make it 8-bit RGB."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(getattr(image, "filename", ""), error) from error
    if not is_picture:
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GREY_MODES:
        image = Image.fromarray(_to_8_bit(np.asarray(image).astype(np.uint16)))
    elif image.mode in ("I", "F"):
        image = _from_32_bit(np.asarray(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _from_32_bit(values: np.ndarray) -> Image.Image:
    """
    32-bit greyscale as 8-bit. No tag says what its values mean, but they do: floats up to 1 are shares, anything up to
    255 is 8-bit, anything up to 65535 is 16-bit.
    """
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 65535):  # false for NaN, too
        raise ValueError(f"`images` must have grey values in [0, 65535], got values from {least} to {most}.")
    if np.issubdtype(values.dtype, np.floating) and most <= 1:
        values = values * 255
    elif most > 255:
        values = values / 257
    return Image.fromarray(np.round(values).astype(np.uint8))


def _unreadable(name: Any, error: Exception) -> ValueError:
    return ValueError(
        f"`images` must be readable, but {name or 'an image without a file name'} could not be decoded: {error}."
    )


def _with_channels(image: Any) -> Any:
    return image[None] if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2 else image


def _to_8_bit(image: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """uint16 in [0, 65535] to uint8 in [0, 255]; bool to 0 and 255; anything else stays."""
    if image.dtype in (np.uint16, torch.uint16):
        return np.round(np.asarray(image) / 257).astype(np.uint8)
    if image.dtype in (np.bool_, torch.bool):
        return np.asarray(image).astype(np.uint8) * 255
    return image


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
