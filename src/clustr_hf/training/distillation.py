# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Knowledge distillation (Hinton et al. 2015): a model also learns from the logits of a teacher, any classifier or
segmenter of transformers.

The teacher sees the augmented images of the student, in its own normalisation and, for classification, at its own size.
Classes are matched by name.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn.functional import interpolate, kl_div, log_softmax
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from ..loading import naming_unreadable_weights
from ..name_lists import shorten
from .data.class_names import are_placeholders, differ_only_in_repeated, names_of
from .models import ModelArguments


logger = logging.getLogger(__name__)

# Side in pixels of the images on which image processors are measured.
PROBED_SIDE = 64


@dataclass
class DistillationArguments:
    """Distillation from a teacher; off by default."""

    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": (
                "Checkpoint of the teacher: a model of transformers for the same task and classes (or more classes). "
                "Default: no distillation."
            )
        },
    )
    distillation_alpha: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the distillation loss, in [0, 1]; the loss of the labels has the weight 1 - alpha."
        },
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature that divides the logits of both models in the distillation loss."}
    )

    def __post_init__(self):
        if not 0 <= self.distillation_alpha <= 1:
            raise ValueError(f"--distillation_alpha must be in [0, 1], got {self.distillation_alpha}")
        if not 0 < self.distillation_temperature < float("inf"):
            raise ValueError(f"--distillation_temperature must be positive, got {self.distillation_temperature}")

    def unused_settings(self) -> set[str]:
        """Names of the arguments that have no effect without a teacher."""
        unused = {"distillation_alpha", "distillation_temperature"}
        return unused if self.teacher_model_name_or_path is None else set()


class PixelFormat(NamedTuple):
    """
    How an image processor turns 8-bit RGB pixels v into pixel values, `matrix @ v + offset`, and its output size.

    Args:
        matrix (`torch.Tensor` of shape `(3, 3)`): Scale of each channel, at the place of the channel in the output.
        offset (`torch.Tensor` of shape `(3,)`): Pixel values of black.
        size (`tuple[int, int]`, *optional*): (height, width) of the output for square images; None if it is not fixed.
    """

    matrix: torch.Tensor
    offset: torch.Tensor
    size: tuple[int, int] | None

    @classmethod
    def of(cls, processor: Any) -> "PixelFormat":
        """
        The format of any image processor of transformers, which is measured on images of one color: settings and their
        meaning differ from processor to processor.

        Raises:
            ValueError: if the pixel values are no linear function of the pixels.
        """
        black, size = _probe(processor, (0, 0, 0))
        columns = [_probe(processor, tuple(255 * (i == channel) for i in range(3)))[0] - black for channel in range(3)]
        matrix = torch.stack(columns, dim=1) / 255
        gray, _ = _probe(processor, (128, 128, 128))
        if not torch.allclose(matrix.sum(dim=1) * 128 + black, gray, atol=1e-3 * max(1.0, gray.abs().max().item())):
            raise ValueError(f"the pixel values of {type(processor).__name__} must be a linear function of the pixels")
        other_size = _probe(processor, (0, 0, 0), side=2 * PROBED_SIDE)[1]
        return cls(matrix, black, size if size == other_size else None)


