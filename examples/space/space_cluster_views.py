# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The clusters that a model finds in an image, and pictures of them."""

from functools import lru_cache

import gradio as gr
from PIL import Image
from space_inputs import checked
from transformers import Pipeline

from clustr_hf.remote_code.handler_clustr import MAX_NUMBER
from clustr_hf.visualization import ClusterMap, coarsen_clusters, draw_clusters, find_cluster_maps, prepare_image


# Label of a coarseness -> factor by which clusters grow.
FACTORS = {"as trained": 1, "4 times": 4, "16 times": 16, "64 times": 64}
MAX_LONGER_SIDE = 896  # pixels
# Pixels; pictures are at least half as wide, since every patch becomes a square of whole pixels.
MAX_PICTURE_WIDTH = 640


class ClusterView:
    """The clusters of one model."""

    def __init__(self, run: Pipeline):
        self.processor, self.model, self.config = run.image_processor, run.model, run.model.config
        self.coarser = lru_cache(lambda factor: coarsen_clusters(self.model, factor))

    @property
    def stages(self) -> list[int]:
        """Numbers of the clustered stages."""
        if getattr(self.config, "attention_type", "clustered") != "clustered":
            return []
        return [stage for stage, ratios in enumerate(self.config.reduction_ratios, start=1) if max(ratios) > 1]

    def blocks(self, stage: int) -> list[int]:
        return list(range(1, self.config.depths[stage - 1] + 1))

    def scales(self, stage: int) -> list[int]:
        return list(range(1, len(self.config.reduction_ratios[stage - 1]) + 1))

    def find(self, image: Image.Image | str | None, side: int, coarseness: str) -> tuple[Image.Image, list[ClusterMap]]:
        """The image at the size that the model sees, and its clusters."""
        image, pixel_values = prepare_image(checked(image, self.processor), self.processor, side, MAX_LONGER_SIDE)
        return image, find_cluster_maps(self.coarser(FACTORS[coarseness]), pixel_values)


def pick(found: tuple | None, stage: int, block: int, scale: int) -> ClusterMap | None:
    """The clusters of a stage, block and scale."""
    maps = found[1] if found else []
    return next((m for m in maps if (m.stage, m.block, m.scale) == (stage, block, scale)), None)


def show_clusters(found: tuple | None, stage: int, block: int, scale: int, cluster: int | None = None):
    """Picture and caption of the clusters of a stage, block and scale; `cluster` highlights one of them."""
    chosen = pick(found, stage, block, scale)
    if chosen is None:
        return None, "Choose an image." if not found else "This stage has no such block or scale."
    height, width = chosen.grid_size
    side = max(1, MAX_PICTURE_WIDTH // width)
    picture = found[0].resize((width * side, height * side), Image.Resampling.BICUBIC)
    place = f"Stage {stage}, block {block}, scale {scale}"
    caption = f"{place}: {height} x {width} patches in {chosen.num_clusters} clusters."
    if cluster is not None:
        members = int((chosen.cluster_index == cluster).sum())
        caption += f" The {members} bright patches are one cluster; press *Find clusters* to see all again."
    return draw_clusters(picture, chosen.cluster_index, chosen.grid_size, cluster), caption


def click(found: tuple | None, stage: int, block: int, scale: int, picture, event: gr.EventData):
    """
    Picture and caption of the cluster of the clicked patch; of all clusters in API calls, which have no click.

    The event is a `gr.EventData`, since a `gr.SelectData` cannot be created without a click.
    """
    chosen, pixel = pick(found, stage, block, scale), clicked_pixel(event)
    if chosen is None or picture is None or pixel is None:
        return show_clusters(found, stage, block, scale)
    column, row = pixel
    height, width = chosen.grid_size
    row, column = (
        min(extent - 1, max(0, int(at * extent / size)))
        for at, extent, size in ((row, height, picture.height), (column, width, picture.width))
    )
    return show_clusters(found, stage, block, scale, int(chosen.cluster_index[row * width + column]))


def clicked_pixel(event: gr.EventData) -> tuple[float, float] | None:
    """Column and row of the clicked pixel; `None` for anything else in the event."""
    try:
        column, row = map(float, event.index)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return (column, row) if abs(column) < MAX_NUMBER and abs(row) < MAX_NUMBER else None  # NaN compares false
