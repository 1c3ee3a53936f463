# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Pictures: clusters over an image, predictions, training curves. All return a matplotlib `Figure` or a PIL image."""

import copy
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks
from transformers import PreTrainedModel

from .remote_code.image_processing_clustr_pose import PIXEL_SETTINGS
from .remote_code.image_reading_clustr import to_rgb


# Categorical colours that stay apart for colour-blind readers (Okabe and Ito).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"

# Of cells of pictures, either way.
GREATEST_ASPECT = 4

# Objects of an image that draw_detections names.
MOST_TEXTS = 30


@dataclass(frozen=True)
class ClusterMap:
    """
    The clusters that one scale of one block has found in an image.

    Args:
        stage, block, scale (`int`): Which ones, counted from 1; blocks within their stage.
        cluster_index (`torch.LongTensor` of shape `(N,)`): Cluster of each token in row-major order.
        grid_size (`tuple[int, int]`): (height, width) of the token grid; N is their product.
    """

    stage: int
    block: int
    scale: int
    cluster_index: torch.Tensor
    grid_size: tuple[int, int]

    @property
    def num_clusters(self) -> int:
        """`int`: How many clusters have members."""
        return len(self.cluster_index.unique())


@torch.no_grad()
def find_cluster_maps(model: nn.Module, pixel_values: torch.Tensor) -> list[ClusterMap]:
    """
    What a model's backbone clusters in an image, in every block of its clustered stages (as in Figure A3): in the image
    as it is, while models for dense prediction enlarge one whose sides are no multiples of the product of the strides.

    Args:
        model (`PreTrainedModel`): Any ClusTR model, also one that was loaded by remote code.
        pixel_values (`torch.Tensor` of shape `(1, num_channels, H, W)`): The image from its processor.

    Returns:
        `list[ClusterMap]`: in order of stages, blocks and scales.

    Raises:
        ValueError: if there is not one image.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[0] != 1:
        raise ValueError(f"`pixel_values` must be of one image, (1, C, H, W), got {tuple(pixel_values.shape)}.")
    maps, hooks = [], []

    def keep(stage: int, block: int, module, inputs, output):
        for scale, cluster_index in enumerate(output[1] or (), start=1):
            maps.append(ClusterMap(stage, block, scale, cluster_index[0].cpu(), tuple(inputs[1])))

    for stage_number, stage in enumerate(model.base_model.stages, start=1):
        for block_number, block in enumerate(stage.blocks, start=1):
            hooks.append(block.register_forward_hook(functools.partial(keep, stage_number, block_number)))
    try:
        model.base_model(pixel_values.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def coarsen_clusters(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    """
    A copy of a model with fewer clusters in its clustered stages, for pictures of images that are larger than those it
    was trained on: reduction ratios are no weights.

    Args:
        model (`PreTrainedModel`): Any ClusTR model, also one that was loaded by remote code.
        factor (`float`): A cluster has so many times the tokens on average; positive.

    Raises:
        ValueError: for a factor that is not positive, or a model without clusters.
    """
    if not factor > 0:
        raise ValueError(f"`factor` must be positive, got {factor}.")
    attention_type = getattr(model.config, "attention_type", "clustered")  # older remote code does not know it
    if attention_type != "clustered":
        raise ValueError(f"`model` must have clusters, got one with `attention_type` {attention_type!r}.")
    config = copy.deepcopy(model.config)
    config.reduction_ratios = [
        [ratio * factor for ratio in ratios] if max(ratios) > 1 else ratios for ratios in config.reduction_ratios
    ]
    coarse = type(model)(config).eval()
    coarse.load_state_dict(model.state_dict())
    return coarse.to(device=model.device, dtype=model.dtype)


def prepare_image(
    image: Image.Image, processor: Any, shorter_side: int, longest_side: int = 1024
) -> tuple[Image.Image, torch.Tensor]:
    """
    An image for [`find_cluster_maps`], whole and at a size of one's choice.

    Args:
        image (`PIL.Image.Image`): The image.
        processor (`BaseImageProcessor`): The model's, which rescales and normalises.
        shorter_side (`int`): Pixels of the shorter side.
        longest_side (`int`, defaults to 1024): The most that the longer side may have.

    Returns:
        The image (upright, RGB) as the model sees it, to draw on, and its `pixel_values` `(1, 3, H, W)`.
    """
    image = to_rgb(image)
    scale = min(shorter_side / min(image.size), longest_side / max(image.size))
    size = [max(1, round(extent * scale)) for extent in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    settings = {name: getattr(processor, name) for name in PIXEL_SETTINGS}
    return image, processor.rescale_and_normalize(_to_tensor(image)[None], **settings)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """(channels, height, width), uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def draw_clusters(
    image: Image.Image, cluster_index: torch.Tensor, grid_size: tuple[int, int], highlighted: int | None = None
) -> Image.Image:
    """
    Paint every token of an image in the mean colour of its cluster, with lines between clusters (as in Figure A3).

    Args:
        image (`PIL.Image.Image`):
            The image as the model saw it: resized and cropped, but not normalised.
        cluster_index (`torch.LongTensor` of shape `(N,)`):
            Cluster of each token in row-major order.
        grid_size (`tuple[int, int]`):
            (height, width) of the token grid; N is their product.
        highlighted (`int`, *optional*):
            A cluster to show alone: its tokens as they are, the others darkened.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: if `cluster_index` does not fill the grid.
    """
    height, width = grid_size
    if cluster_index.shape != (height * width,):
        raise ValueError(
            f"`cluster_index` must have shape ({height * width},) for a grid of {height} x {width} tokens, "
            f"got {tuple(cluster_index.shape)}."
        )
    picture = to_rgb(image)
    labels = cluster_index.cpu().numpy().astype(np.int32).reshape(height, width)
    labels = np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.asarray(picture, dtype=np.float64).reshape(-1, 3)
    if highlighted is not None:
        shade = np.where(labels == highlighted, 1.0, 0.2).reshape(-1, 1)
        return Image.fromarray((pixels * shade).round().astype(np.uint8).reshape(*labels.shape, 3))
    flat = labels.ravel()
    count = np.maximum(np.bincount(flat), 1)
    mean = np.stack([np.bincount(flat, weights=channel) / count for channel in pixels.T], axis=-1)
    painted = mean[labels]
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    painted[border] = 255
    return Image.fromarray(painted.round().astype(np.uint8))


