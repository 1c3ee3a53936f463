"""Tables 6 and 7: the commands that run, which runs are skipped or refused, and the content of the tables."""

import json
import runpy
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ablations import attention_off, command, plan, runs
from ablations.arguments import AblationArguments
from ablations.costs import make_model, measure_costs
from ablations.data import SELECTION_FILE, TABLES_FILE, divide_images
from ablations.markdown import format_results
from ablations.report import report_table
from ablations.scores import METRICS, compare
from ablations.tables import ROWS, TABLES, Table
from conftest import REPOSITORY, run_process
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION
from clustr_hf.training.tasks.semantic_segmentation.task import SEMANTIC_SEGMENTATION


RECIPES = REPOSITORY / "examples" / "recipes"
STORED = sorted((REPOSITORY / "examples" / "results").glob("*/table-*.json"))
NARROW = {"hidden_sizes": [12, 12, 12, 12], "num_attention_heads": [3, 3, 3, 3], "depths": [1, 1, 1, 1]}
NARROW |= {"patch_sizes": [3, 1, 1, 1], "strides": [2, 1, 1, 1]}
RECIPE = {"variant": "nano", "config_overrides": NARROW, "image_size": 32, "train_val_split": 0.25}


@pytest.fixture
def folders(tmp_path):
    """Folders with recipes, and with empty data files for the two tasks."""
    for name in ("images/train.parquet", "maps/train.parquet", "maps/val.parquet", "maps/id2label.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "classification.json").write_text(json.dumps({**RECIPE, "num_train_epochs": 1, "train_batch_size": 4}))
    settings = {"image_size": 64, "crop_size": 64, "train_batch_size": 2, "max_train_steps": 1}
    (tmp_path / "segmentation.json").write_text(json.dumps(settings))
    return tmp_path


def make_args(folder, **settings):
    settings = {"table": ["photographs"], "segmentation_data": str(folder / "maps"), "seeds": [0, 3], **settings}
    return AblationArguments(
        data=str(folder / "images"),
        recipe=str(folder / "classification.json"),
        segmentation_recipe=str(folder / "segmentation.json"),
        output_dir=str(folder / "out"),
        time_per_image=False,
        **settings,
    )


class FakeTraining:
    """Stands in for the scripts: writes given results of a run, or fails; evaluations score 0.1."""

    def __init__(self, monkeypatch, scores=None):
        self.scores, self.started, self.evaluated, self.returncode = scores or {}, [], [], 0
        monkeypatch.setattr(runs.subprocess, "Popen", self.run)
        monkeypatch.setattr(attention_off, "switch_attention_off", lambda source, target: None)

    def run(self, command, env):
        options = dict(zip(command[2::2], command[3::2]))
        folder = Path(options["--output_dir"])
        if "--eval_only" in options:
            self.evaluated.append(folder.parent.parent.name)
            folder.mkdir()
            (folder / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.1, "eval_mean_iou": 0.1}))
        else:
            self.train(folder)
        return FinishedProcess(self.returncode)

    def train(self, folder):
        self.started.append((folder.parent.name, folder.name))
        if self.returncode != 0:
            return
        score = self.scores.get(self.started[-1], 0.5)
        metric = METRICS[folder.parent.name][0]
        results = {metric: score, "eval_samples": 9, "step": 2, "train_runtime": 1.0}
        (folder / "all_results.json").write_text(json.dumps(results))
        history = [{"epoch": 1, "loss": 2.0, metric: 0.2}, {"epoch": 2, "loss": 1.0, metric: score}]
        (folder / "log_history.json").write_text(json.dumps(history))


class FinishedProcess:
    """A process that has ended; its context does nothing."""

    def __init__(self, returncode):
        self.returncode = returncode

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def run_all(args):
    for run in plan.plan_runs(args):
        run.start()


