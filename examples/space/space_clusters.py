# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tab that shows the clusters of patches in any stage, block and scale (as in Figure A3)."""

import gradio as gr
from space_cluster_views import BUDGETS, FACTORS, SAME, ClusterView, Found, click, show_clusters
from space_inputs import add_examples, add_image, example_paths
from transformers import Pipeline


SIDES = (32, 448)  # minimum and maximum of the image's shorter side in pixels
# Initial settings.
SIDE = 224
COARSENESS = "16 times"


def chosen_view(views: dict[str, ClusterView], title: str | None, *settings) -> ClusterView:
    """The view of a title, or a message on the page if a setting is missing, which API calls may leave out."""
    if title is None or None in settings:
        raise gr.Error("Choose a model and all settings first.")
    return views[title]


def find_first(view: ClusterView) -> Found | None:
    """The clusters of the first example, which the tab shows when the page opens."""
    try:
        return view.find(example_paths("Clusters")[0], SIDE, COARSENESS)
    except Exception:  # the page opens even if the first example fails
        return None


def add_cluster_tab(pipelines: dict[str, Pipeline]):
    """Add the tab, which offers the models of all other tabs."""
    with gr.Tab("Clusters"):
        views = {title: ClusterView(run) for title, run in pipelines.items()}
        views = {title: view for title, view in views.items() if view.stages}
        if not views:
            gr.Markdown("There is no model with clusters.")
            return
        view = next(iter(views.values()))
        gr.Markdown(
            "Every patch is painted in the mean colour of its cluster. Patches form a cluster because they look alike, "
            "wherever they are. Click on a patch to highlight its cluster. With a limit for merging, clusters that are "
            "alike are merged, and a plain image takes fewer of them than a crowded one."
        )
        start = find_first(view)
        found = gr.State(start)
        with gr.Row():
            with gr.Column(scale=1):
                settings, button = _add_settings(list(views))
            with gr.Column(scale=2, elem_classes="result"):
                place, shown = _add_result(view, start)
        _connect(views, settings, button, found, place, shown)
        add_examples("Clusters", settings[1])


def _add_settings(titles: list[str]) -> tuple[list, gr.Button]:
    """Model, image, side, coarseness and budget, and the button."""
    image = add_image("Clusters")
    title = gr.Radio(titles, value=titles[0], label="Model", visible=len(titles) > 1, elem_id="model")
    side = gr.Slider(*SIDES, SIDE, step=32, label="Shorter side in pixels")
    coarseness = gr.Radio(list(FACTORS), value=COARSENESS, label="Patches per cluster")
    budget = gr.Radio(
        list(BUDGETS),
        value=SAME,
        elem_id="budget",
        label="Number of clusters: merge while it costs at most this share of the variance",
    )
    button = gr.Button("Find clusters", variant="primary", elem_id="find-clusters")
    return [title, image, side, coarseness, budget], button


def _add_result(view: ClusterView, start: Found | None) -> tuple[list, list]:
    """Stage, block and scale; picture and caption."""
    first_stage = view.stages[0]
    first_picture, first_caption = show_clusters(start, first_stage, 1, 1)
    picture = gr.Image(first_picture, type="pil", format="png", label="Clusters", interactive=False, elem_id="clusters")
    caption = gr.Markdown(first_caption, elem_id="caption")
    with gr.Row():
        stage = gr.Radio(view.stages, value=first_stage, label="Stage", elem_id="stage")
        block = gr.Radio(view.blocks(first_stage), value=1, label="Block", elem_id="block")
        scale = gr.Radio(view.scales(first_stage), value=1, label="Scale", elem_id="scale")
    return [stage, block, scale], [picture, caption]


def _connect(
    views: dict[str, ClusterView], settings: list, button: gr.Button, found: gr.State, place: list, shown: list
):
    """The events of the tab."""
    title, image, *_, budget = settings
    stage, block, scale = place
    picture = shown[0]

    def find(title, image, *settings):
        return None if image is None else chosen_view(views, title, *settings).find(image, *settings)

    def choose_model(title):
        stages = chosen_view(views, title).stages
        return gr.Radio(stages, value=stages[0]), *choose_stage(title, stages[0])

    def choose_stage(title, stage):
        view = chosen_view(views, title, stage)
        return gr.Radio(view.blocks(stage), value=1), gr.Radio(view.scales(stage), value=1)

    show = (show_clusters, [found, *place], shown)
    gr.on([button.click, image.change], find, settings, found).then(*show)
    budget.input(find, settings, found).then(*show)
    title.input(choose_model, title, place).then(find, settings, found).then(*show)
    stage.input(choose_stage, [title, stage], [block, scale]).then(*show)
    gr.on([block.input, scale.input], *show)
    picture.select(click, [found, *place, picture], shown)
