# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tab that shows which patch went to which cluster, in any stage, block and scale (as in Figure A3)."""

from functools import lru_cache

import gradio as gr
from PIL import Image
from space_inputs import add_examples, add_image, checked, example_paths
from transformers import Pipeline

from clustr_hf.remote_code.handler_clustr import MAX_NUMBER
from clustr_hf.visualization import (
    ClusterMap,
    coarsen_clusters,
    draw_clusters,
    find_cluster_maps,
    prepare_image,
)


FACTORS = {"as trained": 1, "4 times": 4, "16 times": 16, "64 times": 64}
SIDES = (32, 448)  # pixels of the shorter side of an image whose clusters are looked for
SIDE = 224  # what the page opens with, and
COARSENESS = "16 times"
LONGEST_SIDE = 896
PICTURE_WIDTH = 640  # at least half of it in pixels: patches become whole squares


class ClusterView:
    """The clusters of one model: found once for an image and its settings, looked at as often as one likes."""

    def __init__(self, run: Pipeline):
        self.processor, self.model, self.config = run.image_processor, run.model, run.model.config
        self.coarser = lru_cache(lambda factor: coarsen_clusters(self.model, factor))

    @property
    def stages(self) -> list[int]:
        """Those that cluster."""
        if getattr(self.config, "attention_type", "clustered") != "clustered":
            return []
        return [stage for stage, ratios in enumerate(self.config.reduction_ratios, start=1) if max(ratios) > 1]

    def blocks(self, stage: int) -> list[int]:
        return list(range(1, self.config.depths[stage - 1] + 1))

    def scales(self, stage: int) -> list[int]:
        return list(range(1, len(self.config.reduction_ratios[stage - 1]) + 1))

    def find(self, image: Image.Image | str | None, side: int, coarseness: str) -> tuple[Image.Image, list[ClusterMap]]:
        """The image at the size that the model sees, and its clusters."""
        image, pixel_values = prepare_image(checked(image, self.processor), self.processor, side, LONGEST_SIDE)
        return image, find_cluster_maps(self.coarser(FACTORS[coarseness]), pixel_values)


def pick(found: tuple | None, stage: int, block: int, scale: int) -> ClusterMap | None:
    """What was found at a place."""
    maps = found[1] if found else []
    return next((m for m in maps if (m.stage, m.block, m.scale) == (stage, block, scale)), None)


def show_clusters(found: tuple | None, stage: int, block: int, scale: int, cluster: int | None = None):
    """Picture and caption of the clusters at a place; of one of them, if it is named."""
    chosen = pick(found, stage, block, scale)
    if chosen is None:
        return None, "Choose an image." if not found else "This stage has no such block or scale."
    height, width = chosen.grid_size
    side = max(1, PICTURE_WIDTH // width)
    picture = found[0].resize((width * side, height * side), Image.Resampling.BICUBIC)
    place = f"Stage {stage}, block {block}, scale {scale}"
    caption = f"{place}: {height} x {width} patches in {chosen.num_clusters} clusters."
    if cluster is not None:
        members = int((chosen.cluster_index == cluster).sum())
        caption += f" The bright {members} are one of them; press *Find clusters* to see all again."
    return draw_clusters(picture, chosen.cluster_index, chosen.grid_size, cluster), caption


def click(found: tuple | None, stage: int, block: int, scale: int, picture, event: gr.EventData):
    """
    The cluster of the patch that was clicked on; all clusters where there is no click, as in calls by programs. (A
    `gr.SelectData` cannot be made without one.)
    """
    chosen, place = pick(found, stage, block, scale), place_of(event)
    if chosen is None or picture is None or place is None:
        return show_clusters(found, stage, block, scale)
    column, row = place
    height, width = chosen.grid_size
    row, column = (
        min(extent - 1, max(0, int(at * extent / size)))
        for at, extent, size in ((row, height, picture.height), (column, width, picture.width))
    )
    return show_clusters(found, stage, block, scale, int(chosen.cluster_index[row * width + column]))


def place_of(event: gr.EventData) -> tuple[float, float] | None:
    """Column and row of the pixel that was clicked on."""
    try:
        column, row = map(float, event.index)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return (column, row) if abs(column) < MAX_NUMBER and abs(row) < MAX_NUMBER else None  # false for NaN


def chosen_one(views: dict[str, ClusterView], title: str | None, *settings) -> ClusterView:
    """The view of a title, or a message on the page if nothing is chosen: programs may leave out what people cannot."""
    if title is None or None in settings:
        raise gr.Error("Choose a model and all settings first.")
    return views[title]


def find_first(view: ClusterView) -> tuple[Image.Image, list[ClusterMap]] | None:
    """What the tab shows before anyone has done anything: the clusters of its first example."""
    try:
        return view.find(example_paths("Clusters")[0], SIDE, COARSENESS)
    except Exception:  # a page that opens without it is better than none
        return None


def add_cluster_tab(pipelines: dict[str, Pipeline]):
    """The tab, for the models of all other tabs."""
    with gr.Tab("Clusters"):
        views = {title: ClusterView(run) for title, run in pipelines.items()}
        views = {title: view for title, view in views.items() if view.stages}
        if not views:
            gr.Markdown("No model is here whose clusters could be shown.")
            return
        first, view = next(iter(views.items()))
        first_stage = view.stages[0]
        gr.Markdown(
            "Every patch is painted in the mean colour of its cluster. Clusters follow what a place shows, not where "
            "it is. Click on a patch to see its cluster alone."
        )
        start = find_first(view)
        first_picture, first_caption = show_clusters(start, first_stage, 1, 1)
        found = gr.State(start)
        with gr.Row():
            with gr.Column(scale=1):
                image = add_image("Clusters")
                title = gr.Radio(list(views), value=first, label="Model", visible=len(views) > 1, elem_id="model")
                side = gr.Slider(*SIDES, SIDE, step=32, label="Shorter side in pixels")
                coarseness = gr.Radio(list(FACTORS), value=COARSENESS, label="Patches in a cluster")
                button = gr.Button("Find clusters", variant="primary", elem_id="find-clusters")
            with gr.Column(scale=2, elem_classes="result"):
                picture = gr.Image(
                    first_picture, type="pil", format="png", label="Clusters", interactive=False, elem_id="clusters"
                )
                caption = gr.Markdown(first_caption, elem_id="caption")
                with gr.Row():
                    stage = gr.Radio(view.stages, value=first_stage, label="Stage", elem_id="stage")
                    block = gr.Radio(view.blocks(first_stage), value=1, label="Block", elem_id="block")
                    scale = gr.Radio(view.scales(first_stage), value=1, label="Scale", elem_id="scale")
        place, shown = [found, stage, block, scale], [picture, caption]

        def find(title, image, *settings):
            return None if image is None else chosen_one(views, title, *settings).find(image, *settings)

        def choose_model(title):
            stages = chosen_one(views, title).stages
            return gr.Radio(stages, value=stages[0]), *choose_stage(title, stages[0])

        def choose_stage(title, stage):
            view = chosen_one(views, title, stage)
            return gr.Radio(view.blocks(stage), value=1), gr.Radio(view.scales(stage), value=1)

        settings = [title, image, side, coarseness]
        gr.on([button.click, image.change], find, settings, found).then(show_clusters, place, shown)
        title.input(choose_model, title, [stage, block, scale]).then(find, settings, found).then(
            show_clusters, place, shown
        )
        stage.input(choose_stage, [title, stage], [block, scale]).then(show_clusters, place, shown)
        gr.on([block.input, scale.input], show_clusters, place, shown)
        picture.select(click, [*place, picture], shown)
        add_examples("Clusters", image)