def test_every_row_runs_once_for_each_seed_before_its_segmentation(folders, monkeypatch):
    training = FakeTraining(monkeypatch)
    run_all(make_args(folders, table=["6", "photographs"]))
    expected = []
    for seed in (0, 3):
        rows = [*TABLES["6"].rows, *TABLES["photographs"].rows]
        expected += [("classification", f"{row}-seed{seed}") for row in rows]
        # Table 6 has no mean IoU.
        expected += [("segmentation", f"{row}-seed{seed}") for row in TABLES["photographs"].rows]
    assert training.started == expected
    assert training.evaluated == [name for _, name in expected if not name.startswith("none")]
    run_all(make_args(folders, table=["photographs", "6"]))
    assert training.started == expected


def test_a_run_that_failed_is_started_again(folders, monkeypatch):
    training = FakeTraining(monkeypatch)
    training.returncode = 1
    run = plan.plan_runs(make_args(folders))[0]
    with pytest.raises(RuntimeError, match="none-128-seed0 failed with code 1; run the command again to resume"):
        run.start()
    training.returncode = 0
    run.start()
    assert len(training.started) == 2 and run.is_complete()


def test_a_folder_of_another_run_is_refused(folders, monkeypatch):
    """A folder is refused for training and for `--report` if any setting of the recipe has changed."""
    training = FakeTraining(monkeypatch)
    run_all(make_args(folders))
    (folders / "classification.json").write_text(json.dumps({**RECIPE, "learning_rate": 0.1}))
    for run in plan.plan_runs(make_args(folders))[:4]:
        with pytest.raises(ValueError, match="-seed0 holds a run with other settings"):
            run.start()
    monkeypatch.setattr(
        sys, "argv", ["ablations.py", "--table", "photographs", "--report", *as_options(make_args(folders))]
    )
    with pytest.raises(ValueError, match="choose an --output_dir"):
        command.main()
    assert len(training.started) == 24


def test_no_run_starts_before_another_one_is_refused(folders, monkeypatch):
    """Refuses a segmentation run that started from another classifier, and a run without stored settings."""
    training = FakeTraining(monkeypatch)
    args = make_args(folders)
    plan.make_run(args, "clustr-128", 3, "segmentation").start()
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--table", "photographs", *as_options(args)])
    monkeypatch.setitem(ROWS, "clustr-128", replace(ROWS["clustr-128"], overrides={"num_neighbors": 7}))
    with pytest.raises(ValueError, match="segmentation/clustr-128-seed3 holds a run with other settings"):
        command.main()
    (folders / "out/segmentation/clustr-128-seed3/ablation.json").unlink()
    with pytest.raises(ValueError, match="segmentation/clustr-128-seed3 holds a run with other settings"):
        command.main()
    assert len(training.started) == 1


def test_a_run_is_the_same_from_another_folder_and_with_other_workers(folders, monkeypatch):
    training = FakeTraining(monkeypatch)
    run_all(make_args(folders))
    args = make_args(folders)
    args.dataloader_num_workers = 7
    monkeypatch.chdir(folders)
    (folders / "out").rename(folders / "moved")
    described = {**json.loads((folders / "classification.json").read_text()), "description": "in other words"}
    (folders / "classification.json").write_text(json.dumps(described))
    args.data, args.output_dir, args.recipe = "images/", "moved", "./classification.json"
    run_all(args)
    assert len(training.started) == 24


