#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A Gradio Space: ClusTR's predictions for an image, a tab for each task, and the clusters that it finds on the way.

    python examples/space/app.py                              # the checkpoint that `make demo` leaves
    python examples/space/app.py out/camvid me/clustr-bccd@4f2a0c9

As a Space it shows the models that `models.json` beside it lists. Runs their code: name models that you trust.
"""

import argparse
import os
from functools import lru_cache
from pathlib import Path

import gradio as gr
from PIL import Image
from space_models import HERE, TASKS, SpaceModels, load_models
from transformers import Pipeline

from clustr_hf.handler_clustr import RequestError, read_image
from clustr_hf.visualization import (
    ClusterMap,
    coarsen_clusters,
    draw_answers,
    draw_clusters,
    find_cluster_maps,
    prepare_image,
)


EXAMPLES = sorted(str(path) for path in (HERE / "images").iterdir())
FACTORS = {"as trained": 1, "4 times": 4, "16 times": 16, "64 times": 64}
SIDES = (32, 448)  # pixels of the shorter side of an image whose clusters are looked for
LONGEST_SIDE = 896
BOXES_HELP = "Boxes of persons as x, y, width, height in pixels, one a line; without, the image is one person"
# Fonts of the machine: a page that asks for none of a font server's loads anywhere.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def checked(image: Image.Image | None) -> Image.Image:
    """The image, or a message on the page if there is none or it is too large."""
    if image is None:
        raise gr.Error("Choose an image first.")
    try:
        return read_image(image).convert("RGB")
    except RequestError as error:
        raise gr.Error(str(error)) from error


def parse_boxes(text: str) -> list[list[float]] | None:
    """Boxes (x, y, width, height) from lines of four numbers; `None` for no text."""
    try:
        boxes = [[float(number) for number in line.split(",")] for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise gr.Error(f"Boxes must be numbers with commas between them: {error}") from error
    if any(len(box) != 4 or min(box[2:]) <= 0 for box in boxes):
        raise gr.Error("Every box must have four numbers: x, y, width, height, the last two positive.")
    return boxes or None


def describe(answers: list[dict]) -> list[list[str]]:
    """Label and score of each answer, the best first; persons have no label."""
    rows = [[answer.get("label", "person"), answer.get("score")] for answer in answers]
    rows.sort(key=lambda row: -(row[1] or 0))
    return [[label, "" if score is None else f"{score:.3f}"] for label, score in rows]


def add_task_tab(title: str, run: Pipeline | None, name: str | None):
    """A tab with an image, what can be set, and what the model says."""
    with gr.Tab(title):
        if run is None:
            gr.Markdown(
                f"No model for this task is here. Train one with the commands in `examples/README.md`, and start the "
                f"Space with its folder; or list it in `models.json`. It must be one of {', '.join(TASKS[title])}."
            )
            return
        gr.Markdown(f"Model: {name}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", label="Image", height=400, elem_id=f"image-{_slug(title)}")
                settings = []
                if title in ("Object detection", "Instance segmentation", "Poses"):
                    settings.append(gr.Slider(0, 1, 0.3, step=0.05, label="Least score"))
                if title == "Poses":
                    settings.append(gr.Textbox(lines=2, label="Boxes", info=BOXES_HELP))
                button = gr.Button("Predict", variant="primary", elem_id=f"predict-{_slug(title)}")
            with gr.Column():
                if title == "Classification":
                    outputs = [gr.Label(num_top_classes=5, label="Prediction", elem_id=f"answer-{_slug(title)}")]
                else:
                    outputs = [
                        gr.Image(label="Prediction", format="png", elem_id=f"picture-{_slug(title)}"),
                        gr.Dataframe(headers=["label", "score"], label="Found", elem_id=f"answer-{_slug(title)}"),
                    ]
        button.click(make_predict(title, run), [image, *settings], outputs)
        gr.Examples(EXAMPLES, image, label="Examples", elem_id=f"examples-{_slug(title)}")


def make_predict(title: str, run: Pipeline):
    """What the button of a tab does."""

    def classify(image):
        return {answer["label"]: answer["score"] for answer in run(checked(image), top_k=5)}

    def predict(image, threshold=None, boxes=""):
        image = checked(image)
        parameters = {} if threshold is None else {"threshold": threshold}
        if title == "Poses":
            parameters["boxes"] = parse_boxes(boxes)
        answers = run(image, **parameters)
        return draw_answers(image, answers, run.model.config), describe(answers)

    return classify if title == "Classification" else predict


class ClusterView:
    """The clusters of one model: found once for an image and its settings, looked at as often as one likes."""

    def __init__(self, run: Pipeline):
        self.processor, self.model = run.image_processor, run.model
        self.coarser = lru_cache(lambda factor: coarsen_clusters(self.model, factor))

    def find(self, image: Image.Image | None, side: int, coarseness: str) -> tuple[Image.Image, list[ClusterMap]]:
        """The image at the size that the model sees, and its clusters."""
        image, pixel_values = prepare_image(checked(image), self.processor, side, LONGEST_SIDE)
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
    picture = found[0].resize((width * max(1, 640 // width), height * max(1, 640 // width)), Image.Resampling.BICUBIC)
    place = f"Stage {stage}, block {block}, scale {scale}"
    caption = f"{place}: {height} x {width} patches in {chosen.num_clusters} clusters."
    if cluster is not None:
        members = int((chosen.cluster_index == cluster).sum())
        caption += f" The bright {members} are one of them; press *Find clusters* to see all again."
    return draw_clusters(picture, chosen.cluster_index, chosen.grid_size, cluster), caption


def click(found: tuple | None, stage: int, block: int, scale: int, picture, event: gr.SelectData):
    """The cluster of the patch that was clicked on."""
    chosen = pick(found, stage, block, scale)
    if chosen is None or picture is None:
        return show_clusters(found, stage, block, scale)
    column, row = event.index
    height, width = chosen.grid_size
    row, column = (
        min(extent - 1, int(at * extent / size))
        for at, extent, size in ((row, height, picture.height), (column, width, picture.width))
    )
    return show_clusters(found, stage, block, scale, int(chosen.cluster_index[row * width + column]))


def add_cluster_tab(run: Pipeline | None):
    """A tab that shows which patch went to which cluster, at any stage, block and scale (as in Figure A3)."""
    with gr.Tab("Clusters"):
        if run is None:
            gr.Markdown("No model is here whose clusters could be shown. `make demo` trains a small one.")
            return
        view, config = ClusterView(run), run.model.config
        stages = [i for i, ratios in enumerate(config.reduction_ratios, start=1) if max(ratios) > 1]
        gr.Markdown(
            "Every patch is painted in the mean colour of its cluster. Clusters follow what a place shows, not where "
            "it is. Click on a patch to see its cluster alone."
        )
        found = gr.State()
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(type="pil", label="Image", height=400, elem_id="image-clusters")
                side = gr.Slider(*SIDES, 224, step=32, label="Shorter side in pixels")
                coarseness = gr.Radio(list(FACTORS), value="16 times", label="Patches in a cluster")
                button = gr.Button("Find clusters", variant="primary", elem_id="find-clusters")
            with gr.Column(scale=2):
                with gr.Row():
                    stage = gr.Radio(stages, value=stages[0], label="Stage", elem_id="stage")
                    block = gr.Radio(blocks(config, stages[0]), value=1, label="Block", elem_id="block")
                    scale = gr.Radio(scales(config, stages[0]), value=1, label="Scale", elem_id="scale")
                picture = gr.Image(type="pil", format="png", label="Clusters", interactive=False, elem_id="clusters")
                caption = gr.Markdown("Choose an image.", elem_id="caption")
        place, shown = [found, stage, block, scale], [picture, caption]
        gr.on(
            [button.click, image.change],
            lambda *settings: view.find(*settings) if settings[0] else None,
            [image, side, coarseness],
            found,
        ).then(show_clusters, place, shown)
        stage.change(
            lambda number: (gr.Radio(blocks(config, number), value=1), gr.Radio(scales(config, number), value=1)),
            stage,
            [block, scale],
        ).then(show_clusters, place, shown)
        gr.on([block.input, scale.input], show_clusters, place, shown)
        picture.select(click, [*place, picture], shown)
        gr.Examples(EXAMPLES, image, label="Examples", elem_id="examples-clusters")


def blocks(config, stage: int) -> list[int]:
    return list(range(1, config.depths[stage - 1] + 1))


def scales(config, stage: int) -> list[int]:
    return list(range(1, len(config.reduction_ratios[stage - 1]) + 1))


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def build_space(models: SpaceModels) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="ClusTR", analytics_enabled=False) as page:
        gr.Markdown("# ClusTR\nA vision transformer whose attention looks at clusters of patches instead of a grid.")
        for note in models.notes:
            gr.Markdown(f"**Note:** {note}")
        add_cluster_tab(next(iter(models.pipelines.values()), None))
        for title in TASKS:
            add_task_tab(title, models.pipelines.get(title), models.names.get(title))
    return page


def main():
    parser = argparse.ArgumentParser(description="Show ClusTR's predictions and clusters on a page.")
    parser.add_argument("models", nargs="*", help="folders, or ids on the Hub (id@revision); default: models.json")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
    args = parser.parse_args()
    page = build_space(load_models(args.models))
    page.launch(server_port=args.port, theme=THEME, ssr_mode=False, allowed_paths=[str(Path(HERE) / "images")])


if __name__ == "__main__":
    main()
