#!/usr/bin/env python
# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
A Gradio Space that shows ClusTR's predictions for an image, with a tab for each task, and its clusters.

    python examples/space/app.py                              # the bundled checkpoint
    python examples/space/app.py out/camvid me/clustr-bccd@4f2a0c9

A Space shows the models listed in `models.json` beside this file. They run with the classes of the package; code in
their repositories is never run.
"""

import argparse
import os

import gradio as gr
from space_clusters import add_cluster_tab
from space_inputs import (
    CSS,
    refuse_costly_files,
)
from space_models import HERE, TASKS, SpaceModels, load_models
from space_tasks import add_task_tab

from clustr_hf.remote_code.handler_clustr import MAX_FILE_BYTES


# System fonts, so that the page loads without a font server. The colours give labels and buttons the contrast of 4.5
# that text needs, which the theme's own colours do not.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    button_primary_background_fill="*primary_600",
    checkbox_label_background_fill_selected="*primary_600",
    color_accent="*primary_700",
    body_text_color_subdued="*neutral_600",
)


def build_space(models: SpaceModels) -> gr.Blocks:
    """The page with all tabs."""
    with gr.Blocks(title="ClusTR", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# ClusTR\nA vision transformer that attends to clusters of patches instead of a grid.")
        for note in models.notes:
            gr.Markdown(f"**Note:** {note}")
        add_cluster_tab(models.pipelines)
        for title in TASKS:
            add_task_tab(title, models.pipelines.get(title), models.names.get(title))
    return page


def main():
    parser = argparse.ArgumentParser(description="Serve a page with ClusTR's predictions and clusters.")
    parser.add_argument("models", nargs="*", help="folders or ids on the Hub (id@revision); default: models.json")
    parser.add_argument(
        "--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)), help="port; default: %(default)s"
    )
    args = parser.parse_args()
    refuse_costly_files()
    page = build_space(load_models(args.models))
    limits = {"max_file_size": MAX_FILE_BYTES, "allowed_paths": [str(HERE / "images")]}
    page.launch(server_port=args.port, theme=THEME, css=CSS, ssr_mode=False, **limits)


if __name__ == "__main__":
    main()
