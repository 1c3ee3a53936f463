# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What people give to the page: images and boxes, or a message on the page if they are none."""

from pathlib import Path

import gradio as gr
from PIL import Image

from clustr_hf.handler_clustr import RequestError, read_image


EXAMPLES = sorted(str(path) for path in (Path(__file__).parent / "images").resolve().iterdir())


def checked(image: Image.Image | None) -> Image.Image:
    """The image, or a message on the page if there is none or it is too large."""
    if image is None:
        raise gr.Error("Choose an image first.")
    try:
        return read_image(image).convert("RGB")
    except RequestError as error:
        raise gr.Error(str(error)) from error


def parse_boxes(text: str) -> list[list[float]] | None:
    """Boxes (x, y, width, height) from lines of four numbers; `None` for no text."""
    try:
        boxes = [[float(number) for number in line.split(",")] for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise gr.Error(f"Boxes must be numbers with commas between them: {error}") from error
    if any(len(box) != 4 or min(box[2:]) <= 0 for box in boxes):
        raise gr.Error("Every box must have four numbers: x, y, width, height, the last two positive.")
    return boxes or None
