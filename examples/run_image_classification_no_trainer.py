#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune ClusTR for image classification with Accelerate: the recipe of Table A2 of the paper.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 \
        examples/run_image_classification_no_trainer.py \
        --recipe examples/recipes/clustr_small_imagenet1k.json --dataset_name ILSVRC/imagenet-1k \
        --output_dir out/clustr-small --dataloader_num_workers 12 --resume_from_checkpoint latest

`--dry_run` says what a command would do. What the loop does, and its arguments: training_loop.py,
training_arguments.py; commands with their results: examples/README.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from peft import LoraConfig, get_peft_model
from timm.data import Mixup
from torch import nn
from torch.nn.functional import cross_entropy

from clustr_hf.metrics import Accuracy
from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.baselines import PeerArguments, refuse_with_peer
from clustr_hf.training.card import Report, TrainingCard
from clustr_hf.training.data.samples import EvaluationSamples, TrainingData, TrainingSamples
from clustr_hf.training.loop import Task, freeze_stages, make_accelerator, train
from clustr_hf.training.report import warn_of_absent
from clustr_hf.training.schedule import divide_batch
from clustr_hf.training.signals import run_interruptibly
from clustr_hf.training.sources import RecipeArguments, names_of_run
from clustr_hf.training.tasks.image_classification.data import (
    HEADS,
    DataArguments,
    label_names,
    load_classifier,
    load_data,
    load_stream,
)
from clustr_hf.training.tasks.image_classification.transforms import (
    ReadRow,
    collate,
    evaluation_transform,
    training_transform,
)


# Query, key-value and output projections of every block, whose inputs and outputs LoRA changes.
ATTENTION_PROJECTIONS = r".*\.attention\.(q_proj|kv_projs\.\d+|o_proj)"


