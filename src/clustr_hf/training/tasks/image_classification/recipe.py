# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Augmentation, regularisation and fine-tuning of a classifier."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model
from timm.data import Mixup
from torch import nn
from torch.nn.functional import cross_entropy

from ...augmentation import check_probabilities
from ...distillation import DistillationArguments, Teacher
from ...models import RecipeArguments, require_clustr


# Query, key-value and output projections of every block, to which LoRA adds adapters.
ATTENTION_PROJECTIONS = r".*\.attention\.(q_proj|kv_projs\.\d+|o_proj)"


@dataclass
class ClassificationRecipe(DistillationArguments, RecipeArguments):
    """Augmentation, regularisation and fine-tuning of a classifier; all of it is off by default."""

    streaming: bool = field(
        default=False, metadata={"help": "Whether to stream the training data instead of downloading it first."}
    )
    train_image_size: int | None = field(
        default=None,
        metadata={
            "help": (
                "Side of the random training crops in pixels. Random crops enlarge objects; a side smaller than the "
                "image size compensates for that (Touvron et al. 2019) and makes training faster. Default: the image "
                "size."
            )
        },
    )
    min_crop_scale: float = field(
        default=0.08, metadata={"help": "Minimum share of an image's area in a random training crop."}
    )
    rand_augment: str | None = field(
        default=None,
        metadata={
            "help": "RandAugment policy in timm's notation, such as rand-m9-mstd0.5-inc1. Default: no RandAugment."
        },
    )
    repeated_augmentation: int = field(
        default=1,
        metadata={"help": "Number of times in a row that each image is drawn, each time with new augmentation."},
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "Probability of erasing a random rectangle, which is filled with noise."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Share of the target probability that is spread evenly over all classes."}
    )
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup's beta distribution; 0 turns mixup off."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of cutmix's beta distribution; 0 turns cutmix off."})
    mixup_probability: float = field(
        default=1.0, metadata={"help": "Probability of applying mixup or cutmix to a batch."}
    )
    cutmix_probability: float = field(
        default=0.5, metadata={"help": "Probability of cutmix instead of mixup if both are on."}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Rank of LoRA adapters on the attention projections, trained together with the head. Default: "
            "no adapters; all weights are trained."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_probabilities(
            self, "random_erasing", "label_smoothing", "mixup_probability", "cutmix_probability", "min_crop_scale"
        )
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("repeated_augmentation", "lora_rank", "train_image_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be 1 or more, got {getattr(self, name)}")

    def check_batch(self, per_device_batch_size: int) -> None:
        """Raise a `ValueError` if mixup or cutmix is on and cannot pair the images of a batch."""
        if (self.mixup > 0 or self.cutmix > 0) and per_device_batch_size % 2:
            raise ValueError(
                f"--mixup and --cutmix need an even number of images on a device, got {per_device_batch_size}: change "
                f"--train_batch_size or --per_device_train_batch_size"
            )


def make_loss(
    args: ClassificationRecipe, num_labels: int, teacher: Teacher | None = None
) -> Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]:
    """Cross-entropy with label smoothing, mixup and cutmix, and the distillation loss of a teacher, if there is one."""
    mix = None
    if args.mixup > 0 or args.cutmix > 0:
        mix = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            prob=args.mixup_probability,
            switch_prob=args.cutmix_probability,
            label_smoothing=args.label_smoothing,
            num_classes=num_labels,
        )

    def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_values, targets, smoothing = batch["pixel_values"], batch["labels"], args.label_smoothing
        if mix is not None:
            (pixel_values, targets), smoothing = mix(pixel_values, targets), 0.0  # the targets are smoothed already
        logits = model(pixel_values=pixel_values).logits
        loss = cross_entropy(logits, targets, label_smoothing=smoothing)
        return loss if teacher is None else teacher.add_to(loss, logits, pixel_values)

    return compute_loss


def add_adapters(model: nn.Module, rank: int | None) -> nn.Module:
    """
    Add LoRA adapters to the attention projections; only these and the head are trained. None adds nothing.

    Raises:
        ValueError: for models other than ClusTR, whose projections have other names.
    """
    if rank is None:
        return model
    require_clustr(model, "lora_rank")
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=ATTENTION_PROJECTIONS, modules_to_save=["classifier"]
    )
    return get_peft_model(model, config)


def merge_adapters(model: nn.Module) -> nn.Module:
    """A plain model whose weights include the adapters; a model without adapters is returned unchanged."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
