#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A Gradio Space: ClusTR's predictions for an image, a tab for each task, and the clusters that it finds on the way.

    python examples/space/app.py                              # the checkpoint of the package
    python examples/space/app.py out/camvid me/clustr-bccd@4f2a0c9

As a Space it shows the models that `models.json` beside it lists, by the classes of the package: their code is not run.
"""

import argparse
import html
import os

import gradio as gr
import numpy as np
from space_clusters import add_cluster_tab
from space_inputs import EXAMPLES, checked, parse_boxes, refuse_large_images
from space_models import HERE, TASKS, SpaceModels, load_models
from transformers import Pipeline

from clustr_hf.handler_clustr import MAX_FILE_BYTES
from clustr_hf.visualization import class_colors, draw_answers


BOXES_HELP = (
    "Boxes of persons as x, y, width, height in pixels, one a line. Without, the model of object detection finds them, "
    "if it knows persons; else the image is one."
)
SWATCH = '<div style="width: 1.2em; height: 1.2em; background: rgb({}, {}, {})"></div>'
# Fonts of the machine: a page that asks for none of a font server's loads anywhere.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def describe(answers: list[dict], names: list[str]) -> str:
    """
    A table (HTML) of colour, label and score of each answer, the best first. Classes of pixels have no score, but a
    share of the image; instances and persons have no colour of their class.
    """
    colors = class_colors(len(names))
    rows = []
    for answer in answers:
        label, score, mask = answer.get("label", "person"), answer.get("score"), answer.get("mask")
        has_color = label in names and (mask is None or score is None)
        swatch = SWATCH.format(*colors[names.index(label)]) if has_color else ""
        value = score if score is not None else np.asarray(mask).astype(bool).mean()
        text = f"{score:.3f}" if score is not None else f"{100 * value:.1f} %"
        rows.append((value, f"<tr><td>{swatch}</td><td>{html.escape(label)}</td><td>{text}</td></tr>"))
    rows.sort(key=lambda row: -row[0])
    return f"<table>{''.join(row for _, row in rows)}</table>" if rows else "Nothing was found."


def add_task_tab(title: str, run: Pipeline | None, name: str | None):
    """A tab with an image, what can be set, and what the model says."""
    slug = title.lower().replace(" ", "-")
    with gr.Tab(title):
        if run is None:
            gr.Markdown(
                f"No model for this task is here. Train one with the commands in `examples/README.md`, and start the "
                f"Space with its folder; or list it in `models.json`. It must be a {TASKS[title]}."
            )
            return
        gr.Markdown(f"Model: {name}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", image_mode=None, label="Image", height=400, elem_id=f"image-{slug}")
                settings = []
                if title in ("Object detection", "Instance segmentation", "Poses"):
                    settings.append(gr.Slider(0, 1, 0.3, step=0.05, label="Least score"))
                if title == "Poses":
                    settings.append(gr.Textbox(lines=2, label="Boxes", info=BOXES_HELP))
                button = gr.Button("Predict", variant="primary", elem_id=f"predict-{slug}")
            with gr.Column():
                if title == "Classification":
                    outputs = [gr.Label(num_top_classes=5, label="Prediction", elem_id=f"answer-{slug}")]
                else:
                    outputs = [
                        gr.Image(label="Prediction", format="png", elem_id=f"picture-{slug}"),
                        gr.HTML(elem_id=f"answer-{slug}"),
                    ]
        button.click(make_predict(title, run), [image, *settings], outputs)
        gr.Examples(EXAMPLES, image, label="Examples", elem_id=f"examples-{slug}")


def make_predict(title: str, run: Pipeline):
    """What the button of a tab does."""

    def classify(image):
        return {answer["label"]: answer["score"] for answer in run(checked(image, run.image_processor), top_k=5)}

    def predict(image, threshold=None, boxes=""):
        image = checked(image, run.image_processor)
        parameters = {} if threshold is None else {"threshold": threshold}
        if title == "Poses":
            parameters["boxes"] = parse_boxes(boxes)
        answers = run(image, **parameters)
        config = run.model.config
        return draw_answers(image, answers, config), describe(answers, list(config.id2label.values()))

    return classify if title == "Classification" else predict


def build_space(models: SpaceModels) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="ClusTR", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# ClusTR\nA vision transformer whose attention looks at clusters of patches instead of a grid.")
        for note in models.notes:
            gr.Markdown(f"**Note:** {note}")
        add_cluster_tab(models.pipelines)
        for title in TASKS:
            add_task_tab(title, models.pipelines.get(title), models.names.get(title))
    return page


def main():
    parser = argparse.ArgumentParser(description="Show ClusTR's predictions and clusters on a page.")
    parser.add_argument("models", nargs="*", help="folders, or ids on the Hub (id@revision); default: models.json")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
    args = parser.parse_args()
    refuse_large_images()
    page = build_space(load_models(args.models))
    limits = {"max_file_size": MAX_FILE_BYTES, "allowed_paths": [str(HERE / "images")]}
    page.launch(server_port=args.port, theme=THEME, ssr_mode=False, **limits)


if __name__ == "__main__":
    main()
