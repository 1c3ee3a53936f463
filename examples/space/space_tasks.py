# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tab of a task."""

import html
from collections.abc import Callable

import gradio as gr
from space_answers import describe
from space_inputs import add_examples, add_image, ask, example_paths, parse_boxes, slug_of
from space_models import TASKS
from transformers import Pipeline

from clustr_hf.visualization import (
    draw_answers,
)


BOXES_HELP = (
    "Boxes of persons as x, y, width, height in pixels, one per line. Without boxes, the object detection model finds "
    "them if it can detect persons; otherwise the whole image is taken as one person."
)
# Initial score threshold.
THRESHOLD = 0.3


def add_task_tab(title: str, run: Pipeline | None, name: str | None):
    """Add a tab with an image, the settings of the task, and the predictions of the model."""
    slug = slug_of(title)
    with gr.Tab(title):
        if run is None:
            gr.Markdown(
                f"There is no model for this task. Train a {TASKS[title]} with the commands in `docs/`, "
                f"and start the Space with its folder or list it in `models.json`."
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
    """The components that show the predictions of a tab."""
    slug = slug_of(title)
    if title == "Classification":
        return [gr.Label(values[0], num_top_classes=5, label="Prediction", elem_id=f"answer-{slug}")]
    return [
        gr.Image(values[0], label="Prediction", format="png", interactive=False, elem_id=f"picture-{slug}"),
        gr.HTML(values[1], elem_id=f"answer-{slug}"),
    ]


def first_answer(title: str, predict: Callable) -> tuple:
    """The predictions for the first example, which the tab shows when the page opens."""
    threshold = () if title in ("Classification", "Semantic segmentation") else (THRESHOLD,)
    try:
        answer = predict(example_paths(title)[0], *threshold)
    except Exception as error:  # the page opens even if the first example fails
        text = html.escape(f"{type(error).__name__}: {str(error)[:200]}")
        return None, f"The model failed on the first example: {text}"
    return answer if isinstance(answer, tuple) else (answer,)


def make_predict(title: str, run: Pipeline):
    """The function that the button of a tab calls."""

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
