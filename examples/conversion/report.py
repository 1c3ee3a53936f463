# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The table of the study: accuracy of each row, beside the source's, and the comparisons that the study is about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.runs import Run
from ablations.scores import compare, read_runs
from benchmark.report.cells import markdown_table

from clustr_hf.training.checkpoints import write_json
from clustr_hf.training.report import RESULTS
from conversion.arguments import ConversionStudyArguments
from conversion.plan import EPOCHS, STARTS
from conversion.runs import Conversion


STEPS = ("as converted", "least squares", "transfer")
TASK = "classification"


def titles(args: ConversionStudyArguments) -> dict[str, str]:
    """Rows of the table in their order, and their titles."""
    rows = {"source": f"PVTv2, the source: {args.num_epochs:g} epochs"}
    rows |= {f"source-{epochs}": f"the source, {_more(epochs)}" for epochs in EPOCHS}
    for name, start in STARTS.items():
        rows |= {f"{name}-{step}": f"{start.title}, {step}" for step in STEPS if start.is_calibrated}
        for epochs in EPOCHS:
            rows[f"{name}-tuned-{epochs}"] = f"{start.title}, {_more(epochs)}"
            rows[f"{name}-distilled-{epochs}"] = f"{start.title}, {_more(epochs)} with distillation"
    rows |= {f"scratch-{epochs}": f"ClusTR from random weights: {_count(epochs)}" for epochs in EPOCHS}
    return {**rows, "scratch": f"ClusTR from random weights: {args.num_epochs:g} epochs"}


def _more(epochs: float) -> str:
    return f"{_count(epochs)} more"


def _count(epochs: float) -> str:
    return f"{epochs:g} epoch{'s' if epochs > 1 else ''}"


# Pairs of rows, the first of which should be ahead, or level.
COMPARISONS = [
    *((f"two-scales-distilled-{epochs}", f"two-scales-tuned-{epochs}") for epochs in EPOCHS),
    ("one-scale-distilled-1", "one-scale-tuned-1"),
    *((f"two-scales-tuned-{epochs}", f"source-{epochs}") for epochs in EPOCHS),
    ("two-scales-tuned-1", "scratch"),
    ("two-scales-tuned-1", "uncalibrated-tuned-1"),
    ("two-scales-tuned-1", "one-scale-tuned-1"),
]


def report(runs: Sequence[Run], args: ConversionStudyArguments) -> str:
    """
    Write `table.json` and `table.md` of the complete runs to the output folder, and print the table.

    Returns:
        `str`: the table in Markdown.
    """
    scores = read_scores(runs)
    names = titles(args)
    rows = {row: compare(scores, TASK, row, "source") for row in names}
    rows = {row: result for row, result in rows.items() if result is not None}
    pairs = {pair: compare(scores, TASK, *pair) for pair in COMPARISONS if set(pair) <= rows.keys()}
    text = format_table(rows, pairs, names)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    named_pairs = [{"rows": pair, **result} for pair, result in pairs.items()]
    write_json(folder / "table.json", {"rows": rows, "comparisons": named_pairs, "runs": scores})
    (folder / "table.md").write_text(text)
    print(text)
    return text


def read_scores(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Row, seed and score of each training, and of each step of each conversion."""
    scores = read_runs([run for run in runs if not isinstance(run, Conversion)])
    for run in runs:
        if isinstance(run, Conversion) and STARTS[run.row].is_calibrated:
            steps = json.loads((run.folder / RESULTS).read_text())["scores"]
            scores += [
                {
                    "row": f"{run.row}-{step}",
                    "seed": run.seed,
                    "task": TASK,
                    "score": steps[step]["eval_accuracy"],
                    "attention_off": steps["attention off"]["eval_accuracy"],
                    "samples": steps[step]["eval_samples"],
                }
                for step in STEPS
            ]
    return scores


def format_table(rows: dict[str, Any], pairs: dict[tuple[str, str], Any], names: dict[str, str]) -> str:
    """The table in Markdown, with the comparisons below it."""
    header = ["model", "top-1 (%)", "difference from the source", "of the source's (%)", "attention off"]
    lines = []
    for row, result in rows.items():
        share = 100 * result["mean"] / rows["source"]["mean"] if "source" in rows else None
        off = result["attention_off"]
        cells = [names[row], _spread(result["mean"], result["std"], "{:.1f}"), _difference(result)]
        cells += ["-" if share is None else f"{share:.1f}", "-" if off is None else f"{100 * off:.1f}"]
        lines.append(cells)
    compared = [[f"{names[first]} - {names[second]}", _difference(pair)] for (first, second), pair in pairs.items()]
    parts = [markdown_table(header, lines)]
    if compared:
        parts.append(markdown_table(["comparison", "points"], compared))
    return "\n\n".join([*parts, _explain(rows)]) + "\n"


def _difference(result: dict[str, Any]) -> str:
    if result["difference"] is None:
        return "-"
    return _spread(result["difference"], result["interval"], "{:+.1f}")


def _spread(value: float, spread: float | None, digits: str) -> str:
    return digits.format(100 * value) + ("" if spread is None else f" ± {100 * spread:.1f}")


def _explain(rows: dict[str, Any]) -> str:
    seeds = sorted({seed for result in rows.values() for seed in result["seeds"]})
    samples = sorted({result["samples"] for result in rows.values()})
    lacking = [row for row, result in rows.items() if result["seeds"] != seeds]
    text = (
        f"Top-1 of {' or '.join(f'{number:,}' for number in samples)} held-out images: mean ± standard deviation over "
        f"the seeds {', '.join(map(str, seeds))}. Differences are within a seed: mean ± half width of the 95 % "
        "confidence interval."
    )
    return text + (f" Not with all seeds: {', '.join(lacking)}." if lacking else "")
