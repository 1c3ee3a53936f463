# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Images to `pixel_values`, segmentation maps to `labels`, and logits back to maps."""

import os
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers import BatchFeature, BeitImageProcessor, SegformerImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs


# PIL's modes for 16 bits of grey.
_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class ClusTRImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether to shift the labels of segmentation maps down by one, and 0 to 255, as ADE20K needs.
    """

    do_reduce_labels: bool


class ClusTRImageProcessor(SegformerImageProcessor):
    r"""
    Image processor of ClusTR: shorter side to 256 pixels (bicubic), centre crop of 224, ImageNet mean and standard
    deviation; the evaluation protocol of section 4.1 of the paper.

    Images are PIL images, arrays, tensors, paths or URLs, one or a list. PIL images are turned upright by their EXIF
    tag, and greyscale, palette, CMYK and 16-bit ones become 8-bit RGB; transparency is laid on white. uint16 arrays
    count as 16-bit images. Float arrays are multiplied by `rescale_factor` too: pass `do_rescale=False` for values in
    [0, 1].

    Segmentation maps go along with the images as `segmentation_maps` and become `labels`, `(height, width)` int64:
    resized to the nearest label, never blended, and cropped like the image. `do_reduce_labels=True` shifts labels down
    by one and makes 0 the ignored 255, as ADE20K needs.

    Args:
        do_resize (`bool`, defaults to `True`): Whether to resize.
        size (`dict`, defaults to `{"shortest_edge": 256}`): Target size in pixels.
        resample (`PILImageResampling`, defaults to `BICUBIC`): Filter for the images.
        do_center_crop (`bool`, defaults to `True`): Whether to crop.
        crop_size (`dict`, defaults to `{"height": 224, "width": 224}`): Size of the crop in pixels.
        do_rescale (`bool`, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, defaults to 1/255): That factor.
        do_normalize (`bool`, defaults to `True`): Whether to subtract `image_mean` and divide by `image_std`.
        image_mean, image_std (`list[float]`): Per channel, in [0, 1]; defaults are ImageNet's.
        do_reduce_labels (`bool`, defaults to `False`): See above.

    Raises:
        ValueError: for images that cannot be decoded, hold NaN or infinity, or differ in size from their segmentation
            map; the message names the image.
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
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_reduce_labels = False

    # SegFormer's processor treats the maps as we want (nearest label), BEiT's steps include the centre crop.
    _preprocess = BeitImageProcessor._preprocess

    def fetch_images(self, image_url_or_urls: Any):
        """Paths are opened by PIL, which knows more modes and EXIF tags than the tensor decoders; URLs as upstream."""
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            try:
                return Image.open(image_url_or_urls)
            except OSError as error:
                raise _unreadable(image_url_or_urls, error) from error
        return super().fetch_images(image_url_or_urls)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        """Greyscale arrays (height, width) get a channel dimension; else as upstream."""
        if expected_ndims == 3 and isinstance(images, (list, tuple)):
            images = [_with_channels(image) for image in images]
        elif expected_ndims == 3:
            images = _with_channels(images)
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs) -> torch.Tensor:
        """One image of any supported kind as a tensor `(channels, height, width)`."""
        is_picture = bool(do_convert_rgb)  # segmentation maps come here too, and keep their values
        if isinstance(image, Image.Image):
            image = _decode(image, is_picture)
        elif is_picture and isinstance(image, (np.ndarray, torch.Tensor)):
            image = _to_8_bit(image)
        tensor = super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError("`images` must be finite, got NaN or infinity in an image array.")
        return tensor.expand(3, -1, -1) if is_picture and tensor.shape[0] == 1 else tensor

    def _preprocess_image_like_inputs(self, images: Any, segmentation_maps: Any, *args, **kwargs) -> BatchFeature:
        if segmentation_maps is not None:
            _check_sizes(images, segmentation_maps)
        return super()._preprocess_image_like_inputs(images, segmentation_maps, *args, **kwargs)


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
    elif image.mode == "I":
        image = _from_32_bit(np.asarray(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _from_32_bit(values: np.ndarray) -> Image.Image:
    """PIL's mode "I" has 32 bits, but holds converted 8-bit images or older PIL's 16-bit ones: the values tell."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"`images` must have at most 16 bits a channel, got values from {values.min()} to {values.max()}."
        )
    if values.max() > 255:
        values = _to_8_bit(values.astype(np.uint16))
    return Image.fromarray(values.astype(np.uint8))


def _unreadable(name: str, error: Exception) -> ValueError:
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


def _check_sizes(images: Any, segmentation_maps: Any):
    """Raise if a map differs in size from its image, where both are PIL images or plain lists of them."""
    images = images if isinstance(images, (list, tuple)) else [images]
    maps = segmentation_maps if isinstance(segmentation_maps, (list, tuple)) else [segmentation_maps]
    if len(images) != len(maps):
        raise ValueError(f"`segmentation_maps` must be as many as `images`, got {len(maps)} for {len(images)}.")
    for index, (image, label_map) in enumerate(zip(images, maps)):
        comparable = isinstance(image, Image.Image) and isinstance(label_map, Image.Image)
        if comparable and _upright_size(image) != label_map.size:
            raise ValueError(
                f"`segmentation_maps[{index}]` must have the size of its image, {_upright_size(image)} (width, "
                f"height), got {label_map.size}."
            )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the turn that the EXIF tag asks for; orientations from 5 on swap them."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if turned else image.size


__all__ = ["ClusTRImageProcessor"]