@pytest.mark.parametrize("row", ROWS)
def test_scripts_take_the_commands(folders, row):
    """All runs with the same seed differ only in the model, its learning rate, and the images of choices."""
    args = make_args(folders)
    args.recipe, args.segmentation_recipe = (str(RECIPES / f"ablation_{name}.json") for name in ("attention", "camvid"))
    run = plan.make_run(args, row, 3, "classification")
    command = runs.as_options({**run.arguments, **run.housekeeping, "output_dir": "out"})
    data, model, _, loop = parse_arguments(*IMAGE_CLASSIFICATION.arguments.values(), LoopArguments, arguments=command)
    assert loop.seed == 3 and model.baseline == ROWS[row].baseline
    assert loop.learning_rate == ROWS[row].arguments.get("learning_rate", 0.012)
    held_back = f"{folders}/out/images/selection.parquet" if ROWS[row].is_choice else None
    assert data.train_val_split == 0.25 and data.validation_file == held_back
    assert {"mlp_ratios": [1, 1, 1, 1], **ROWS[row].overrides}.items() <= model.config_overrides.items()
    run = plan.make_run(args, row, 3, "segmentation")
    command = runs.as_options({**run.arguments, **run.housekeeping, "output_dir": "out"})
    arguments = (*SEMANTIC_SEGMENTATION.arguments.values(), LoopArguments)
    data, model, *_, loop = parse_arguments(*arguments, arguments=command)
    assert loop.seed == 3 and model.baseline == ROWS[row].baseline and data.validation_file.endswith("val.parquet")
    assert run.start_from.settings() == plan.make_run(args, row, 3, "classification").settings()


def test_baselines_have_as_many_parameters():
    recipe = json.loads((RECIPES / "ablation_attention.json").read_text())
    rows = ("none-equal-parameters", "pvt-v2", "swin", "clustr")
    sizes = [make_model(recipe, row).num_parameters() for row in rows]
    assert sizes == pytest.approx([sizes[-1]] * len(rows), rel=0.03)


def test_images_for_choices_are_in_no_table(tmp_path):
    Dataset.from_dict({"image": [f"image {index}" for index in range(50)]}).to_parquet(tmp_path / "train.parquet")
    for _ in range(2):  # the second time, the files are there
        divide_images(tmp_path / "train.parquet", tmp_path / "images", 0.2)
    parts = [Dataset.from_parquet(str(tmp_path / "images" / name))["image"] for name in (TABLES_FILE, SELECTION_FILE)]
    assert [len(part) for part in parts] == [40, 10] and len({*parts[0], *parts[1]}) == 50


@pytest.mark.parametrize("row", ["clustr", "pvt-v2", "swin"])
def test_attention_that_is_off_adds_nothing(folders, row):
    """The outputs of all attention modules are zero, and those of other modules are not."""
    model = make_model(json.loads((RECIPES / "ablation_attention.json").read_text()), row)
    for name in ("on", "off"):
        (folders / name).mkdir()
    model.save_pretrained(folders / "on")
    attention_off.switch_attention_off(folders / "on", folders / "off")
    off, outputs = type(model).from_pretrained(folders / "off").eval(), {}
    for name, module in off.named_modules():
        if name.endswith((".attention", ".mlp")):
            module.register_forward_hook(lambda *call, name=name: outputs.update({name: call[-1]}))
    with torch.no_grad():
        off(torch.randn(2, 3, 128, 128))
    for name, output in outputs.items():
        output = output[0] if isinstance(output, tuple) else output
        assert (output == 0).all() == name.endswith(".attention"), name
    assert len(outputs) == 2 * sum(model.config.depths)


def test_a_model_without_attention_cannot_be_switched_off(tmp_path):
    recipe = json.loads((RECIPES / "ablation_attention.json").read_text())
    make_model(recipe, "none").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have output projections of attention, but has none"):
        attention_off.switch_attention_off(tmp_path, tmp_path)


