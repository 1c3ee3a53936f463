"""The study of converted models: its commands, what starts from what, and its table."""

import json
import sys
from pathlib import Path

import pytest
from ablations import attention_off, runs
from conversion import command
from conversion.arguments import SETTINGS, ConversionStudyArguments
from conversion.plan import plan_runs
from conversion.report import report
from conversion.runs import Conversion
from fake_ablations import FinishedProcess
from transformers import HfArgumentParser

from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.conversion import ConversionArguments
from clustr_hf.training.tasks.image_classification.data import ClassificationDataArguments
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION
from clustr_hf.training.tasks.semantic_segmentation.task import SEMANTIC_SEGMENTATION


# Scores of the fake runs: of 100 held-out images, plus the seed.
SCORES = {"source": 80, "scratch": 60, "two-scales-tuned-1": 78, "two-scales-distilled-1": 79}
STEPS = {"source": 80, "attention off": 50, "as converted": 60, "least squares": 70, "transfer": 76}


class FakeScripts:
    """Stands in for the processes of the scripts."""

    def __init__(self, monkeypatch):
        self.commands = []
        monkeypatch.setattr(runs.subprocess, "Popen", self.run)
        monkeypatch.setattr(attention_off, "switch_attention_off", lambda source, target: None)

    def run(self, words, env):
        options = dict(zip(words[2::2], words[3::2]))
        folder = Path(options["--output_dir"])
        row, _, seed = (folder.parent.parent if "--eval_only" in options else folder).name.rpartition("-seed")
        folder.mkdir(parents=True, exist_ok=True)
        if words[1].endswith("convert_pretrained.py"):
            scores = {name: {"eval_accuracy": (score + int(seed)) / 100} for name, score in STEPS.items()}
            results = {"errors": {}, "scores": {name: {**each, "eval_samples": 100} for name, each in scores.items()}}
            (folder / "all_results.json").write_text(json.dumps(results))
        elif "--eval_only" in options:
            (folder / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.25, "eval_mean_iou": 0.2}))
        else:
            score = (SCORES.get(row, 50) + int(seed)) / 100
            results = {"eval_accuracy": score, "eval_mean_iou": score / 2, "eval_loss": 1.0, "eval_samples": 100}
            (folder / "all_results.json").write_text(json.dumps({**results, "step": 2, "train_runtime": 1.0}))
        if "--eval_only" not in options:
            self.commands.append((folder.name, words[1], words[2:]))
        return FinishedProcess(0)


def make_args(tmp_path, **settings):
    (tmp_path / "train.parquet").touch()
    for name in ("val.parquet", "id2label.json"):
        (tmp_path / name).touch()
    defaults = {"setting": "imagenette", "seeds": [0, 3], "output_dir": str(tmp_path / "out")}
    return ConversionStudyArguments(data=str(tmp_path), **{**defaults, **settings})


@pytest.mark.parametrize(
    "settings", [*({"setting": name} for name in SETTINGS), {"choices": True}, {"segmentation": True}]
)
def test_all_commands_are_valid_and_start_from_what_ran_before(tmp_path, monkeypatch, settings):
    if "segmentation" in settings:
        settings = {"segmentation_data": str(tmp_path)}
    scripts, args = FakeScripts(monkeypatch), make_args(tmp_path, **settings, seeds=[0])
    planned = plan_runs(args)
    for run in planned:
        run.start()
    names = [name for name, *_ in scripts.commands]
    assert names == [run.folder.name for run in planned]
    assert len({run.folder for run in planned}) == len(planned)
    for name, script, words in scripts.commands:
        if script.endswith("convert_pretrained.py"):
            classes = (ConversionArguments, ClassificationDataArguments)
            parsed, _ = HfArgumentParser(classes, allow_abbrev=False).parse_args_into_dataclasses(words)
            assert Path(parsed.model_name_or_path).name == "source-seed0" and parsed.license == "apache-2.0"
            assert (parsed.num_calibration_images == 0) == name.startswith("uncalibrated")
        elif script.endswith("run_semantic_segmentation_no_trainer.py"):
            _, model, *_ = parse_arguments(*SEMANTIC_SEGMENTATION.arguments.values(), LoopArguments, arguments=words)
            assert Path(model.model_name_or_path).name == name
            assert (model.baseline is None) == (name != "source-seed0")
            # The other rows have this head without overrides, from the variant of the classification recipe.
            width = (model.config_overrides or {}).get("decoder_hidden_size")
            assert width == (64 if name == "two-scales-seed0" else None)
        else:
            _, model, recipe, loop = parse_arguments(
                *IMAGE_CLASSIFICATION.arguments.values(), LoopArguments, arguments=words
            )
            starts = None if model.model_name_or_path is None else Path(model.model_name_or_path).name
            assert starts in (None, *names[: names.index(name)])
            assert (recipe.teacher_model_name_or_path is not None) == ("distilled" in name or "taught" in name)
            teacher = recipe.teacher_model_name_or_path
            assert teacher is None or Path(teacher).name in names[: names.index(name)]
            assert loop.seed == 0 and loop.warmup_epochs <= loop.num_train_epochs / 2
    assert not any(run.is_complete() is False for run in planned)


