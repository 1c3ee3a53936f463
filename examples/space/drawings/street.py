# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A street with houses, trees, cars and persons."""

import numpy as np
from drawings.canvas import SCALE, Color, blob, canvas, finish, scaled, shade
from drawings.figures import draw_walker
from PIL import Image, ImageDraw


def draw_street(seed: int = 2) -> Image.Image:
    """A street seen from a car: sky, houses, trees, pavement, road, cars, persons, a lamp and a sign."""
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
        draw_tree(draw, random, (x, bottom), height)
    draw.rectangle(scaled((320, 84, 323, 200)), fill=(58, 60, 62))  # a lamp, and a sign next to it
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
        draw_walker(draw, (x, bottom), height, color)
    return finish(image, 4.0, random, blur=0.7)


def _draw_houses(draw: ImageDraw.ImageDraw, random: np.random.Generator):
    """A row of houses along the left side of the street, with the vanishing point (238, 176)."""
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


def draw_tree(draw: ImageDraw.ImageDraw, random: np.random.Generator, foot: tuple[int, int], height: float):
    draw.line(scaled((*foot, foot[0], foot[1] - 0.6 * height)), fill=(66, 54, 46), width=round(SCALE * height / 22))
    for _ in range(150):
        angle, reach = random.uniform(0, 2 * np.pi), random.uniform(0, 1) ** 0.5
        x = foot[0] + 0.36 * height * reach * np.cos(angle)
        y = foot[1] - 0.68 * height + 0.34 * height * reach * np.sin(angle)
        color = shade((74, 84, 50), random.uniform(0.6, 1.3))
        draw.polygon(blob((x, y), random.uniform(0.03, 0.06) * height, random), fill=color)


def _draw_car(draw: ImageDraw.ImageDraw, corner: tuple[float, float], width: float, color: Color):
    """A car from the front, whose lower left corner is at `corner`."""
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
