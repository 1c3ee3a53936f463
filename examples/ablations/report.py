# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The files of a table: scores and costs next to the paper's, and training curves."""

import json
from collections.abc import Sequence
from pathlib import Path

from ablations.costs import measure_costs
from ablations.markdown import format_results
from ablations.scores import METRICS, compare, read_runs
from ablations.tables import ROWS, TABLES, Table
from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import write_picture
from clustr_hf.visualization import plot_compared_curves


def report_table(name: str, runs: Sequence, args) -> str:
    """
    Write `table-NAME.json`, `.md` and `.png` to the output folder, and print the table.

    Args:
        name (`str`): Name of a table in `TABLES`.
        runs (`Sequence[Run]`): The complete runs of the table.
        args (`AblationArguments`): The arguments of the command.

    Returns:
        `str`: the table in Markdown.
    """
    table, folder = TABLES[name], Path(args.output_dir)
    costs = measure_costs(table, args)
    results = {"rows": {}, "runs": read_runs(runs)}
    for row in table.rows:
        reference = ROWS[row].reference or table.reference
        scores = {task: compare(results["runs"], task, row, reference) for task in METRICS}
        results["rows"][row] = {"title": ROWS[row].title, "paper": ROWS[row].paper, **costs[row], **scores}
    text = format_results(table, results["rows"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"table-{name}.json", results)
    (folder / f"table-{name}.md").write_text(text)
    draw_curves(table, runs, folder / f"table-{name}.png")
    print(text)
    return text


def draw_curves(table: Table, runs: Sequence, path: Path):
    """Draw training loss and accuracy of the classification runs (as in Figures A1 and A2)."""
    histories = {}
    for row in table.rows:
        folders = [run.folder for run in runs if run.row == row and run.task == "classification"]
        if folders:
            histories[ROWS[row].title] = [json.loads((folder / "log_history.json").read_text()) for folder in folders]
    if histories:
        write_picture(plot_compared_curves(histories), path)
