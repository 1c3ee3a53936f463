# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The canvas of the drawings: enlarged while drawing, then shrunk, blurred and made noisy."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


# Pictures are drawn larger by this factor and then shrunk, which softens their edges.
SCALE = 3
Color = tuple[int, int, int]


def canvas(width: int, height: int, color: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An enlarged picture to draw on."""
    image = Image.new("RGB", (width * SCALE, height * SCALE), color)
    return image, ImageDraw.Draw(image)


def finish(image: Image.Image, noise: float, random: np.random.Generator, blur: float = 0.6) -> Image.Image:
    """The picture at its final size, with the blur and noise of a camera."""
    size = image.width // SCALE, image.height // SCALE
    image = image.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, dtype=np.float64) + random.normal(0, noise, (image.height, image.width, 1))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def scaled(points: Sequence[float]) -> list[float]:
    """Coordinates in enlarged pixels."""
    return [SCALE * value for value in points]


def blob(center: Sequence[float], radius: float, random: np.random.Generator, flatness: float = 1.0) -> list[tuple]:
    """Corners of a round shape with a wavy edge and random orientation, in enlarged pixels."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = sum(random.normal(0, 0.035) * np.cos(k * angles + random.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    x, y = radius * (1 + waves) * np.cos(angles), flatness * radius * (1 + waves) * np.sin(angles)
    turn = random.uniform(0, np.pi)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    return [(SCALE * (center[0] + dx), SCALE * (center[1] + dy)) for dx, dy in zip(x, y)]


def shifted(point: np.ndarray, x: float, y: float = 0.0) -> np.ndarray:
    return point + np.array([x, y])


def shade(color: Color, factor: float) -> Color:
    return tuple(int(min(255, factor * value)) for value in color)


def places(
    number: int, size: tuple[int, int], distance: float, random: np.random.Generator, taken: Sequence = ()
) -> list[np.ndarray]:
    """Random points in a picture (width, height) at a distance from each other and from those in `taken`."""
    found: list[np.ndarray] = []
    for _ in range(200 * number):
        point = random.uniform((0, 0), size)
        if all(np.hypot(*(point - other)) > minimum for other, minimum in [*((p, distance) for p in found), *taken]):
            found.append(point)
        if len(found) == number:
            break
    return found
