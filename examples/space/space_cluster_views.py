# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The clusters that a model finds in an image, and pictures of them."""

from dataclasses import dataclass
from functools import lru_cache

import gradio as gr
from PIL import Image
from space_inputs import checked
from transformers import Pipeline, PreTrainedModel

from clustr_hf.remote_code.handler_clustr import MAX_NUMBER
from clustr_hf.visualization import ClusterMap, coarsen_clusters, draw_clusters, find_cluster_maps, prepare_image


# Label of a coarseness -> factor by which clusters grow.
FACTORS = {"as trained": 1, "4 times": 4, "16 times": 16, "64 times": 64}
# Label of a budget -> tolerance of the merging; None: the same number of clusters in every image.
BUDGETS = {"the same in every image": None, "0.2 %": 0.002, "1 %": 0.01, "5 %": 0.05}
SAME = next(iter(BUDGETS))
MAX_LONGER_SIDE = 896  # pixels
# Pixels; pictures are at least half as wide, since every patch becomes a square of whole pixels.
MAX_PICTURE_WIDTH = 640


@dataclass(frozen=True)
class Found:
    """
    The clusters of an image.

    Args:
        image (`PIL.Image.Image`): The image at the size that the model sees.
        maps (`list[ClusterMap]`): The clusters of each block and scale.
    """

    image: Image.Image
    maps: list[ClusterMap]

    @property
    def num_clusters(self) -> int:
        """`int`: Number of clusters of all blocks and scales."""
        return sum(each.num_clusters for each in self.maps)

    @property
    def most_clusters(self) -> int:
        """`int`: Their number before any were merged."""
        return sum(each.num_clusters if each.num_unmerged is None else each.num_unmerged for each in self.maps)


class ClusterView:
    """The clusters of one model."""

    def __init__(self, run: Pipeline):
        self.processor, self.model, self.config = run.image_processor, run.model, run.model.config
        self.changed = lru_cache(self._change)

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

    def _change(self, factor: int, tolerance: float | None) -> PreTrainedModel:
        """A copy of the model whose clusters are larger by a factor and merged with a tolerance."""
        model = coarsen_clusters(self.model, factor)
        model.set_cluster_budget(tolerance)
        return model

    def find(self, image: Image.Image | str | None, side: int, coarseness: str, budget: str = SAME) -> Found:
        """The clusters of an image."""
        image, pixel_values = prepare_image(checked(image, self.processor), self.processor, side, MAX_LONGER_SIDE)
        model = self.changed(FACTORS[coarseness], BUDGETS[budget])
        return Found(image, find_cluster_maps(model, pixel_values))


def pick(found: Found | None, stage: int, block: int, scale: int) -> ClusterMap | None:
    """The clusters of a stage, block and scale."""
    maps = found.maps if found else []
    return next((m for m in maps if (m.stage, m.block, m.scale) == (stage, block, scale)), None)


def show_clusters(found: Found | None, stage: int, block: int, scale: int, cluster: int | None = None):
    """Picture and caption of the clusters of a stage, block and scale; `cluster` highlights one of them."""
    chosen = pick(found, stage, block, scale)
    if chosen is None:
        return None, "Choose an image." if not found else "This stage has no such block or scale."
    height, width = chosen.grid_size
    side = max(1, MAX_PICTURE_WIDTH // width)
    picture = found.image.resize((width * side, height * side), Image.Resampling.BICUBIC)
    place = f"Stage {stage}, block {block}, scale {scale}"
    caption = f"{place}: {height} x {width} patches in {chosen.num_clusters} clusters."
    caption += f" The image takes {found.num_clusters} clusters in all blocks and scales"
    caption += "." if found.num_clusters == found.most_clusters else f" in place of {found.most_clusters}."
    if cluster is not None:
        members = int((chosen.cluster_index == cluster).sum())
        caption += f" The {members} bright patches are one cluster; press *Find clusters* to see all again."
    return draw_clusters(picture, chosen.cluster_index, chosen.grid_size, cluster), caption


def click(found: Found | None, stage: int, block: int, scale: int, picture, event: gr.EventData):
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