def test_tables_say_what_the_runs_scored(folders, monkeypatch, capsys):
    top1 = {"single-coarse-128": [0.5, 0.6], "single-fine-128": [0.55, 0.61], "clustr-128": [0.7, 0.72]}
    scores = {("classification", f"{row}-seed{s}"): v for row, vs in top1.items() for s, v in zip((0, 3), vs)}
    FakeTraining(monkeypatch, scores)
    args = make_args(folders)
    run_all(args)
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--table", "photographs", "--report", *as_options(args)])
    command.main()
    table = (folders / "out" / "table-photographs.md").read_text()
    assert table in capsys.readouterr().out
    results = json.loads((folders / "out" / "table-photographs.json").read_text())
    for row, values in top1.items():
        score = results["rows"][row]["classification"]
        assert score["mean"] == pytest.approx(np.mean(values)) and score["std"] == pytest.approx(np.std(values, ddof=1))
        differences = np.subtract(values, top1["clustr-128"])
        if row != "clustr-128":
            assert score["difference"] == pytest.approx(differences.mean())
            assert score["error"] == pytest.approx(np.std(differences, ddof=1) / 2**0.5)
            assert score["interval"] == pytest.approx(12.706 * score["error"], rel=1e-4)  # Student's t, one degree
        assert score["attention_off"] == 0.1
        assert results["rows"][row]["segmentation"]["mean"] == 0.5
    assert len(results["runs"]) == 24 and all(run["seconds"] == 1.0 for run in results["runs"])
    fine = next(line for line in table.splitlines() if "single-scale 16, 4, 1, 1" in line)
    assert "| 58.0 ± 4.2 (-13.0 ± 25.4) | 10.0 | 50.0 ± 0.0 (+0.0 ± 0.0) | 10.0 |" in fine
    assert "top-1 (%) of 9 images, mean IoU (%) of 9 images: mean ± standard deviation over the seeds 0, 3;" in table
    assert "with the same seed, mean ± half width of the 95 % confidence interval." in table
    with Image.open(folders / "out" / "table-photographs.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def as_options(args):
    names = ("data", "segmentation_data", "recipe", "segmentation_recipe", "output_dir")
    names += ("time_per_image",)
    return [part for name in names for part in (f"--{name}", str(getattr(args, name)))] + ["--seeds", "0", "3"]


def test_a_row_is_compared_by_the_seeds_that_both_have():
    scored = [
        {"row": row, "task": "classification", "seed": seed, "score": score, "samples": 9, "attention_off": score / 2}
        for row, seed, score in (("sra", 0, 0.4), ("sra", 1, 0.5), ("clustr", 1, 0.7), ("clustr", 2, 0.8))
    ]
    compared = compare(scored, "classification", "sra", "clustr")
    assert compared["seeds"] == [0, 1] and compared["mean"] == pytest.approx(0.45)
    assert compared["std"] == pytest.approx(0.1 / 2**0.5)
    assert compared["difference"] == pytest.approx(-0.2) and compared["error"] is None
    assert compare(scored, "segmentation", "sra", "clustr") is None
    alone = compare(scored, "classification", "sra", "swin")
    assert alone["mean"] == pytest.approx(0.45) and alone["difference"] is None
    assert compare(scored, "classification", "clustr", "clustr")["difference"] is None


def test_rows_with_fewer_seeds_are_told(folders, monkeypatch, capsys):
    FakeTraining(monkeypatch)
    args = make_args(folders, segmentation_data=None)
    for run in plan.plan_runs(args)[:7]:
        run.start()
    report_table("photographs", [run for run in plan.plan_runs(args) if run.is_complete()], args)
    text = capsys.readouterr().out
    assert "standard deviation over the seeds 0, 3; in parentheses, the difference from *ClusTR, multi-scale" in text
    assert "Only seeds 0: top-1 (%) of *ClusTR, single-scale 64, 16, 4, 1*." in text


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_stored_tables_are_those_of_their_runs_and_shown(path):
    """Stored tables have three seeds or more, equal for all rows, but for choices; docs/ablations.md has every line."""
    table, results = TABLES[path.stem.removeprefix("table-")], json.loads(path.read_text())
    for row in table.rows:
        kept = results["rows"][row]
        assert (kept["title"], kept["paper"]) == (ROWS[row].title, ROWS[row].paper) and table.is_timed == (
            "time" in kept
        )
        for task in METRICS:
            assert kept[task] == compare(results["runs"], task, row, ROWS[row].reference or table.reference)
        seeds = kept["classification"]["seeds"]
        assert seeds == results["rows"][table.reference]["classification"]["seeds"]
        assert len(seeds) >= (1 if ROWS[row].is_choice else 3)
        assert (kept["segmentation"] is None) != table.has_segmentation
    text = path.with_suffix(".md").read_text()
    assert text == format_results(table, results["rows"])
    shown = (REPOSITORY / "docs" / "ablations.md").read_text()
    assert all(line in shown for line in text.splitlines() if line.startswith("|"))


PAPER_RATIOS = {"sra": [64, 16, 4, 1], "sra-knn": [64, 16, 4, 1], "single-coarse": [64, 16, 4, 1]} | {
    "single-fine": [16, 4, 1, 1],
    "clustr": [[64, 16], [16, 4], [4, 1], [1]],
}


@pytest.mark.parametrize("row", PAPER_RATIOS)
def test_costs_are_those_of_the_paper(folders, monkeypatch, row):
    """The tiny variant at 224 pixels. The paper prints FLOPs to 0.1 G; our counts are 3 to 4 % lower."""
    (folders / "classification.json").write_text(json.dumps({"variant": "tiny", "image_size": 224}))
    overrides = {**ROWS[row].overrides, "reduction_ratios": PAPER_RATIOS[row]}
    monkeypatch.setitem(ROWS, row, replace(ROWS[row], overrides=overrides))
    cost, paper = measure_costs(Table("paper", (row,), row), make_args(folders))[row], ROWS[row].paper
    head = 990 * 513  # 1,000 classes instead of 10
    assert (cost["parameters"] + head) / 1e6 == pytest.approx(paper["parameters"], abs=0.06)
    assert cost["paper_macs"] / 1e9 == pytest.approx(0.965 * paper["flops"], abs=0.06)
    assert cost["flops"] > 2 * cost["paper_macs"]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_costs_and_can_be_trained(folders, name):
    args = make_args(folders)
    args.recipe = str(RECIPES / "ablation_attention.json")
    costs = measure_costs(TABLES[name], args)
    assert list(costs) == list(TABLES[name].rows) and min(cost["flops"] for cost in costs.values()) > 1e6
    for row in TABLES[name].rows:
        model = make_model(args.read_recipe("classification"), row)
        model(torch.randn(2, 3, 128, 128)).logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), row