def test_selected_rows_bring_what_they_start_from(tmp_path):
    planned = plan_runs(make_args(tmp_path))
    chosen = command.select(planned, "^two-scales-tuned-1$")
    assert [run.row for run in chosen] == ["source", "two-scales", "two-scales-tuned-1"] * 2
    assert command.select(planned, "") == planned
    taught = command.select(planned, "^two-scales-taught-1$")
    needed = ["source", "source-2", "two-scales"]
    assert [run.row for run in taught if run.seed == taught[0].seed] == [*needed, "two-scales-taught-1"]


def test_the_table_compares_within_seeds(tmp_path, monkeypatch, capsys):
    FakeScripts(monkeypatch)
    arguments = ["--setting", "imagenette", "--data", tmp_path, "--seeds", 0, 3, "--output_dir", tmp_path / "out"]
    make_args(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, arguments)])
    command.main()
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| PVTv2, the source: 5 epochs | 81.5 ± 2.1 | - | 100.0 | 25.0 |" in text
    assert "| two scales, least squares | 71.5 ± 2.1 | -10.0 ± 0.0 | 87.7 | 51.5 |" in text
    assert "| two scales, 1 epoch more with distillation | 80.5 ± 2.1 | -1.0 ± 0.0 | 98.8 | 25.0 |" in text
    assert "| two scales, 1 epoch more with distillation - two scales, 1 epoch more | +1.0 ± 0.0 |" in text
    assert "Top-1 (%) of 100 held-out images" in text and "Not with all seeds" not in text
    results = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(results["classification"]["rows"]) == len(text.split("\n\n")[0].splitlines()) - 2
    assert results["segmentation"]["rows"] == {}


def test_choices_and_segmentation_have_tables_of_their_own(tmp_path, monkeypatch):
    FakeScripts(monkeypatch)
    arguments = ["--setting", "imagenette", "--data", tmp_path, "--output_dir", tmp_path / "out", "--seeds", 0]
    make_args(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, arguments), "--choices"])
    command.main()
    lines = (tmp_path / "out" / "choices.md").read_text().splitlines()
    assert len(lines) == 2 + 13 and "| tuned-0.001-seed0 | 50.0 | 1.000 |" in lines
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, arguments), "--segmentation_data", str(tmp_path)])
    command.main()
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| start | mean IoU (%) |" in text
    assert "| ClusTR from random weights: 5 epochs | 30.0 | -10.0 | 75.0 | 20.0 |" in text


def test_a_row_without_all_seeds_is_named(tmp_path, monkeypatch):
    FakeScripts(monkeypatch)
    args = make_args(tmp_path)
    planned = [run for run in plan_runs(args) if run.row == "source" or (run.row == "scratch" and run.seed == 3)]
    for run in planned:
        run.start()
    assert "Not with all seeds: scratch." in report(planned, args)


def test_a_folder_of_another_study_is_refused(tmp_path, monkeypatch):
    FakeScripts(monkeypatch)
    conversion = next(run for run in plan_runs(make_args(tmp_path)) if isinstance(run, Conversion))
    conversion.start()
    assert conversion.is_complete()
    other = next(run for run in plan_runs(make_args(tmp_path, setting="cifar10")) if isinstance(run, Conversion))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        other.is_complete()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"setting": "coco"}, "--setting must be one of"), ({"seeds": [1, 1]}, "--seeds must be different numbers")],
)
def test_wrong_arguments(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"must be a folder with .* but lacks"):
        ConversionStudyArguments(setting="imagenette", data=str(tmp_path / "none"))