@dataclass
class ClassificationRecipe(RecipeArguments):
    """Augmentation, regularisation and fine-tuning of a classifier; defaults switch all of it off."""

    streaming: bool = field(default=False, metadata={"help": "Read the training data while training, keep none of it."})
    min_crop_scale: float = field(default=0.08, metadata={"help": "Least share of an image's area in a crop."})
    rand_augment: str | None = field(default=None, metadata={"help": "timm's, such as rand-m9-mstd0.5-inc1."})
    repeated_augmentation: int = field(default=1, metadata={"help": "How often an image is drawn in a row."})
    random_erasing: float = field(default=0.0, metadata={"help": "Probability to erase a part, filled with noise."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of the target spread over all classes."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup; 0 is off."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of cutmix; 0 is off."})
    mixup_probability: float = field(default=1.0, metadata={"help": "Of mixing a batch at all."})
    cutmix_probability: float = field(default=0.5, metadata={"help": "Of cutmix instead of mixup, if both are on."})
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train the head, and adapters of this rank on the attention projections."}
    )

    def __post_init__(self):
        for name in ("random_erasing", "label_smoothing", "mixup_probability", "cutmix_probability", "min_crop_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("repeated_augmentation", "lora_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be 1 or more, got {getattr(self, name)}")


def check_mixing(args: ClassificationRecipe, per_device_batch_size: int):
    """Raise a `ValueError` if mixup or cutmix is on and cannot pair the images of a batch."""
    if (args.mixup > 0 or args.cutmix > 0) and per_device_batch_size % 2:
        raise ValueError(
            f"--mixup and --cutmix need an even number of images on a device, got {per_device_batch_size}: change "
            f"--train_batch_size or --per_device_train_batch_size"
        )


def check_fit(model_args: PeerArguments, recipe: ClassificationRecipe, args: LoopArguments, accelerator):
    """Raise a `ValueError` for arguments that do not go together."""
    if not args.eval_only:
        check_mixing(recipe, divide_batch(args, accelerator.num_processes)[0])
    if model_args.peer is not None:
        refuse_with_peer(push_to_hub=args.push_to_hub, freeze_stages=args.freeze_stages, lora_rank=recipe.lora_rank)


def make_loss(args: ClassificationRecipe, num_labels: int):
    """Cross-entropy with label smoothing, of batches that mixup and cutmix have mixed."""
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
        if mix is None:
            logits = model(pixel_values=batch["pixel_values"]).logits
            return cross_entropy(logits, batch["labels"], label_smoothing=args.label_smoothing)
        pixel_values, targets = mix(batch["pixel_values"], batch["labels"])
        return cross_entropy(model(pixel_values=pixel_values).logits, targets)

    return compute_loss


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[tuple[int, int, float]]:
    """Predicted class, class and cross-entropy of every image."""
    logits = model(pixel_values=batch["pixel_values"]).logits.float()
    losses = cross_entropy(logits, batch["labels"], reduction="none")
    return list(zip(logits.argmax(-1).tolist(), batch["labels"].tolist(), losses.tolist()))


class Scores:
    """The loop's `compute_metrics`; `table` is that of the last evaluation, class by class."""

    def __init__(self, labels: list[str]):
        self.labels, self.table = labels, None

    def __call__(self, records: list[tuple[int, int, float]]) -> dict[str, float]:
        predictions, references, losses = map(np.array, zip(*records))
        right = np.bincount(references[predictions == references], minlength=len(self.labels))
        images = np.bincount(references, minlength=len(self.labels))
        if self.table is None:
            warn_of_absent("image", self.labels, images)
        self.table = {
            label: {"accuracy": part / number if number else float("nan"), "images": number}
            for label, part, number in zip(self.labels, right.tolist(), images.tolist())
        }
        accuracy = Accuracy().compute(predictions=predictions, references=references)["accuracy"]
        return {"eval_loss": float(losses.mean()), "eval_accuracy": accuracy}


def add_adapters(model: nn.Module, rank: int) -> nn.Module:
    """LoRA on the attention projections; the head is trained whole, the rest is frozen."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=ATTENTION_PROJECTIONS, modules_to_save=["classifier"]
    )
    return get_peft_model(model, config)


def merge_adapters(model: nn.Module) -> nn.Module:
    """A plain model whose weights contain what the adapters have learned."""
    return model.merge_and_unload()


def make_train_data(
    recipe: ClassificationRecipe,
    processor,
    columns: tuple[str, str],
    num_labels: int,
    rows: Dataset | None = None,
    stream: IterableDataset | None = None,
    num_samples: int | None = None,
) -> TrainingData:
    """The training images of rows, or of a stream of so many samples, with the recipe's augmentation."""
    transform = training_transform(processor, recipe.min_crop_scale, recipe.rand_augment, recipe.random_erasing)
    read = ReadRow(processor, columns, num_labels, "training", rows)
    if stream is not None:
        data = TrainingData(stream=stream, read=read, transform=transform, num_samples=num_samples)
    else:
        data = TrainingData(samples=TrainingSamples(read, transform, len(rows)))
    data.repeats = recipe.repeated_augmentation
    return data


def make_task(
    data_args: DataArguments, model_args: PeerArguments, recipe: ClassificationRecipe, args: LoopArguments, accelerator
) -> Task:
    check_fit(model_args, recipe, args, accelerator)
    if args.dry_run and data_args.dataset_name is not None and not Path(data_args.dataset_name).exists():
        recipe.streaming, data_args.max_eval_samples = True, 1  # nothing large is downloaded to say what would be done
    known = names_of_run(model_args, HEADS, args)
    with accelerator.main_process_first():
        if recipe.streaming:
            train_rows, num_samples, eval_rows = load_stream(data_args, model_args, known)
        else:
            data = load_data(data_args, model_args, args.seed, known=known)
            train_rows, eval_rows = data.get("train"), data["validation"]
    columns = data_args.image_column_name, data_args.label_column_name
    labels = label_names(eval_rows, data_args.label_column_name)
    torch.manual_seed(args.seed)  # the weights of a new model or head
    model, processor = load_classifier(model_args, labels, **recipe.config_fields())
    if args.freeze_stages:
        freeze_stages(model, args.freeze_stages)
    if args.eval_only:
        train_data = None
    elif recipe.streaming:
        share = split_dataset_by_node(train_rows, accelerator.process_index, accelerator.num_processes)
        train_data = make_train_data(recipe, processor, columns, len(labels), stream=share, num_samples=num_samples)
    else:
        train_data = make_train_data(recipe, processor, columns, len(labels), rows=train_rows)
    read = ReadRow(processor, columns, len(labels), "validation", eval_rows)
    scores = Scores(labels)
    report = Report(
        scores=scores,
        card=TrainingCard(args, data_args, model_args, "A ClusTR image classifier."),
        model_class=type(model),
        has_card=model_args.peer is None,
        shows_table=False,  # which may have a thousand rows
    )
    return Task(
        model=model if recipe.lora_rank is None else add_adapters(model, recipe.lora_rank),
        processor=processor,
        train_data=train_data,
        eval_data=EvaluationSamples(read, evaluation_transform(processor), len(eval_rows)),
        collate=collate,
        compute_loss=make_loss(recipe, len(labels)),
        predict=predict,
        compute_metrics=scores,
        metric="eval_accuracy",
        to_save=merge_adapters if recipe.lora_rank is not None else lambda model: model,
        write_card=report,
        write_evaluation=report.write_evaluation,
    )


def main():
    data_args, model_args, recipe, args = parse_arguments(
        DataArguments, PeerArguments, ClassificationRecipe, LoopArguments
    )
    accelerator = make_accelerator(args)
    train(make_task(data_args, model_args, recipe, args, accelerator), args, accelerator)


if __name__ == "__main__":
    run_interruptibly(main)