def test_time_is_measured_beside_the_others(folders):
    args = make_args(folders)
    args.time_per_image = True
    costs = measure_costs(TABLES["7"], args)
    assert costs["clustr"]["time"]["ratio"]["median"] == 1.0
    assert all(cost["time"]["median_seconds_per_image"] > 0 for cost in costs.values())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"table": ["8"]}, r"--table must be any of \['settings', .* '6', '7', .* got \['8'\]"),
        ({"seeds": [1, 1]}, r"--seeds must be different numbers of at least 0, got \[1, 1\]"),
        (
            {"table": ["7", "options"]},
            r"--table \['options'\] have rows for other image sizes than the 32 pixels",
        ),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"selection_share": 1.0}, r"--selection_share must be in \[0, 1\), got 1.0"),
        (
            {"table": ["7", "settings-32"], "selection_share": 0.0},
            r"--selection_share must be more than 0 for --table \['settings-32'\], got 0",
        ),
        ({"segmentation_data": "nowhere"}, "--segmentation_data nowhere must be a folder with .*'val.parquet'"),
    ],
)
def test_wrong_arguments_are_named(folders, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(folders, **settings)


@pytest.mark.parametrize("row", ["position-in-keys", "pvt-v2"])
def test_runs_train_and_go_on_to_segment(folders, row):
    """Runs the real commands on generated images."""
    pixels = [np.full((32, 32, 3), value, dtype=np.uint8) for value in range(0, 240, 20)]
    images = [Image.fromarray(values) for values in pixels]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["dark", "light"])})
    labels = [index // 6 for index in range(12)]
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(
        folders / "images/train.parquet"
    )
    features = Features({"image": ImageFeature(), "annotation": ImageFeature()})
    maps = [Image.fromarray((values[..., 0] > 100).astype(np.uint8)) for values in pixels]
    for split in ("train", "val"):
        rows = Dataset.from_dict({"image": images, "annotation": maps}, features=features)
        rows.to_parquet(folders / f"maps/{split}.parquet")
    (folders / "maps/id2label.json").write_text('{"0": "dark", "1": "light"}')
    run_process([sys.executable, "-c", START, row, folders], REPOSITORY / "examples")
    for task in ("classification", "segmentation"):
        results = json.loads((folders / "out" / task / f"{row}-seed0" / "all_results.json").read_text())
        assert 0 <= results[METRICS[task][0]] <= 1


# The scripts' folder is on the path, as when a user runs them.
START = """
import sys
from pathlib import Path
from ablations import plan
from ablations.arguments import AblationArguments
from ablations.data import divide_images
row, folder = sys.argv[1], Path(sys.argv[2])
names = {"data": "images", "segmentation_data": "maps", "output_dir": "out", "recipe": "classification.json"}
names |= {"segmentation_recipe": "segmentation.json"}
paths = {name: str(folder / path) for name, path in names.items()}
args = AblationArguments(table=["7"], seeds=[0], dataloader_num_workers=0, **paths)
divide_images(folder / "images/train.parquet", args.image_folder, args.selection_share)
for task in ("classification", "segmentation"):
    plan.make_run(args, row, 0, task).start()
"""


class FakeRun:
    """A run that writes down when it starts and ends; it may fail or wait."""

    def __init__(self, name, log, start_from=None, action=lambda: None):
        self.folder, self.log, self.start_from, self.action = Path(name), log, start_from, action

    def start(self, threads):
        self.log.append(("start", self.folder.name, threads))
        self.action()
        self.log.append(("end", self.folder.name, threads))


def test_runs_side_by_side_wait_for_the_weights_that_they_start_from(monkeypatch):
    monkeypatch.setattr(command.torch, "get_num_threads", lambda: 4)
    log, both = [], threading.Barrier(2, timeout=30)
    first = FakeRun("first", log, action=both.wait)
    second = FakeRun("second", log, action=both.wait)
    command.train([first, second, FakeRun("third", log, start_from=first)], 2, "runs")  # would hang one by one
    assert {event[2] for event in log} == {2} and len(log) == 6
    assert log.index(("end", "first", 2)) < log.index(("start", "third", 2))
    log.clear()
    command.train([FakeRun("alone", log)], 1, "runs")
    assert log == [("start", "alone", None), ("end", "alone", None)]


def test_a_run_that_fails_stops_those_beside_it(monkeypatch):
    stopped, log = threading.Event(), []
    process = SimpleNamespace(terminate=stopped.set)
    monkeypatch.setattr(runs, "RUNNING", [process])

    def fail():
        raise RuntimeError("failed with code 1")

    beside = FakeRun("beside", log, action=lambda: stopped.wait(30))
    with pytest.raises(RuntimeError, match="failed with code 1"):
        command.train([beside, FakeRun("failing", log, action=fail), FakeRun("later", log)], 2, "runs")
    assert stopped.is_set() and not any(event[1] == "later" for event in log)


@pytest.mark.parametrize("arguments", [[], ["plain-means"], ["plain-means", "detection"], ["squares", "segmentation"]])
def test_the_first_arguments_of_a_variant_are_checked(arguments):
    script = runpy.run_path(str(REPOSITORY / "examples" / "ablations" / "train_variant.py"))
    expected = "the first two arguments must be one of .*'plain-means'.*'segmentation'"
    with patch.object(sys, "argv", ["train_variant.py", *arguments]), pytest.raises(ValueError, match=expected):
        script["main"]()
