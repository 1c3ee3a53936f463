# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Persons."""

import numpy as np
from drawings.canvas import SCALE, Color, scaled, shade, shifted
from PIL import ImageDraw


def draw_walker(draw: ImageDraw.ImageDraw, foot: tuple[float, float], height: float, color: Color):
    """A walking person in clothes of one colour."""
    draw_figure(draw, foot, height, {"arms": (0.25, -0.3), "legs": (0.22, -0.22)}, (color, shade(color, 0.7)))


def draw_figure(
    draw: ImageDraw.ImageDraw,
    foot: tuple[float, float],
    height: float,
    pose: dict[str, tuple[float, float]],
    clothes: tuple[Color, Color],
    skin: Color = (204, 158, 130),
):
    """A person whose feet are at `foot`; angles of arms and legs are in radians from straight down."""
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
    _draw_head(draw, neck, height, skin)


def _draw_head(draw: ImageDraw.ImageDraw, neck: np.ndarray, height: float, skin: Color):
    head = shifted(neck, 0, -0.08 * height)
    draw.line(scaled((*neck, *head)), fill=shade(skin, 0.85), width=round(SCALE * 0.06 * height))
    for radius, offset, color in ((0.075, -0.012, (62, 44, 34)), (0.066, 0.006, skin)):
        center = shifted(head, 0, offset * height)
        extent = np.array([0.85 * radius * height, radius * height])
        draw.ellipse(scaled((*(center - extent), *(center + extent))), fill=color)
    for side in (-0.022, 0.022):
        eye = shifted(head, side * height)
        draw.ellipse(scaled((*(eye - 0.008 * height), *(eye + 0.008 * height))), fill=(40, 34, 34))
