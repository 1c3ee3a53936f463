#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Draw the synthetic examples of the Space: blood cells, nuclei, a street, a person, vehicles. No photograph is in them.

    python examples/space/draw_examples.py                 # into images/ beside this file
    python examples/space/draw_examples.py --folder out    # elsewhere

The same files come out every time, up to what versions of NumPy and Pillow change.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


IMAGES = Path(__file__).resolve().parent / "images"
# Pictures are drawn larger by this factor, and shrunk: edges become soft.
SCALE = 3

Color = tuple[int, int, int]


def canvas(width: int, height: int, color: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An enlarged picture to draw on."""
    image = Image.new("RGB", (width * SCALE, height * SCALE), color)
    return image, ImageDraw.Draw(image)


def finish(image: Image.Image, noise: float, random: np.random.Generator, blur: float = 0.6) -> Image.Image:
    """The picture at its size, slightly blurred and noisy, as cameras make them."""
    size = image.width // SCALE, image.height // SCALE
    image = image.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, dtype=np.float64) + random.normal(0, noise, (image.height, image.width, 1))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def scaled(points: Sequence[float]) -> list[float]:
    return [SCALE * value for value in points]


def blob(center: Sequence[float], radius: float, random: np.random.Generator, flatness: float = 1.0) -> list[tuple]:
    """Corners of a round shape with a wavy edge, turned at random; in enlarged pixels."""
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
    """Random points of a picture (width, height), apart from each other and from those taken."""
    found: list[np.ndarray] = []
    for _ in range(200 * number):
        point = random.uniform((0, 0), size)
        if all(np.hypot(*(point - other)) > least for other, least in [*((p, distance) for p in found), *taken]):
            found.append(point)
        if len(found) == number:
            break
    return found


def draw_cells(seed: int = 0) -> Image.Image:
    """A stained blood smear: red cells, some with a pale middle, white cells with lobed nuclei, platelets."""
    random, size = np.random.default_rng(seed), (640, 480)
    image, draw = canvas(*size, (214, 220, 214))
    white = [(np.array([205.0, 190.0]), 105.0), (np.array([480.0, 330.0]), 105.0)]
    red = places(21, size, 88, random, white)
    for center in red:
        radius, color = random.uniform(40, 49), shade((203, 160, 150), random.uniform(0.95, 1.04))
        draw.polygon(blob(center, radius, random, random.uniform(0.88, 1)), fill=shade(color, 0.93))
        draw.polygon(blob(center, radius - 3, random, 0.97), fill=color)
        if random.uniform() < 0.45:
            draw.polygon(blob(center, 0.4 * radius, random, 0.9), fill=(219, 190, 182))
    for center, _ in white:
        draw.polygon(blob(center, 62, random), fill=(178, 160, 196))
        draw.polygon(blob(center, 58, random), fill=(196, 180, 212))
        for angle in (0.4, 1.9, 3.3, 4.9):
            lobe = center + 26 * np.array([np.cos(angle), np.sin(angle)])
            draw.polygon(blob(lobe, random.uniform(20, 26), random, 0.8), fill=(104, 82, 190))
            draw.polygon(blob(lobe + 3, 12, random, 0.8), fill=(122, 98, 204))
    for center in places(5, (600, 440), 60, random, [*white, *((center, 60.0) for center in red)]):
        draw.polygon(blob(center, random.uniform(11, 14), random, 0.85), fill=(164, 136, 200))
        draw.polygon(blob(center, 8, random, 0.8), fill=(122, 88, 186))
    return finish(image, 2.5, random, blur=1.4)


def draw_nuclei(stained: bool, seed: int = 1) -> Image.Image:
    """Nuclei: grey on black, as fluorescence shows them, or stained, purple on white."""
    random, size = np.random.default_rng(seed), (320, 256)
    image, draw = canvas(*size, (238, 234, 240) if stained else (9, 9, 9))
    for center in places(38, size, 27, random):
        radius = random.uniform(9, 13)
        color = shade((112, 48, 148) if stained else (80, 80, 80), random.uniform(0.8, 1.5))
        draw.polygon(blob(center, radius, random, random.uniform(0.72, 1)), fill=color)
        for _ in range(4):
            spot = center + random.uniform(-0.45, 0.45, 2) * radius
            draw.polygon(blob(spot, 0.22 * radius, random), fill=shade(color, random.choice([0.8, 1.25])))
    return finish(image, 2.0, random, blur=1.0)


def draw_street(seed: int = 2) -> Image.Image:
    """A street as a car's camera sees it: sky, houses, trees, pavement, road, cars, persons, a lamp and a sign."""
    random, size = np.random.default_rng(seed), (480, 360)
    image, draw = canvas(*size, (176, 210, 236))
    for row in range(150):
        draw.rectangle(scaled((0, row, 480, row + 1)), fill=shade((150, 196, 236), 1 + row / 500))
    draw.polygon(scaled((0, 360, 0, 226, 205, 176, 275, 176, 480, 232, 480, 360)), fill=(124, 118, 114))  # pavement
    draw.polygon(scaled((40, 360, 212, 178, 264, 178, 480, 322, 480, 360)), fill=(74, 74, 80))
    for near, far in ((352, 320), (300, 276), (262, 244), (232, 220), (210, 203)):
        left, right = 238 + 0.12 * (near - 178), 238 + 0.12 * (far - 178)
        draw.polygon(scaled((left, near, left + 4, near, right + 2, far, right, far)), fill=(206, 206, 204))
    _draw_houses(draw, random)
    for x, bottom, height in ((402, 214, 150), (440, 226, 196), (360, 202, 112), (330, 194, 84)):
        _draw_tree(draw, random, (x, bottom), height)
    draw.rectangle(scaled((320, 84, 323, 200)), fill=(58, 60, 62))  # a lamp, and a sign beside it
    draw.rectangle(scaled((306, 82, 323, 86)), fill=(58, 60, 62))
    draw.rectangle(scaled((172, 138, 174, 196)), fill=(70, 70, 72))
    draw.ellipse(scaled((164, 124, 182, 142)), fill=(196, 40, 44))
    draw.ellipse(scaled((168, 128, 178, 138)), fill=(236, 236, 236))
    _draw_car(draw, (316, 232), 92, (36, 44, 84))
    _draw_car(draw, (244, 196), 40, (150, 30, 34))
    for x, bottom, height, color in (
        (96, 262, 84, (44, 40, 52)),
        (128, 244, 66, (90, 46, 44)),
        (436, 276, 92, (40, 52, 70)),
    ):
        _draw_walker(draw, (x, bottom), height, color)
    return finish(image, 4.0, random, blur=0.7)


def _draw_houses(draw: ImageDraw.ImageDraw, random: np.random.Generator):
    """A row along the left side of the street, in perspective towards the point (238, 176)."""
    edges = (0, 62, 112, 150, 180, 202)
    for left, right, color in zip(
        edges, edges[1:], ((150, 120, 104), (196, 190, 180), (128, 86, 70), (176, 160, 140), (120, 100, 92))
    ):
        roof, base = [(0.0 + 0.72 * x) for x in (left, right)], [(232 - 0.23 * x) for x in (left, right)]
        draw.polygon(scaled((left, base[0], left, roof[0], right, roof[1], right, base[1])), fill=color)
        for storey in range(1, 5):
            for column in (0.18, 0.58):
                x0, x1 = left + column * (right - left), left + (column + 0.24) * (right - left)
                share = storey / 5.2
                y0, y1 = ((1 - share) * 0.72 * x + share * (232 - 0.23 * x) for x in (x0, x1))
                depth = 0.1 * (232 - 0.95 * x0)
                glass = shade((58, 62, 72), random.uniform(0.7, 1.5))
                draw.polygon(scaled((x0, y0, x1, y1, x1, y1 + depth, x0, y0 + depth)), fill=glass)


def _draw_tree(draw: ImageDraw.ImageDraw, random: np.random.Generator, foot: tuple[int, int], height: float):
    draw.line(scaled((*foot, foot[0], foot[1] - 0.6 * height)), fill=(66, 54, 46), width=round(SCALE * height / 22))
    for _ in range(150):
        angle, reach = random.uniform(0, 2 * np.pi), random.uniform(0, 1) ** 0.5
        x = foot[0] + 0.36 * height * reach * np.cos(angle)
        y = foot[1] - 0.68 * height + 0.34 * height * reach * np.sin(angle)
        color = shade((74, 84, 50), random.uniform(0.6, 1.3))
        draw.polygon(blob((x, y), random.uniform(0.03, 0.06) * height, random), fill=color)


def _draw_car(draw: ImageDraw.ImageDraw, corner: tuple[float, float], width: float, color: Color):
    """A car from the front, its lower left corner at the point."""
    x, y = corner

    def part(left, top, right, bottom, fill, radius=0.04):
        bounds = (x + left * width, y - top * width, x + right * width, y - bottom * width)
        draw.rounded_rectangle(scaled(bounds), radius * SCALE * width, fill=fill)

    draw.ellipse(scaled((x - 0.05 * width, y - 0.06 * width, x + 1.05 * width, y + 0.07 * width)), fill=(46, 46, 50))
    part(0.03, 0.2, 0.2, -0.02, (22, 22, 24))
    part(0.8, 0.2, 0.97, -0.02, (22, 22, 24))
    part(0.14, 0.74, 0.86, 0.36, shade(color, 0.9), 0.12)
    part(0.19, 0.69, 0.81, 0.43, (120, 140, 156), 0.08)
    part(0, 0.46, 1, 0.06, color, 0.1)
    part(0.05, 0.38, 0.22, 0.26, (236, 236, 220))
    part(0.78, 0.38, 0.95, 0.26, (236, 236, 220))
    part(0.3, 0.34, 0.7, 0.24, (30, 30, 34))
    part(0.38, 0.19, 0.62, 0.11, (226, 226, 226), 0.01)


def _draw_walker(draw: ImageDraw.ImageDraw, foot: tuple[float, float], height: float, color: Color):
    draw_figure(draw, foot, height, {"arms": (0.25, -0.3), "legs": (0.22, -0.22)}, (color, shade(color, 0.7)))


def draw_figure(
    draw: ImageDraw.ImageDraw,
    foot: tuple[float, float],
    height: float,
    pose: dict[str, tuple[float, float]],
    clothes: tuple[Color, Color],
    skin: Color = (204, 158, 130),
):
    """A person whose feet are at the point; the angles of arms and legs are in radians from straight down."""
    x, y = foot
    hip, neck = np.array([x, y - 0.5 * height]), np.array([x, y - 0.83 * height])

    def limb(start, angle, length, width, color, bend=0.0):
        middle = start + length * np.array([np.sin(angle), np.cos(angle)])
        end = middle + length * np.array([np.sin(angle + bend), np.cos(angle + bend)])
        for first, second in ((start, middle), (middle, end)):
            draw.line(scaled((*first, *second)), fill=color, width=round(SCALE * width))
        for point in (start, middle, end):
            draw.ellipse(scaled((*(point - width / 2), *(point + width / 2))), fill=color)
        return end

    for angle, side in zip(pose["legs"], (0.05, -0.05)):
        end = limb(shifted(hip, side * height), angle, 0.24 * height, 0.1 * height, clothes[1], -0.4 * angle)
        draw.ellipse(scaled((*(end - 0.05 * height), *(end + 0.05 * height))), fill=(40, 34, 32))
    shoulders = shifted(neck, 0, 0.02 * height)
    body = [(shoulders[0] - 0.12 * height, shoulders[1]), (shoulders[0] + 0.12 * height, shoulders[1])]
    body += [(hip[0] + 0.09 * height, hip[1] + 0.03 * height), (hip[0] - 0.09 * height, hip[1] + 0.03 * height)]
    draw.polygon(scaled([value for point in body for value in point]), fill=clothes[0])
    for angle, side in zip(pose["arms"], (0.12, -0.12)):
        sleeve = shade(clothes[0], 0.88)
        end = limb(
            shifted(shoulders, side * height, 0.03 * height), angle, 0.16 * height, 0.07 * height, sleeve, 0.5 * angle
        )
        draw.ellipse(scaled((*(end - 0.035 * height), *(end + 0.035 * height))), fill=skin)
    head = shifted(neck, 0, -0.08 * height)
    draw.line(scaled((*neck, *head)), fill=shade(skin, 0.85), width=round(SCALE * 0.06 * height))
    for radius, offset, color in ((0.075, -0.012, (62, 44, 34)), (0.066, 0.006, skin)):
        center = shifted(head, 0, offset * height)
        extent = np.array([0.85 * radius * height, radius * height])
        draw.ellipse(scaled((*(center - extent), *(center + extent))), fill=color)
    for side in (-0.022, 0.022):
        eye = shifted(head, side * height)
        draw.ellipse(scaled((*(eye - 0.008 * height), *(eye + 0.008 * height))), fill=(40, 34, 34))


def draw_persons(seed: int = 3) -> Image.Image:
    """Two persons on a lawn, one of them waving."""
    random, size = np.random.default_rng(seed), (480, 360)
    image, draw = canvas(*size, (186, 212, 232))
    draw.rectangle(scaled((0, 190, 480, 360)), fill=(112, 146, 84))
    for _ in range(500):
        x, y = random.uniform((0, 195), (480, 360))
        draw.line(scaled((x, y, x + 2, y - 6)), fill=shade((112, 146, 84), random.uniform(0.8, 1.15)), width=SCALE)
    for x, height in ((40, 130), (440, 150), (300, 90)):
        _draw_tree(draw, random, (x, 205), height)
    draw_figure(draw, (160, 330), 270, {"arms": (2.2, -0.25), "legs": (0.12, -0.12)}, ((176, 52, 48), (48, 58, 92)))
    draw_figure(draw, (320, 322), 240, {"arms": (0.5, -0.6), "legs": (0.3, -0.25)}, ((64, 98, 150), (84, 74, 66)))
    return finish(image, 3.0, random)


def draw_automobile(seed: int = 4) -> Image.Image:
    """A red car on a road, from the side."""
    random, size = np.random.default_rng(seed), (320, 320)
    image, draw = canvas(*size, (196, 214, 226))
    draw.rectangle(scaled((0, 150, 320, 205)), fill=(120, 142, 98))
    draw.rectangle(scaled((0, 205, 320, 320)), fill=(132, 132, 134))
    draw.ellipse(scaled((24, 222, 300, 258)), fill=(84, 84, 88))
    color = (188, 30, 34)
    draw.polygon(scaled((78, 160, 116, 104, 204, 104, 246, 160)), fill=shade(color, 0.9))
    draw.polygon(scaled((92, 158, 122, 112, 156, 112, 156, 158)), fill=(60, 74, 88))
    draw.polygon(scaled((164, 158, 164, 112, 200, 112, 232, 158)), fill=(60, 74, 88))
    draw.rounded_rectangle(scaled((18, 152, 304, 226)), SCALE * 26, fill=color)
    draw.rectangle(scaled((18, 196, 304, 204)), fill=shade(color, 0.75))
    draw.ellipse(scaled((282, 166, 302, 184)), fill=(244, 240, 206))
    draw.ellipse(scaled((18, 168, 30, 186)), fill=(240, 120, 60))
    for x in (82, 240):
        draw.ellipse(scaled((x - 32, 190, x + 32, 254)), fill=(28, 28, 30))
        draw.ellipse(scaled((x - 17, 205, x + 17, 239)), fill=(178, 180, 184))
    return finish(image, 4.0, random)


def draw_ship(seed: int = 5) -> Image.Image:
    """A ship at sea."""
    random, size = np.random.default_rng(seed), (320, 320)
    image, draw = canvas(*size, (168, 204, 232))
    draw.rectangle(scaled((0, 196, 320, 320)), fill=(44, 92, 138))
    draw.polygon(scaled((22, 176, 298, 168, 268, 226, 52, 226)), fill=(52, 56, 72))
    draw.polygon(scaled((46, 212, 276, 212, 268, 226, 52, 226)), fill=(150, 50, 44))
    draw.polygon(scaled((74, 174, 74, 136, 228, 132, 240, 170)), fill=(238, 238, 234))
    draw.polygon(scaled((104, 136, 104, 108, 196, 106, 202, 133)), fill=(226, 226, 222))
    draw.rectangle(scaled((134, 62, 158, 108)), fill=(208, 96, 44))
    draw.rectangle(scaled((134, 62, 158, 74)), fill=(40, 40, 44))
    for x in range(84, 224, 18):
        draw.rectangle(scaled((x, 146, x + 9, 156)), fill=(70, 90, 112))
    for _ in range(260):
        x, y = random.uniform((0, 228), (320, 320))
        wave = shade((44, 92, 138), random.uniform(0.85, 1.35))
        draw.line(scaled((x, y, x + random.uniform(6, 20), y)), fill=wave, width=SCALE * 2)
    return finish(image, 4.0, random)


DRAWINGS = {
    "synthetic_cells": draw_cells,
    "synthetic_nuclei": lambda: draw_nuclei(stained=False),
    "synthetic_nuclei_stained": lambda: draw_nuclei(stained=True, seed=6),
    "synthetic_street": draw_street,
    "synthetic_persons": draw_persons,
    "synthetic_automobile": draw_automobile,
    "synthetic_ship": draw_ship,
}


def main():
    parser = argparse.ArgumentParser(description="Draw the synthetic examples of the Space.")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where to write them")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        draw().save(folder / f"{name}.jpg", quality=88)
        print(f"Wrote {folder / name}.jpg")


if __name__ == "__main__":
    main()
