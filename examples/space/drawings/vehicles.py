# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""A car and a ship."""

import numpy as np
from drawings.canvas import SCALE, canvas, finish, scaled, shade
from PIL import Image


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
