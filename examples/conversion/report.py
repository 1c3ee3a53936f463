# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The table of the study: accuracy of each row, beside the source's, and the comparisons that the study is about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.markdown import in_points
from ablations.runs import Run
from ablations.scores import compare, read_runs
from benchmark.report.cells import markdown_table

from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import RESULTS
from conversion.arguments import ConversionStudyArguments
from conversion.rows import COMPARISONS, STARTS, STEPS, titles
from conversion.runs import Conversion


TASKS = {"classification": "top-1 (%)", "segmentation": "mean IoU (%)"}


def report(runs: Sequence[Run], args: ConversionStudyArguments) -> str:
    """
    Write `table.json` and `table.md` of the complete runs to the output folder, and print the tables.

    Returns:
        `str`: the tables in Markdown.
    """
    scores, names = read_scores(runs), titles(args.num_epochs)
    results: dict[str, Any] = {"runs": scores}
    texts = []
    for task in TASKS:
        rows = {row: compare(scores, task, row, "source") for row in names}
        rows = {row: result for row, result in rows.items() if result is not None}
        pairs = {pair: compare(scores, task, *pair) for pair in COMPARISONS if set(pair) <= rows.keys()}
        pairs = {pair: result for pair, result in pairs.items() if result is not None}
        results[task] = {"rows": rows, "comparisons": [{"rows": pair, **result} for pair, result in pairs.items()]}
        texts += [format_table(task, rows, pairs, names)] if rows else []
    write(args, "table", results, "\n".join(texts))
    return "\n".join(texts)


def report_choices(runs: Sequence[Run], args: ConversionStudyArguments) -> None:
    """Write `choices.json` and `choices.md`: accuracy and loss of the complete runs on the images for choices."""
    chosen = [run for run in runs if run.folder.parent.name == "choices"]
    results = [json.loads((run.folder / RESULTS).read_text()) for run in chosen]
    lines = [
        [run.folder.name, f"{100 * result['eval_accuracy']:.1f}", f"{result['eval_loss']:.3f}"]
        for run, result in zip(chosen, results)
    ]
    text = markdown_table(["run", "top-1 (%)", "loss"], lines) + "\n"
    write(args, "choices", {run.folder.name: result for run, result in zip(chosen, results)}, text)


def write(args: ConversionStudyArguments, name: str, results: dict[str, Any], text: str) -> None:
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", results)
    (folder / f"{name}.md").write_text(text)
    print(text)


def read_scores(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Row, seed, task and score of each training, and of each step of each conversion."""
    scores = read_runs([run for run in runs if not isinstance(run, Conversion)])
    for run in runs:
        if isinstance(run, Conversion) and STARTS[run.row].is_calibrated:
            steps = json.loads((run.folder / RESULTS).read_text())["scores"]
            scores += [
                {
                    "row": f"{run.row}-{step}",
                    "seed": run.seed,
                    "task": "classification",
                    "score": steps[step]["eval_accuracy"],
                    "attention_off": steps["attention off"]["eval_accuracy"],
                    "samples": steps[step]["eval_samples"],
                }
                for step in STEPS
            ]
    return scores


def format_table(task: str, rows: dict[str, Any], pairs: dict[tuple[str, str], Any], names: dict[str, str]) -> str:
    """The table of a task in Markdown, with the comparisons below it."""
    header = [
        "model" if task == "classification" else "start",
        TASKS[task],
        "difference from the source",
        "of the source's (%)",
        "attention off",
    ]
    lines = []
    for row, result in rows.items():
        share = 100 * result["mean"] / rows["source"]["mean"] if "source" in rows else None
        off = result["attention_off"]
        cells = [names[row], in_points(result["mean"], result["std"], "{:.1f}"), _difference(result)]
        cells += ["-" if share is None else f"{share:.1f}", "-" if off is None else f"{100 * off:.1f}"]
        lines.append(cells)
    compared = [[f"{names[first]} - {names[second]}", _difference(pair)] for (first, second), pair in pairs.items()]
    parts = [markdown_table(header, lines)]
    if compared:
        parts.append(markdown_table(["comparison", "points"], compared))
    return "\n\n".join([*parts, _explain(task, rows)]) + "\n"


def _difference(result: dict[str, Any]) -> str:
    if result["difference"] is None:
        return "-"
    return in_points(result["difference"], result["interval"], "{:+.1f}")


def _explain(task: str, rows: dict[str, Any]) -> str:
    seeds = sorted({seed for result in rows.values() for seed in result["seeds"]})
    samples = sorted({result["samples"] for result in rows.values()})
    lacking = [row for row, result in rows.items() if result["seeds"] != seeds]
    number, chosen = " or ".join(f"{number:,}" for number in samples), ", ".join(map(str, seeds))
    text = (
        f"{TASKS[task]} of {number} held-out images: mean ± standard deviation over the seeds {chosen}. Differences "
        "are within a seed: mean ± half width of the 95 % confidence interval."
    )
    text = text[0].upper() + text[1:]
    return text + (f" Not with all seeds: {', '.join(lacking)}." if lacking else "")
