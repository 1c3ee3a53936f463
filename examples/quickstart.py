#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The main job from beginning to end, on real data, in two minutes on two CPU cores.

    python examples/quickstart.py --output_dir out

Trains ClusTR nano (1.1 million parameters, from random weights) with Trainer on scikit-learn's 1,797 handwritten
digits, saves it as a Hub-style folder, classifies the held-out digits in a new process that knows only that folder, and
draws the training curve, a grid of predictions, and the clusters that the model finds in a photograph. The checkpoint
that comes with the package, trained on CIFAR-10, then says what is on photographs, and shows its clusters in them.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import astronaut, chelsea
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, pipeline, set_seed

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor
from clustr_hf.bundled import bundled_checkpoint
from clustr_hf.metrics import compute_accuracy
from clustr_hf.publish import build_repository
from clustr_hf.publish.card import CardContents, Measurement
from clustr_hf.visualization import (
    coarsen_clusters,
    find_cluster_maps,
    plot_clusters,
    plot_predictions,
    plot_training_curves,
    prepare_image,
)


SEED = 0
IMAGE_SIZE = 32  # pixels; the digits are 8 x 8
RECIPE = {
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "warmup_steps": 0.1,  # of all steps
    "label_smoothing_factor": 0.1,
    "lr_scheduler_type": "cosine",
}
# Pixels of a photograph's shorter side, and how many times coarser its clusters are than those of the images of the
# training: the model of digits sees 100 times their tokens, the checkpoint of the package 16 times those of CIFAR-10.
DIGITS_SCALING = (320, 32)
SHIPPED_SCALING = (128, 8)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, save, reload and look at ClusTR on handwritten digits.")
    parser.add_argument("--output_dir", type=Path, default=Path("out"))
    parser.add_argument("--num_train_epochs", type=float, default=16)
    return parser.parse_args()


def load_images() -> tuple[list[Image.Image], list[int]]:
    """The digits as 8-bit greyscale images, and which digit each one is."""
    digits = load_digits()
    return [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in digits.images], digits.target.tolist()


