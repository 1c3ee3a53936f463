# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""User inputs: images and boxes. Invalid inputs raise `gr.Error`, which gradio shows as a message on the page."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from transformers import Pipeline

from clustr_hf.remote_code.handler_clustr import (
    BOXES,
    IMAGE_FORMATS,
    MAX_FILE_BYTES,
    MAX_PIXELS_OF_MASKS,
    RequestError,
    check_parameter,
    pixel_limit,
    read_image,
)
from clustr_hf.remote_code.image_reading_clustr import guard_pil


IMAGES = Path(__file__).resolve().parent / "images"
# Title of a tab -> its examples; the tab opens with the predictions for the first one.
EXAMPLES = {
    "Clusters": ("astronaut", "cat", "synthetic_street", "synthetic_cells"),
    "Classification": ("cat", "synthetic_automobile", "synthetic_ship"),
    "Semantic segmentation": ("synthetic_street", "cat"),
    "Object detection": ("synthetic_cells", "synthetic_street", "synthetic_persons"),
    "Instance segmentation": ("synthetic_nuclei", "synthetic_nuclei_stained", "synthetic_cells"),
    "Poses": ("synthetic_persons", "astronaut"),
}
SYNTHETIC = "synthetic_"  # prefix of the names of drawings
# On narrow screens, where columns are stacked, predictions come before settings.
CSS = "@media (max-width: 768px) { .result { order: -1; } }"


def example_paths(title: str) -> list[str]:
    """Paths of the examples of a tab."""
    return [str(IMAGES / f"{name}.jpg") for name in EXAMPLES[title]]


def add_image(title: str) -> gr.Image:
    """The image input of a tab. Its value is a path, since gradio's own decoding fails on malformed EXIF."""
    slug = slug_of(title)
    first = example_paths(title)[0]
    return gr.Image(first, type="filepath", image_mode=None, label="Image", height=320, elem_id=f"image-{slug}")


def add_examples(title: str, image: gr.Image) -> gr.Examples:
    """Example images to click on; the label says which of them are drawings."""
    drawn = [name.removeprefix(SYNTHETIC).replace("_", " ") for name in EXAMPLES[title] if name.startswith(SYNTHETIC)]
    label = f"Examples (synthetic, drawn by draw_examples.py: {', '.join(drawn)})"
    return gr.Examples(example_paths(title), image, label=label, elem_id=f"examples-{slug_of(title)}")


def slug_of(title: str) -> str:
    """A title as part of an element's id."""
    return title.lower().replace(" ", "-")


def refuse_costly_files():
    """Make PIL refuse files that are expensive to decode, in the whole process."""
    guard_pil(IMAGE_FORMATS, MAX_PIXELS_OF_MASKS, MAX_FILE_BYTES)


def checked(image: Image.Image | str | None, processor: Any, max_pixels: int = MAX_PIXELS_OF_MASKS) -> Image.Image:
    """
    The image as the model's processor reads it, or a message on the page if it is missing, too large, or of a format
    that the page does not accept.
    """
    if image is None:
        raise gr.Error("Choose an image first.")
    try:
        return read_image(Path(image).read_bytes() if isinstance(image, str) else image, processor, max_pixels)
    except RequestError as error:
        raise gr.Error(str(error)) from error


def ask(run: Pipeline, image: Image.Image | str | None, **parameters) -> tuple[Image.Image, list]:
    """The image as the pipeline's processor reads it, and the pipeline's predictions; or a message on the page."""
    image = checked(image, run.image_processor, min(MAX_PIXELS_OF_MASKS, pixel_limit(run)))
    try:
        return image, run(image, **parameters)
    except RequestError as error:
        raise gr.Error(str(error)) from error


def parse_boxes(text: str | None) -> list[list[float]] | None:
    """Boxes (x, y, width, height) from lines of four numbers; `None` for an empty text."""
    try:
        boxes = [[float(number) for number in line.split(",")] for line in (text or "").splitlines() if line.strip()]
        check_parameter("Boxes", BOXES, boxes)
    except ValueError as error:
        raise gr.Error(f"Boxes must be lines of four numbers separated by commas: {error}") from error
    return boxes or None
