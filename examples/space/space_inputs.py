# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""What people give to the page: images and boxes, or a message on the page if they are none."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from clustr_hf.handler_clustr import BOXES, MAX_PIXELS_OF_MASKS, RequestError, check_parameter, read_image


EXAMPLES = sorted(str(path) for path in (Path(__file__).parent / "images").resolve().iterdir())


def refuse_large_images():
    """Let PIL refuse, in this whole process, images that are too large before the page decodes them."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS_OF_MASKS // 2  # it refuses those of more than twice this


def checked(image: Image.Image | None, processor: Any) -> Image.Image:
    """The image as the model's processor reads it, or a message on the page if there is none or it is too large."""
    if image is None:
        raise gr.Error("Choose an image first.")
    try:
        return read_image(image, processor, MAX_PIXELS_OF_MASKS)
    except RequestError as error:
        raise gr.Error(str(error)) from error


def parse_boxes(text: str) -> list[list[float]] | None:
    """Boxes (x, y, width, height) from lines of four numbers; `None` for no text."""
    try:
        boxes = [[float(number) for number in line.split(",")] for line in text.splitlines() if line.strip()]
        check_parameter("Boxes", BOXES, boxes)
    except ValueError as error:
        raise gr.Error(f"Boxes must be lines of four numbers with commas between them: {error}") from error
    return boxes or None