def _probe(
    processor: Any, color: tuple[int, int, int], side: int = PROBED_SIDE
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pixel values (3,) in the center of a square image of one color, in float64, and the size of the output."""
    pixel_values = processor(Image.new("RGB", (side, side), color), return_tensors="pt").pixel_values[0].double()
    height, width = pixel_values.shape[-2:]
    return pixel_values[:, height // 2, width // 2], (height, width)


class Teacher:
    """
    A frozen model in evaluation mode. It is no part of the trained model: checkpoints do not contain it.

    Args:
        model (`PreTrainedModel`): A model whose output has `logits` `(B, K, ...)`.
        convert (`Callable`): Student's pixel values -> those of the teacher.
        classes (`list[int]`, *optional*): For each class of the student, its index among those of the teacher.
        args ([`DistillationArguments`]): Weight and temperature.
        autocast (`Callable[[], ContextManager]`): Makes the context of the forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        convert: Callable[[torch.Tensor], torch.Tensor],
        classes: list[int] | None,
        args: DistillationArguments,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model = model.eval().requires_grad_(False)
        self.convert, self.classes, self.args, self.autocast = convert, classes, args, autocast

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K, ...)` in float32 for the student's pixel values, with the student's classes in their order."""
        if self.model.device != pixel_values.device:
            self.model.to(pixel_values.device)
        with self.autocast():
            logits = self.model(pixel_values=self.convert(pixel_values)).logits.float()
        return logits if self.classes is None else logits[:, self.classes]

    def add_to(self, loss: torch.Tensor, logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """The loss of the labels, combined with the distillation loss of a classifier's logits `(B, K)`."""
        return self._combine(loss, self._divergence(logits, self.logits(pixel_values)).mean())

    def add_to_dense(
        self, loss: torch.Tensor, logits: torch.Tensor, pixel_values: torch.Tensor, is_valid: torch.Tensor
    ) -> torch.Tensor:
        """
        The same for the logits `(B, K, h, w)` of a segmenter. The teacher's logits are resized to the student's.

        Args:
            loss, logits, pixel_values (`torch.Tensor`): As in [`add_to`].
            is_valid (`torch.BoolTensor` of shape `(B, H, W)`): The pixels that count.
        """
        size = logits.shape[-2:]
        target = interpolate(self.logits(pixel_values), size=size, mode="bilinear", align_corners=False)
        weight = interpolate(is_valid[:, None].float(), size=size, mode="nearest-exact")[:, 0]
        divergence = (self._divergence(logits, target) * weight).sum() / weight.sum().clamp(min=1)
        return self._combine(loss, divergence)

    def _divergence(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of the student from the teacher at the temperature, (B, ...)."""
        temperature = self.args.distillation_temperature
        student = log_softmax(logits.float() / temperature, dim=1)
        teacher = log_softmax(target / temperature, dim=1)
        return kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)

    def _combine(self, loss: torch.Tensor, divergence: torch.Tensor) -> torch.Tensor:
        # The squared temperature keeps the size of the gradients (Hinton et al. 2015).
        alpha, temperature = self.args.distillation_alpha, self.args.distillation_temperature
        return (1 - alpha) * loss + alpha * temperature**2 * divergence


def load_teacher(
    args: DistillationArguments,
    model_args: ModelArguments,
    auto_class: type,
    labels: list[str],
    processor: Any,
    resizes: bool,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Teacher | None:
    """
    The teacher of a training; None without one.

    Args:
        args ([`DistillationArguments`]): The teacher.
        model_args ([`ModelArguments`]): How checkpoints are downloaded, and whether their code is trusted.
        auto_class (`type`): Auto class of the task.
        labels (`list[str]`): Class names of the student.
        processor: Image processor of the student.
        resizes (`bool`): Whether images are resized to the size of the teacher's image processor.
        autocast (`Callable[[], ContextManager]`): Makes the context of the teacher's forward pass.

    Raises:
        ValueError: if the teacher lacks a class of the student, weights or an image processor.
    """
    name = args.teacher_model_name_or_path
    if name is None:
        return None
    hub = {**model_args.download_arguments, "trust_remote_code": model_args.trust_remote_code}
    classes = match_classes(names_of(AutoConfig.from_pretrained(name, **hub), f"the teacher {name}"), labels, name)
    with naming_unreadable_weights("--teacher_model_name_or_path", name):
        model, report = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **hub)
    if report["missing_keys"]:
        missing = shorten(sorted(report["missing_keys"]))
        raise ValueError(f"--teacher_model_name_or_path {name} must have all weights of a teacher, but lacks {missing}")
    try:
        own_processor = AutoImageProcessor.from_pretrained(name, **hub)
    except OSError as error:
        raise ValueError(f"--teacher_model_name_or_path {name} must have an image processor: {error}") from error
    return Teacher(model, make_converter(processor, own_processor, resizes), classes, args, autocast)


def make_converter(processor: Any, teachers: Any, resizes: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from the pixel values `(B, 3, H, W)` of one image processor to those of the teacher's."""
    own, other = PixelFormat.of(processor), PixelFormat.of(teachers)
    matrix = other.matrix @ torch.linalg.inv(own.matrix)
    offset = (other.offset - matrix @ own.offset)[:, None, None]
    identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    is_same = torch.allclose(matrix, identity, atol=1e-6) and offset.abs().max() < 1e-6

    def convert(pixel_values: torch.Tensor) -> torch.Tensor:
        if resizes and other.size is not None and pixel_values.shape[-2:] != other.size:
            pixel_values = interpolate(
                pixel_values, size=other.size, mode="bicubic", align_corners=False, antialias=True
            )
        if is_same:
            return pixel_values
        return torch.einsum("ij,bjhw->bihw", matrix.to(pixel_values), pixel_values) + offset.to(pixel_values)

    return convert


def match_classes(names: list[str], labels: list[str], teacher: str) -> list[int] | None:
    """
    For each class of the student, its index among the teacher's classes; None if both have the same in the same order,
    or differ in repeated names only ([`differ_only_in_repeated`]).

    Args:
        names, labels (`list[str]`): Class names of the teacher and of the student.
        teacher (`str`): Name of the teacher in error messages.

    Raises:
        ValueError: if the teacher lacks a class, or has several of the same name.
    """
    if names == labels or differ_only_in_repeated(names, labels):
        return None
    if are_placeholders(names) and len(names) == len(labels):
        logger.warning(
            f"--teacher_model_name_or_path {teacher} does not name its classes: they are taken in the order of the "
            f"student's, {shorten(labels)}"
        )
        return None
    missing = sorted(set(labels) - set(names))
    if missing:
        raise ValueError(
            f"--teacher_model_name_or_path {teacher} must know the classes of the data by name, but lacks "
            f"{shorten(missing)}; its classes are {shorten(names)}"
        )
    repeated = sorted(label for label in labels if names.count(label) > 1)
    if repeated:
        raise ValueError(f"--teacher_model_name_or_path {teacher} has several classes named {shorten(repeated)}")
    return [names.index(label) for label in labels]
