#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The complete workflow on real data, in two minutes on two CPU cores.

    python examples/quickstart.py --output_dir out

Trains ClusTR nano (1.1 million parameters) from scratch with Trainer on scikit-learn's 1,797 handwritten digits, writes
a Hub repository, classifies the held-out digits in a new process that sees only that folder, and draws the training
curve, predictions, and clusters. The bundled checkpoint, trained on CIFAR-10, then classifies a photograph.
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
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, pipeline, set_seed

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor, bundled_checkpoint
from clustr_hf.metrics import compute_accuracy
from clustr_hf.publish import CardContents, build_repository
from clustr_hf.publish.card import Measurement
from clustr_hf.visualization import plot_model_clusters, plot_predictions, plot_training_curves


SEED = 0
AUGMENT = v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), fill=-1)
RECIPE = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "weight_decay": 0.05}
RECIPE |= {"warmup_steps": 0.1, "label_smoothing_factor": 0.1, "lr_scheduler_type": "cosine"}  # 10 % of the steps


class AugmentedRows(list):
    """Rows of a training set whose images are augmented whenever they are read."""

    def __getitem__(self, index: int) -> dict:
        row = super().__getitem__(index)
        return {**row, "pixel_values": AUGMENT(row["pixel_values"])}


def make_rows(processor, images: list[Image.Image], labels: list[int]) -> list[dict]:
    pixel_values = processor(images, return_tensors="pt").pixel_values
    return [{"pixel_values": pixels, "labels": label} for pixels, label in zip(pixel_values, labels)]


def train(processor, train_part: tuple[list, list], test_part: tuple[list, list], out: Path, epochs: float) -> Trainer:
    """Train ClusTR nano, with an evaluation after every epoch."""
    digits = [str(digit) for digit in range(10)]
    labels = {"id2label": dict(enumerate(digits)), "label2id": {name: digit for digit, name in enumerate(digits)}}
    train_set, test_set = AugmentedRows(make_rows(processor, *train_part)), make_rows(processor, *test_part)
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano", **labels))
    print(f"ClusTR nano: {model.num_parameters():,} parameters, {len(train_set)} images to train on")
    every_epoch = {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "no", "report_to": "none"}
    loading = {"per_device_eval_batch_size": 64, "dataloader_pin_memory": False}
    args = TrainingArguments(out / "trainer", num_train_epochs=epochs, seed=SEED, **every_epoch, **loading, **RECIPE)
    parts = {"train_dataset": train_set, "eval_dataset": test_set, "processing_class": processor}
    trainer = Trainer(model=model, args=args, compute_metrics=compute_accuracy, **parts)
    trainer.train()
    return trainer


def predict_in_new_process(folder: Path, images: list[Image.Image], output_dir: Path) -> list[str]:
    """Labels predicted by `predict.py`, which runs the code in the folder instead of the package."""
    image_folder, output = output_dir / "held_out_digits", output_dir / "predictions.json"
    image_folder.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        image.save(image_folder / f"{index:04d}.png")
    command = [sys.executable, Path(__file__).with_name("predict.py"), folder, image_folder, "--output", output]
    subprocess.run([str(part) for part in command], check=True)
    answers = json.loads(output.read_text())["predictions"]
    return [answers[name]["label"] for name in sorted(answers)]


def describe(command: str, accuracy: float, num_test_images: int) -> CardContents:
    """Contents of the card."""
    data = "scikit-learn's handwritten digits"
    measured = Measurement("accuracy", "Top-1 accuracy", accuracy, data, command, None, "held out", num_test_images)
    return CardContents(
        summary="ClusTR nano, trained on scikit-learn's handwritten digits as a demonstration.",
        training="1,437 digits of 8 x 8 pixels, enlarged to 32 x 32, from scratch.",
        command=command,
        recipe=RECIPE,
        measurements=[measured],
        limitations="The model only recognises centred digits, light on dark.",
    )


def draw(trainer: Trainer, folder: Path, images: list, predicted: list[str], expected: list[str], out: Path) -> dict:
    """Write all pictures; returns the bundled checkpoint's prediction for a photograph of a cat."""
    wrong_first = sorted(range(len(expected)), key=lambda i: predicted[i] == expected[i])[:32]
    model, processor = ClusTRForImageClassification.from_pretrained(folder), trainer.processing_class
    classify, cat = pipeline("image-classification", model=str(bundled_checkpoint())), Image.fromarray(chelsea())
    figures = {  # clusters of photographs are coarser than those of training images, which have fewer tokens
        "training_curve": plot_training_curves(trainer.state.log_history),
        "predictions": plot_predictions(
            *[[values[i] for i in wrong_first] for values in (images, predicted, expected)]
        ),
        "clusters": plot_model_clusters(model, processor, Image.fromarray(astronaut()), 320, coarser=32),
        "photograph": plot_model_clusters(classify.model, classify.image_processor, cat, 128, coarser=8),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=110)
    return classify(cat, top_k=1)[0]


def main():
    parser = argparse.ArgumentParser(description="Train, save, reload and look at ClusTR on handwritten digits.")
    parser.add_argument("--output_dir", type=Path, default=Path("out"), help="folder to write; default: out")
    parser.add_argument("--num_train_epochs", type=float, default=16, help="epochs of training; default: 16")
    args = parser.parse_args()
    out, start = args.output_dir, time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    set_seed(SEED)

    digits = load_digits()
    images = [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in digits.images]
    split = train_test_split(images, digits.target.tolist(), test_size=0.2, random_state=SEED, stratify=digits.target)
    train_images, test_images, train_labels, test_labels = split
    size = {"height": 32, "width": 32}  # pixels; the digits are 8 x 8
    processor = ClusTRImageProcessor(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    trainer = train(processor, (train_images, train_labels), (test_images, test_labels), out, args.num_train_epochs)
    seconds = time.perf_counter() - start

    folder = out / "clustr-nano-digits"
    build_repository(trainer.model, processor, folder)
    predicted, expected = predict_in_new_process(folder, test_images, out), [str(label) for label in test_labels]
    accuracy = sum(guess == truth for guess, truth in zip(predicted, expected)) / len(expected)
    answer = draw(trainer, folder, test_images, predicted, expected, out)
    command = f"python examples/quickstart.py --num_train_epochs {args.num_train_epochs:g}"
    samples = {f"A {digit}": image for digit, image in sorted(zip(expected, test_images), key=lambda pair: pair[0])}
    pictures = [out / f"{name}.png" for name in ("training_curve", "predictions", "clusters")]
    build_repository(trainer.model, processor, folder, describe(command, accuracy, len(expected)), samples, pictures)

    (out / "results.json").write_text(json.dumps({"accuracy": accuracy, "seconds": seconds, "photograph": answer}))
    print(f"\nAccuracy in a new process, with remote code: {accuracy:.4f} of {len(expected)} held-out digits")
    print(f"A photograph of a cat, by the bundled checkpoint: {answer['label']} {answer['score']:.2f}")
    print(f"Training took {seconds:.0f} s, everything {time.perf_counter() - start:.0f} s")
    print(f"Model, a repository for the Hub: {folder}\nPictures: {out}/*.png")


if __name__ == "__main__":
    main()
