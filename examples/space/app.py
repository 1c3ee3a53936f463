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
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from space_clusters import add_cluster_tab
from space_inputs import (
    CSS,
    add_examples,
    add_image,
    ask,
    example_paths,
    parse_boxes,
    refuse_costly_files,
    slug_of,
)
from space_models import HERE, TASKS, SpaceModels, load_models
from transformers import Pipeline

from clustr_hf.remote_code.handler_clustr import MAX_FILE_BYTES
from clustr_hf.visualization import class_colors, draw_answers


BOXES_HELP = (
    "Boxes of persons as x, y, width, height in pixels, one a line. Without, the model of object detection finds them, "
    "if it knows persons; else the image is one."
)
SWATCH = '<div style="width: 1.2em; height: 1.2em; background: rgb({}, {}, {})"></div>'
# Detections of lower scores are not shown, unless people set another one.
THRESHOLD = 0.3
# Fonts of the machine: a page that asks for none of a font server's loads anywhere. The theme's own labels and buttons
# are paler than the contrast of 4.5 that text needs.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    button_primary_background_fill="*primary_600",
    checkbox_label_background_fill_selected="*primary_600",
    color_accent="*primary_700",
    body_text_color_subdued="*neutral_600",
)


def describe(answers: list[dict], names: list[str]) -> str:
    """
    A table (HTML) with a row for each class: its colour, how many there are and the range of their scores, the best
    first. Classes of pixels have no score, but a share of the image; instances and persons have no colour of their
    class.
    """
    if not answers:
        return "Nothing was found."
    groups: dict[str, list[dict]] = {}
    for answer in answers:
        groups.setdefault(answer.get("label", "person"), []).append(answer)
    has_scores = answers[0].get("score") is not None
    values = {
        label: [answer["score"] if has_scores else _share_of(answer["mask"]) for answer in group]
        for label, group in groups.items()
    }
    has_colors = "keypoints" not in answers[0] and not (has_scores and "mask" in answers[0])
    rows = [
        _row(label, values[label], has_scores, names if has_colors else [])
        for label in sorted(values, key=lambda label: -max(values[label]))
    ]
    heads = ("", "Class", "Number", "Score") if has_scores else ("", "Class", "Share of the image")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _share_of(mask: Any) -> float:
    return np.asarray(mask).astype(bool).mean().item()


def _row(label: str, values: list[float], has_scores: bool, names: list[str]) -> str:
    swatch = SWATCH.format(*class_colors(len(names))[names.index(label)]) if label in names else ""
    if has_scores:
        least, most = f"{min(values):.2f}", f"{max(values):.2f}"
        cells = [str(len(values)), most if least == most else f"{least} to {most}"]
    else:
        cells = [f"{100 * sum(values):.1f} %"]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in (swatch, html.escape(label), *cells)) + "</tr>"


def add_task_tab(title: str, run: Pipeline | None, name: str | None):
    """A tab with an image, what can be set, and what the model says."""
    slug = slug_of(title)
    with gr.Tab(title):
        if run is None:
            gr.Markdown(
                f"No model for this task is here. Train one with the commands in `docs/`, and start the "
                f"Space with its folder; or list it in `models.json`. It must be a {TASKS[title]}."
            )
            return
        gr.Markdown(f"Model: {name}")
        predict = make_predict(title, run)
        with gr.Row():
            with gr.Column():
                image, settings = add_image(title), []
                if title in ("Object detection", "Instance segmentation", "Poses"):
                    settings.append(gr.Slider(0, 1, THRESHOLD, step=0.05, label="Score threshold"))
                if title == "Poses":
                    settings.append(gr.Textbox(lines=2, label="Boxes", info=BOXES_HELP))
                button = gr.Button("Predict", variant="primary", elem_id=f"predict-{slug}")
            with gr.Column(elem_classes="result"):
                outputs = _add_outputs(title, first_answer(title, predict))
        examples = add_examples(title, image)
        events = [button.click, image.upload, *(slider.release for slider in settings[:1])]
        gr.on(events, predict, [image, *settings], outputs, trigger_mode="always_last")
        examples.load_input_event.then(predict, [image, *settings], outputs)


def _add_outputs(title: str, values: tuple) -> list:
    """Where a tab says what its model has found."""
    slug = slug_of(title)
    if title == "Classification":
        return [gr.Label(values[0], num_top_classes=5, label="Prediction", elem_id=f"answer-{slug}")]
    return [
        gr.Image(values[0], label="Prediction", format="png", interactive=False, elem_id=f"picture-{slug}"),
        gr.HTML(values[1], elem_id=f"answer-{slug}"),
    ]


def first_answer(title: str, predict: Callable) -> tuple:
    """What a tab shows before anyone has done anything: the answer for its first example."""
    threshold = () if title in ("Classification", "Semantic segmentation") else (THRESHOLD,)
    try:
        answer = predict(example_paths(title)[0], *threshold)
    except Exception as error:  # a page that opens without it is better than none
        text = html.escape(f"{type(error).__name__}: {str(error)[:200]}")
        return None, f"The first example could not be answered: {text}"
    return answer if isinstance(answer, tuple) else (answer,)


def make_predict(title: str, run: Pipeline):
    """What the button of a tab does."""

    def classify(image):
        return {found["label"]: found["score"] for found in ask(run, image, top_k=5)[1]}

    def predict(image, threshold=None, boxes=""):
        parameters = {} if threshold is None else {"threshold": threshold}
        if title == "Poses":
            parameters["boxes"] = parse_boxes(boxes)
        image, answers = ask(run, image, **parameters)
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
    refuse_costly_files()
    page = build_space(load_models(args.models))
    limits = {"max_file_size": MAX_FILE_BYTES, "allowed_paths": [str(HERE / "images")]}
    page.launch(server_port=args.port, theme=THEME, css=CSS, ssr_mode=False, **limits)


if __name__ == "__main__":
    main()