def make_processor() -> ClusTRImageProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ClusTRImageProcessor(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class Digits(Dataset):
    """The digits of the given indices, processed once; `augment` is applied whenever one is read."""

    def __init__(self, processor, images: list[Image.Image], labels: list[int], indices: list[int], augment=None):
        self.pixel_values = processor([images[i] for i in indices], return_tensors="pt").pixel_values
        self.labels = [labels[i] for i in indices]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        pixels = self.pixel_values[index]
        return {"pixel_values": self.augment(pixels) if self.augment else pixels, "labels": self.labels[index]}


def train(train_set: Digits, test_set: Digits, processor, args: argparse.Namespace) -> Trainer:
    """ClusTR nano from random weights, evaluated after every epoch."""
    names = {digit: str(digit) for digit in range(10)}
    config = ClusTRConfig.from_variant("nano", id2label=names, label2id={name: digit for digit, name in names.items()})
    model = ClusTRForImageClassification(config)
    print(f"ClusTR nano: {model.num_parameters():,} parameters, {len(train_set)} images to train on")
    training_args = TrainingArguments(
        output_dir=str(args.output_dir / "trainer"),
        num_train_epochs=args.num_train_epochs,
        per_device_eval_batch_size=64,
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        seed=SEED,
        **RECIPE,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=test_set,
        processing_class=processor,
        compute_metrics=compute_accuracy,
    )
    trainer.train()
    return trainer


def predict_in_new_process(folder: Path, images: list[Image.Image], output_dir: Path) -> list[dict]:
    """Label and score of every image from `predict.py`, which runs the code in the folder, not the package."""
    image_folder = output_dir / "held_out_digits"
    image_folder.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        image.save(image_folder / f"{index:04d}.png")
    output = output_dir / "predictions.json"
    command = [sys.executable, Path(__file__).with_name("predict.py"), folder, image_folder, "--output", output]
    subprocess.run([str(part) for part in command], check=True)
    result = json.loads(output.read_text())
    if not result["code"].startswith("transformers_modules"):
        raise RuntimeError(f"the new process should run the folder's code, but ran {result['code']}")
    return [result["predictions"][name] for name in sorted(result["predictions"])]


def describe(command: str, num_right: int, num_test_images: int) -> CardContents:
    """What the card says."""
    dataset = "scikit-learn's handwritten digits"
    accuracy = Measurement(
        *("accuracy", "Top-1 accuracy", num_right / num_test_images, dataset, command),
        split="held out",
        num_samples=num_test_images,
    )
    return CardContents(
        name="clustr-nano-digits",
        summary="ClusTR nano, trained on scikit-learn's handwritten digits as a demonstration.",
        training="1,437 digits of 8 x 8 pixels, enlarged to 32 x 32, from random weights.",
        command=command,
        recipe=RECIPE,
        measurements=[accuracy],
        limitations="It knows centred digits, light on dark, and nothing else.",
    )


def draw_clusters(model: ClusTRForImageClassification, processor, photograph: Image.Image, scaling, path: Path):
    """
    Clusters of the last block of every stage in a photograph.

    Args:
        scaling (`tuple[int, float]`): Pixels of the shorter side, and how many times the model's clusters are coarser:
            the photograph has more tokens than the images of the training.
    """
    side, factor = scaling
    photograph, pixel_values = prepare_image(photograph, processor, side)
    named = {
        f"stage {found.stage}, scale {found.scale}": (found.cluster_index, found.grid_size)
        for found in find_cluster_maps(coarsen_clusters(model, factor), pixel_values)
        if found.block == model.config.depths[found.stage - 1]
    }
    plot_clusters(photograph, named).savefig(path, dpi=110)


def classify_photograph(path: Path) -> dict:
    """What the checkpoint of the package sees in a photograph of a cat, label and score; its clusters there, drawn."""
    classify = pipeline("image-classification", model=str(bundled_checkpoint()))
    cat = Image.fromarray(chelsea())
    draw_clusters(classify.model, classify.image_processor, cat, SHIPPED_SCALING, path)
    return classify(cat, top_k=1)[0]


def draw_predictions(images: list[Image.Image], predicted: list[str], expected: list[str], path: Path):
    """The wrong ones first, then right ones, 32 in all."""
    by_error = sorted(range(len(images)), key=lambda i: predicted[i] == expected[i])[:32]
    picked = [[values[i] for i in by_error] for values in (images, predicted, expected)]
    plot_predictions(*picked).savefig(path, dpi=110)


def main():
    start = time.perf_counter()
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    set_seed(SEED)

    images, labels = load_images()
    train_part, test_part = train_test_split(range(len(images)), test_size=0.2, random_state=SEED, stratify=labels)
    processor = make_processor()
    shake = v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), fill=-1)
    train_set = Digits(processor, images, labels, train_part, augment=shake)
    trainer = train(train_set, Digits(processor, images, labels, test_part), processor, args)
    training_time = time.perf_counter() - start

    folder = args.output_dir / "clustr-nano-digits"
    build_repository(trainer.model, processor, folder)
    held_out, expected = [images[i] for i in test_part], [str(labels[i]) for i in test_part]
    predicted = [answer["label"] for answer in predict_in_new_process(folder, held_out, args.output_dir)]
    num_right = sum(guess == truth for guess, truth in zip(predicted, expected))
    accuracy = num_right / len(expected)

    history = trainer.state.log_history
    pictures = {name: args.output_dir / f"{name}.png" for name in ("training_curve", "predictions", "clusters")}
    plot_training_curves(history).savefig(pictures["training_curve"], dpi=110)
    draw_predictions(held_out, predicted, expected, pictures["predictions"])
    digits_model = ClusTRForImageClassification.from_pretrained(folder)
    draw_clusters(digits_model, processor, Image.fromarray(astronaut()), DIGITS_SCALING, pictures["clusters"])
    card = describe(
        f"python examples/quickstart.py --num_train_epochs {args.num_train_epochs:g}", num_right, len(held_out)
    )
    samples = {f"A {digit}": image for digit, image in sorted(zip(expected, held_out), key=lambda pair: pair[0])}
    build_repository(trainer.model, processor, folder, card, samples, files=list(pictures.values()))
    pictures["photograph"] = args.output_dir / "photograph.png"
    answer = classify_photograph(pictures["photograph"])
    results = {"accuracy": accuracy, "seconds": training_time, "photograph": answer}
    (args.output_dir / "results.json").write_text(json.dumps(results))

    rows = {
        "held-out digits": f"{len(held_out)}",
        "accuracy in the training process": f"{[e['eval_accuracy'] for e in history if 'eval_accuracy' in e][-1]:.4f}",
        "accuracy in a new process, remote code": f"{accuracy:.4f}",
        "wrong": f"{len(held_out) - num_right}",
        "training": f"{training_time:.0f} s",
        "a photograph, by the package's checkpoint": f"{answer['label']} {answer['score']:.2f}",
        "all": f"{time.perf_counter() - start:.0f} s",
    }
    print("\n" + "\n".join(f"{name:<42}{value:>10}" for name, value in rows.items()))
    print(f"\nModel, a repository for the Hub: {folder}")
    print(f"Pictures: {', '.join(path.name for path in pictures.values())} in {args.output_dir}")


if __name__ == "__main__":
    main()