def plot_clusters(
    image: Image.Image, cluster_maps: Mapping[str, tuple[torch.Tensor, tuple[int, int]]], columns: int = 3
) -> Figure:
    """
    An image beside its clusters in several blocks or scales.

    Args:
        image (`PIL.Image.Image`):
            The image as the model saw it.
        cluster_maps (`Mapping[str, tuple[torch.LongTensor, tuple[int, int]]]`):
            Title -> cluster of each token `(N,)`, and the (height, width) of the token grid.
        columns (`int`, defaults to 3):
            Pictures in a row.

    Returns:
        `matplotlib.figure.Figure`.
    """
    pictures = {"image": to_rgb(image)}
    for title, (cluster_index, grid_size) in cluster_maps.items():
        number = len(cluster_index.unique())
        pictures[f"{title}: {number} clusters"] = draw_clusters(image, cluster_index, grid_size)
    figure, axes = _grid(len(pictures), columns, (4.2, 4.2 * image.height / image.width + 0.4))
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title)
    return figure


def plot_predictions(
    images: Sequence[Image.Image], predicted: Sequence[str], expected: Sequence[str], columns: int = 8
) -> Figure:
    """
    A grid of images titled with the predicted class; wrong ones in red with the right class behind.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        predicted, expected (`Sequence[str]`): Their class names.
        columns (`int`, defaults to 8): Images in a row.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    figure, axes = _grid(len(images), columns, (1.3, 1.5))
    for axis, image, guess, truth in zip(axes, images, predicted, expected):
        axis.imshow(to_rgb(image))
        right = guess == truth
        axis.set_title(guess if right else f"{guess}, is {truth}", color=GREEN if right else RED, fontsize=10)
    return figure


def class_colors(num_labels: int) -> np.ndarray:
    """
    A colour for each class, the same whenever they are asked for, far apart for neighbouring classes.

    Args:
        num_labels (`int`): Number of classes.

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`, uint8 RGB.
    """
    hues = np.arange(num_labels) * 0.618034 % 1  # the golden ratio spreads any number of hues
    rows = np.arange(num_labels)
    saturations, values = np.array([0.85, 0.55, 0.95])[rows % 3], np.array([0.95, 0.75, 0.55])[rows // 2 % 3]
    return np.round(hsv_to_rgb(np.stack([hues, saturations, values], axis=-1)) * 255).astype(np.uint8)


def draw_segmentation(
    image: Image.Image, segmentation: torch.Tensor, num_labels: int, opacity: float = 0.6
) -> Image.Image:
    """
    Lay the colours of the classes over an image.

    Args:
        image (`PIL.Image.Image`):
            The image.
        segmentation (`torch.LongTensor` of shape `(height, width)`):
            Class of each pixel of the image; values outside `[0, num_labels)` do not count and darken the image.
        num_labels (`int`):
            Number of classes.
        opacity (`float`, defaults to 0.6):
            Of the colours, in [0, 1].

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: if the map is not of the size of the image.
    """
    image = to_rgb(image)
    if segmentation.shape != (image.height, image.width):
        raise ValueError(
            f"`segmentation` must have the size of `image`, (height, width) = {(image.height, image.width)}, "
            f"got {tuple(segmentation.shape)}."
        )
    labels = segmentation.cpu().numpy()
    counts = (labels >= 0) & (labels < num_labels)
    colors = class_colors(num_labels)[np.where(counts, labels, 0)] * counts[..., None]
    painted = (1 - opacity) * np.asarray(image, dtype=np.float64) + opacity * colors
    return Image.fromarray(painted.round().astype(np.uint8))


def plot_segmentation(
    images: Sequence[Image.Image],
    references: Sequence[torch.Tensor],
    predictions: Sequence[torch.Tensor],
    labels: Sequence[str],
    most_in_legend: int = 30,
) -> Figure:
    """
    Image, truth and prediction side by side, one image a row, with a legend of the classes that occur.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        references, predictions (`Sequence[torch.LongTensor]`): Label maps `(height, width)` of the images' sizes.
        labels (`Sequence[str]`): Names of the classes.
        most_in_legend (`int`, defaults to 30): The legend names so many classes, those with the largest area.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    aspect = images[0].height / images[0].width if images else 1.0
    figure, axes = _grid(3 * len(images), 3, (4.2, 4.2 * aspect))
    for row, (image, reference, prediction) in enumerate(zip(images, references, predictions)):
        columns = {"image": image, "truth": reference, "prediction": prediction}
        for axis, (title, content) in zip(axes[3 * row :], columns.items()):
            is_map = isinstance(content, torch.Tensor)
            axis.imshow(draw_segmentation(image, content, len(labels)) if is_map else to_rgb(content))
            if row == 0:
                axis.set_title(title)
    values = torch.cat([label_map.flatten().cpu() for label_map in (*references, *predictions)])
    areas = torch.bincount(values[(values >= 0) & (values < len(labels))], minlength=len(labels))
    shown = sorted(areas.argsort(descending=True)[:most_in_legend].tolist())
    colors = class_colors(len(labels)) / 255
    handles = [Patch(color=colors[index], label=labels[index]) for index in shown if areas[index] > 0]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, max(1, len(handles))))
    return figure


def draw_detections(
    image: Image.Image,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    names: Sequence[str],
    scores: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    with_text: bool | None = None,
) -> Image.Image:
    """
    Draw boxes, and masks if there are any, over an image, in the colours of their classes.

    Args:
        image (`PIL.Image.Image`):
            The image.
        boxes (`torch.Tensor` of shape `(n, 4)`):
            Corners (x0, y0, x1, y1) in pixels.
        labels (`torch.LongTensor` of shape `(n,)`):
            Classes in `[0, len(names))`.
        names (`Sequence[str]`):
            Names of the classes.
        scores (`torch.Tensor` of shape `(n,)`, *optional*):
            Scores in [0, 1], written behind the names.
        masks (`torch.BoolTensor` of shape `(n, height, width)`, *optional*):
            Where the objects are; each gets a colour of its own, instead of its class's. The first ones lie above.
        with_text (`bool`, *optional*):
            Whether to write names and scores. Default: if there are at most 30 objects; of more, text would hide them.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: if boxes, labels, scores and masks are not equally many, or a label has no name.
    """
    for name, values in (("labels", labels), ("scores", scores), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"`{name}` must be as many as `boxes`, {len(boxes)}, got {len(values)}.")
    image = to_rgb(image)
    if len(boxes) == 0:
        return image
    if not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(f"`labels` must be in [0, {len(names)}), got values from {labels.min()} to {labels.max()}.")
    picture = _to_tensor(image)
    palette = class_colors(max(len(names), len(boxes)) if masks is not None else len(names))
    colors = [tuple(palette[index].tolist()) for index in (range(len(boxes)) if masks is not None else labels.tolist())]
    if masks is not None:
        masks = masks.cpu()
        covered = masks.cumsum(dim=0) > 1  # by an earlier one; torchvision would paint overlaps black
        with torch.device("cpu"):  # torchvision does not say where its tensors are
            picture = draw_segmentation_masks(picture, masks & ~covered, alpha=0.55, colors=colors)
    boxes = _in_order(boxes)
    width = max(1, round(min(image.size) / 250))
    with torch.device("cpu"):
        drawn = functional.to_pil_image(draw_bounding_boxes(picture, boxes, colors=colors, width=width))
    if with_text or (with_text is None and len(boxes) <= MOST_TEXTS):
        values = [""] * len(boxes) if scores is None else [f" {score:.2f}" for score in scores.tolist()]
        texts = [f"{names[label]}{value}" for label, value in zip(labels.tolist(), values)]
        font = ImageFont.truetype(findfont("DejaVu Sans"), max(10, round(min(image.size) / 28)))
        for box, text, color in reversed(list(zip(boxes.tolist(), texts, colors))):  # the first ones lie above
            _write_label(drawn, box, text, color, font)
    return drawn


def _write_label(
    picture: Image.Image, box: Sequence[float], text: str, color: tuple[int, int, int], font: ImageFont.FreeTypeFont
):
    """Write on a ground of the box's colour: above the box where there is room, else in it, and never cut off."""
    canvas = ImageDraw.Draw(picture)
    margin = 2
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0, min(box[0], picture.width - width))
    y = box[1] - height if box[1] >= height else max(0, min(box[1], picture.height - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    canvas.text((x + margin - left, y + margin - top), text, fill=readable_on(color), font=font)


def readable_on(color: Sequence[int]) -> tuple[int, int, int]:
    """
    Black or white, whichever can be read better on a colour: their contrast is at least 4.58, and 4.5 is what the Web
    Content Accessibility Guidelines ask for.

    Args:
        color (`Sequence[int]`): RGB in [0, 255].
    """
    shares = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)  # sRGB
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _in_order(boxes: torch.Tensor) -> torch.Tensor:
    """Corners of which the second one is right of and below the first, as torchvision asks for."""
    boxes = boxes.detach().float().cpu()
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)


def plot_detections(
    images: Sequence[Image.Image],
    references: Sequence[Mapping[str, torch.Tensor]],
    predictions: Sequence[Mapping[str, torch.Tensor]],
    names: Sequence[str],
) -> Figure:
    """
    Truth and prediction side by side, one image a row.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        references (`Sequence[Mapping[str, torch.Tensor]]`): For each image `boxes`, `labels` and perhaps `masks`, as in
            [`draw_detections`].
        predictions (`Sequence[Mapping[str, torch.Tensor]]`): The same, and `scores`.
        names (`Sequence[str]`): Names of the classes.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    pairs = [
        [
            draw_detections(image, names=names, with_text=len(objects["boxes"]) <= MOST_TEXTS, **objects)
            for objects in both
        ]
        for image, *both in zip(images, references, predictions)
    ]
    return _plot_pairs(pairs)


def draw_keypoints(
    image: Image.Image,
    keypoints: torch.Tensor,
    names: Sequence[str],
    edges: Sequence[tuple[int, int]],
    scores: torch.Tensor | None = None,
    threshold: float = 0.3,
) -> Image.Image:
    """
    Draw skeletons over an image: what is on a person's left in blue, on the right in orange, the rest in green.

    Args:
        image (`PIL.Image.Image`):
            The image.
        keypoints (`torch.Tensor` of shape `(n, K, 2)`):
            Those of n persons, (x, y) in pixels.
        names (`Sequence[str]` of length K):
            Their names, of which those of a side begin with `left_` or `right_`.
        edges (`Sequence[tuple[int, int]]`):
            Pairs of keypoints that lines connect.
        scores (`torch.Tensor` of shape `(n, K)`, *optional*):
            Scores, or visibilities, of the keypoints.
        threshold (`float`, defaults to 0.3):
            Only keypoints with a higher score are drawn.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: for keypoints or scores of another shape, or edges that are no keypoints.
    """
    keypoints = _as_tensor(keypoints)
    shape = (len(keypoints), len(names))
    if len(keypoints) and tuple(keypoints.shape) != (*shape, 2):
        raise ValueError(f"`keypoints` must have shape {(*shape, 2)}, as `names`, got {tuple(keypoints.shape)}.")
    if scores is not None:
        scores = _as_tensor(scores)
        if len(keypoints) and tuple(scores.shape) != shape:
            raise ValueError(f"`scores` must have shape {shape}, as `keypoints`, got {tuple(scores.shape)}.")
    if any(not 0 <= index < len(names) for edge in edges for index in edge):
        raise ValueError(f"`edges` must hold pairs of keypoints in [0, {len(names)}), got {list(edges)}.")
    picture = to_rgb(image)
    canvas = ImageDraw.Draw(picture)
    colors = [_side_color((name,)) for name in names]
    for person, is_visible in zip(keypoints.tolist(), _visible(keypoints, scores, threshold)):
        seen = [point for point, visible in zip(person, is_visible) if visible]
        if not seen:
            continue
        extent = max(max(values) - min(values) for values in zip(*seen))
        width = max(1, round(extent / 120))
        for first, second in edges:
            if is_visible[first] and is_visible[second]:
                ends = [tuple(person[first]), tuple(person[second])]
                thickness = min(width, max(1, round(math.dist(*ends) / 8)))  # or the lines of a face run together
                canvas.line(ends, fill=_side_color((names[first], names[second])), width=thickness)
        radius = width * (1.5 if len(names) < 30 else 0.5)  # or many points do
        for (x, y), color, visible in zip(person, colors, is_visible):
            if visible:
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return picture


def _as_tensor(values: Any) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(values, device="cpu")


def _visible(keypoints: torch.Tensor, scores: torch.Tensor | None, threshold: float) -> list[list[bool]]:
    is_finite = keypoints.isfinite().all(dim=-1)
    return (is_finite if scores is None else is_finite & (scores > threshold).to(is_finite.device)).tolist()


def _side_color(names: Iterable[str]) -> str:
    """Of a keypoint, or of the line between two of them; what goes from side to side is of neither."""
    sides = {name.split("_")[0] for name in names} & {"left", "right"}
    return {"left": BLUE, "right": ORANGE}[sides.pop()] if len(sides) == 1 else GREEN


def plot_keypoints(
    images: Sequence[Image.Image],
    references: Sequence[torch.Tensor],
    predictions: Sequence[torch.Tensor],
    names: Sequence[str],
    edges: Sequence[tuple[int, int]],
    threshold: float = 0.3,
) -> Figure:
    """
    True and predicted skeletons side by side, one image a row.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        references, predictions (`Sequence[torch.Tensor]`): For each image keypoints `(n, K, 3)`: (x, y) in pixels, and
            the visibility, of which positive ones are drawn, or the score.
        names, edges: As in [`draw_keypoints`].
        threshold (`float`, defaults to 0.3): Only predicted keypoints with a higher score are drawn.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there are no images.
    """
    pairs = [
        [
            draw_keypoints(image, persons[..., :2], names, edges, persons[..., 2], least)
            for persons, least in ((reference, 0.0), (prediction, threshold))
        ]
        for image, reference, prediction in zip(images, references, predictions)
    ]
    return _plot_pairs(pairs)


def draw_answers(image: Image.Image, answers: Sequence[Mapping[str, Any]], config: Any) -> Image.Image:
    """
    Draw what a pipeline has answered for an image: segments, boxes, instances or skeletons.

    Args:
        image (`PIL.Image.Image`): The image that the pipeline got; it is turned upright, as pipelines do.
        answers (`Sequence[Mapping[str, Any]]`): What it returned: of each segment, object or person its `label`,
            `score`, and `mask`, `box` or `keypoints`.
        config (`ClusTRConfig`): The model's configuration, with the names of its classes or keypoints.

    Returns:
        `PIL.Image.Image` of the size of `image`, RGB.

    Raises:
        ValueError: for answers with something else, such as classes.
    """
    names = list(config.id2label.values())
    image = to_rgb(image)
    if not answers:
        return image
    if "keypoints" in answers[0]:
        return _draw_persons(image, answers, names, config.edges or ())
    tensor = functools.partial(torch.tensor, device="cpu")
    labels = tensor([names.index(answer["label"]) for answer in answers]) if "label" in answers[0] else None
    if labels is not None and "mask" in answers[0]:
        masks = torch.from_numpy(np.stack([np.array(answer["mask"]) > 0 for answer in answers]))
        if answers[0].get("score") is None:  # classes of pixels, which have no score
            painted = (masks * (labels + 1)[:, None, None]).amax(dim=0) - 1
            return draw_segmentation(image, painted, len(names))
        kept = masks.flatten(1).any(dim=1)  # or there is no box around it
        scores = tensor([answer["score"] for answer in answers])
        boxes = masks_to_boxes(masks[kept])
        return draw_detections(image, boxes, labels[kept], names, scores[kept], masks[kept])
    if labels is not None and "box" in answers[0]:
        boxes = [[answer["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for answer in answers]
        scores = tensor([answer["score"] for answer in answers])
        boxes = tensor(boxes, dtype=torch.float32)
        return draw_detections(image, boxes, labels, names, scores)
    raise ValueError(f"`answers` must have masks, boxes or keypoints, got {sorted(answers[0])}.")


def _draw_persons(
    image: Image.Image, persons: Sequence[Mapping[str, Any]], names: list[str], edges: Sequence[tuple[int, int]]
) -> Image.Image:
    """Skeletons of all keypoints that the pipeline has kept, whatever their scores."""
    keypoints = torch.full((len(persons), len(names), 2), math.nan, device="cpu")
    for person, answer in enumerate(persons):
        for point in answer["keypoints"]:
            keypoints[person, names.index(point["label"])] = torch.tensor([point["x"], point["y"]], device="cpu")
    return draw_keypoints(image, keypoints, names, edges)


def _plot_pairs(pairs: Sequence[Sequence[Image.Image]]) -> Figure:
    """Pictures of the truth and of what was predicted side by side, one pair a row."""
    aspect = pairs[0][0].height / pairs[0][0].width if pairs else 1.0
    figure, axes = _grid(2 * len(pairs), 2, (6.4, 6.4 * aspect))
    for axis, picture in zip(axes, (picture for pair in pairs for picture in pair)):
        axis.imshow(picture)
    for axis, title in zip(axes, ("truth", "prediction")):
        axis.set_title(title)
    return figure


def plot_training_curves(log_history: Sequence[Mapping[str, float]], metric: str = "eval_accuracy") -> Figure:
    """
    Loss and validation metric over the epochs (as in Figures A1 and A2).

    Args:
        log_history (`Sequence[Mapping[str, float]]`):
            What `Trainer.state.log_history` holds: entries with `epoch` and any of `loss`, `eval_loss`, `metric`.
        metric (`str`, defaults to `"eval_accuracy"`):
            Name of the validation metric.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axis, metric_axis = figure.subplots(1, 2)
    _curve(loss_axis, log_history, "loss", "training", BLUE)
    _curve(loss_axis, log_history, "eval_loss", "validation", ORANGE)
    loss_axis.set(xlabel="epoch", ylabel="loss")
    loss_axis.set_ylim(bottom=0)
    if loss_axis.lines:
        loss_axis.legend()
    _curve(metric_axis, log_history, metric, "validation", ORANGE)
    metric_axis.set(xlabel="epoch", ylabel=_metric_title(metric))
    for axis in (loss_axis, metric_axis):
        axis.grid(alpha=0.3)
    return figure


def plot_compared_curves(
    log_histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], metric: str = "eval_accuracy"
) -> Figure:
    """
    Training loss and validation metric of several models over the epochs (Figures A1 and A2): the mean over the runs of
    a model, and the range from their lowest to their highest value.

    Args:
        log_histories (`Mapping[str, Sequence[Sequence[Mapping[str, float]]]]`):
            For the name of each model, the log histories of its runs, as in [`plot_training_curves`]; all runs are
            logged at the same epochs.
        metric (`str`, defaults to `"eval_accuracy"`):
            Name of the validation metric.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if a model has no runs, or runs that are logged at different epochs.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = dict(zip(("loss", metric), figure.subplots(1, 2)))
    for number, (name, histories) in enumerate(log_histories.items()):
        for value, axis in axes.items():
            epochs, values = _values_of_runs(name, histories, value)
            color = f"C{number}"
            axis.plot(epochs, values.mean(axis=0), label=name, color=color, marker="o", markersize=3)
            axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    for axis, title in zip(axes.values(), ("training loss", _metric_title(metric))):
        axis.set(xlabel="epoch", ylabel=title)
        axis.grid(alpha=0.3)
    handles, labels = axes["loss"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)  # curves fill the axes
    return figure


def _values_of_runs(
    name: str, histories: Sequence[Sequence[Mapping[str, float]]], value: str
) -> tuple[list[float], np.ndarray]:
    """Epochs, and what was logged at them: an array (runs, epochs)."""
    runs = [{entry["epoch"]: entry[value] for entry in history if value in entry} for history in histories]
    if not runs or any(list(run) != list(runs[0]) for run in runs):
        raise ValueError(f"`log_histories` must hold runs of {name!r} that log {value!r} at the same epochs.")
    return list(runs[0]), np.array([list(run.values()) for run in runs])


def _metric_title(metric: str) -> str:
    return metric.removeprefix("eval_").replace("_", " ").replace("iou", "IoU").replace("ap", "AP")


def _curve(axis, log_history: Sequence[Mapping[str, float]], name: str, label: str, color: str):
    points = [(entry["epoch"], entry[name]) for entry in log_history if name in entry and "epoch" in entry]
    if points:
        axis.plot(*zip(*points), label=label, color=color, marker="o", markersize=3)


def _grid(number: int, columns: int, cell: tuple[float, float]) -> tuple[Figure, list]:
    """
    A figure with room for `number` pictures of a cell's (width, height) in inches, and their axes. The sides of a cell
    differ at most by a factor, or the picture of a slim image would be gigabytes.
    """
    if number == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    columns = min(columns, number)
    rows, width = math.ceil(number / columns), cell[0]
    height = min(max(cell[1], width / GREATEST_ASPECT), width * GREATEST_ASPECT)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes[:number]


__all__ = [
    "ClusterMap",
    "class_colors",
    "coarsen_clusters",
    "draw_answers",
    "draw_clusters",
    "draw_detections",
    "draw_keypoints",
    "draw_segmentation",
    "find_cluster_maps",
    "plot_clusters",
    "plot_compared_curves",
    "plot_detections",
    "plot_keypoints",
    "plot_predictions",
    "plot_segmentation",
    "plot_training_curves",
    "prepare_image",
    "readable_on",
]
