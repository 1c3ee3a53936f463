# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Persons on a lawn."""

import numpy as np
from drawings.canvas import SCALE, canvas, finish, scaled, shade
from drawings.figures import draw_figure
from drawings.street import draw_tree
from PIL import Image


def draw_persons(seed: int = 3) -> Image.Image:
    """Two persons on a lawn, one of them waving."""
    random, size = np.random.default_rng(seed), (480, 360)
    image, draw = canvas(*size, (186, 212, 232))
    draw.rectangle(scaled((0, 190, 480, 360)), fill=(112, 146, 84))
    for _ in range(500):
        x, y = random.uniform((0, 195), (480, 360))
        draw.line(scaled((x, y, x + 2, y - 6)), fill=shade((112, 146, 84), random.uniform(0.8, 1.15)), width=SCALE)
    for x, height in ((40, 130), (440, 150), (300, 90)):
        draw_tree(draw, random, (x, 205), height)
    draw_figure(draw, (160, 330), 270, {"arms": (2.2, -0.25), "legs": (0.12, -0.12)}, ((176, 52, 48), (48, 58, 92)))
    draw_figure(draw, (320, 322), 240, {"arms": (0.5, -0.6), "legs": (0.3, -0.25)}, ((64, 98, 150), (84, 74, 66)))
    return finish(image, 3.0, random)
