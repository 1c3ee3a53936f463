#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Fine-tune ClusTR for image classification with Trainer, or train it from random weights.

The arguments are those of transformers' own `run_image_classification.py`, but for `--model_type`: there is one. New
are `--variant`, `--image_size`, `--train_file` and `--validation_file`. examples/README.md has commands and results.
"""

import os
import sys
from dataclasses import dataclass, field

import torch
from datasets import ClassLabel, DatasetDict, Image, load_dataset
from torchvision.transforms import v2
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor
from clustr_hf.metrics import compute_accuracy
from clustr_hf.visualization import plot_training_curves


@dataclass
class DataArguments:
    """Which images to train and evaluate on."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder of images a class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_file: str | None = field(default=None, metadata={"help": "Parquet file with an image and a label column."})
    validation_file: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share to split off where there is no validation."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled validation images."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})

    def __post_init__(self):
        if self.dataset_name is None and self.train_dir is None and self.train_file is None:
            raise ValueError("one of --dataset_name, --train_dir, --train_file is needed, got none")


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to fine-tune; without it, --variant is trained from random weights."},
    )
    variant: str = field(default="nano", metadata={"help": "tiny, small, base or nano, see ClusTRConfig.from_variant."})
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if not the checkpoint's own."})
    image_processor_name: str | None = field(default=None, metadata={"help": "Processor, if not the checkpoint's own."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the crops in pixels; default: the checkpoint's, or 224."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep downloads."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Hub token; default is the one of `hf auth login`."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code in the checkpoint's repository."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Replace a head with another number of classes."}
    )


def load_data(args: DataArguments, model_args: ModelArguments, seed: int) -> DatasetDict:
    """Training and validation split of a Hub data set, parquet files or image folders."""
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    if args.dataset_name is not None:
        data = load_dataset(args.dataset_name, args.dataset_config_name, **hub)
    elif args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file}
        data = load_dataset("parquet", data_files={split: file for split, file in files.items() if file}, **hub)
    else:
        folders = {"train": args.train_dir, "validation": args.validation_dir}
        patterns = {split: f"{folder}/**" for split, folder in folders.items() if folder}
        data = load_dataset("imagefolder", data_files=patterns, **hub)
    for column in (args.image_column_name, args.label_column_name):
        if column not in data["train"].column_names:
            raise ValueError(
                f"--image_column_name or --label_column_name {column!r} is not in the data set, which "
                f"has {data['train'].column_names}"
            )
    if "validation" not in data:  # never the test split: checkpoints are chosen by the validation split
        split = data["train"].train_test_split(args.train_val_split, seed=seed)
        data = DatasetDict(train=split["train"], validation=split["test"])
    for split, most in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if most is not None:
            data[split] = data[split].shuffle(seed=seed).select(range(min(most, len(data[split]))))
    return data.cast_column(args.image_column_name, Image())


def label_names(data: DatasetDict, column: str) -> list[str]:
    feature = data["train"].features[column]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"--label_column_name {column!r} must be a column of type ClassLabel, got {feature}")
    return feature.names


def load_model(args: ModelArguments, labels: list[str]) -> tuple[torch.nn.Module, ClusTRImageProcessor]:
    """Model with a head for the labels, and its image processor."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if args.model_name_or_path is None:
        model = ClusTRForImageClassification(ClusTRConfig.from_variant(args.variant, **names))
        return model, resized_processor(ClusTRImageProcessor(), args.image_size or 224)
    hub = {
        "cache_dir": args.cache_dir,
        "revision": args.model_revision,
        "token": args.token,
        "trust_remote_code": args.trust_remote_code,
    }
    config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **names, **hub)
    model = AutoModelForImageClassification.from_pretrained(
        args.model_name_or_path, config=config, ignore_mismatched_sizes=args.ignore_mismatched_sizes, **hub
    )
    processor = AutoImageProcessor.from_pretrained(args.image_processor_name or args.model_name_or_path, **hub)
    return model, resized_processor(processor, args.image_size) if args.image_size else processor


def resized_processor(processor, side: int):
    """The processor for square crops of another side: the paper's 256 to 224 in proportion, small images uncropped."""
    margin = 256 / 224 if side >= 128 else 1
    settings = {**processor.to_dict(), "do_center_crop": True, "crop_size": {"height": side, "width": side}}
    settings["size"] = {"shortest_edge": round(side * margin)}
    return type(processor).from_dict(settings)


def training_crop(processor) -> tuple[int, int]:
    """(height, width) of what the processor makes, or of a square where that depends on the image."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size["height"] or size["shortest_edge"], size["width"] or size["shortest_edge"]


def add_transforms(data: DatasetDict, processor, args: DataArguments):
    """Decode and transform images when they are read: random crops and flips to train, the processor to evaluate."""
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(training_crop(processor), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )

    def train_transform(batch: dict) -> dict:
        images = [processor.process_image(image, do_convert_rgb=True) for image in batch[args.image_column_name]]
        pixel_values = [augment(image) for image in images]
        return {"pixel_values": pixel_values, "labels": batch[args.label_column_name]}

    def evaluation_transform(batch: dict) -> dict:
        pixel_values = list(processor(batch[args.image_column_name], return_tensors="pt").pixel_values)
        return {"pixel_values": pixel_values, "labels": batch[args.label_column_name]}

    data["train"].set_transform(train_transform)
    data["validation"].set_transform(evaluation_transform)


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: the one asked for, or the last one that lies in the output folder."""
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None and os.path.isdir(args.output_dir):
        checkpoint = get_last_checkpoint(args.output_dir)
    if checkpoint is not None:
        print(f"Resuming from {checkpoint}")
    return checkpoint


def parse_args() -> tuple[DataArguments, ModelArguments, TrainingArguments]:
    parser = HfArgumentParser((DataArguments, ModelArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        return parser.parse_json_file(json_file=sys.argv[1])
    return parser.parse_args_into_dataclasses()


def main():
    data_args, model_args, training_args = parse_args()
    training_args.remove_unused_columns = False  # the image column is needed until the transforms have run
    set_seed(training_args.seed)

    data = load_data(data_args, model_args, training_args.seed)
    model, processor = load_model(model_args, label_names(data, data_args.label_column_name))
    add_transforms(data, processor, data_args)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        compute_metrics=compute_accuracy,
        processing_class=processor,
    )
    if training_args.do_train:
        checkpoint = find_checkpoint(training_args)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        if trainer.is_world_process_zero():
            plot_training_curves(trainer.state.log_history).savefig(f"{training_args.output_dir}/training_curve.png")
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    card = {
        "finetuned_from": model_args.model_name_or_path,
        "tasks": "image-classification",
        "dataset": data_args.dataset_name,
        "tags": ["image-classification", "vision", "clustr"],
    }
    if training_args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


if __name__ == "__main__":
    main()
