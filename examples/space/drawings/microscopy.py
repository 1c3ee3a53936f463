# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Blood cells and nuclei, as seen through a microscope."""

import numpy as np
from drawings.canvas import blob, canvas, finish, places, shade
from PIL import Image


def draw_cells(seed: int = 0) -> Image.Image:
    """A stained blood smear: red cells, some with a pale centre, white cells with lobed nuclei, and platelets."""
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
    """Cell nuclei: grey on black as in fluorescence, or stained purple on white."""
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
