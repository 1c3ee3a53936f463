"""Tables 6 and 7: the commands that run, and which runs are skipped or refused."""

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
from ablations import command, plan, runs
from ablations.data import SELECTION_FILE, TABLES_FILE, divide_images
from ablations.scores import METRICS
from ablations.tables import ROWS, TABLES
from conftest import REPOSITORY, run_process
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from fake_ablations import RECIPE, FakeTraining, as_options, make_args, make_folders, run_all
from PIL import Image

from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION
from clustr_hf.training.tasks.semantic_segmentation.task import SEMANTIC_SEGMENTATION


RECIPES = REPOSITORY / "examples" / "recipes"


@pytest.fixture
def folders(tmp_path):
    return make_folders(tmp_path)


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
    args.recipe, args.segmentation_recipe = (str(RECIPES / f"ablation_{name}.json") for name in ("cifar10", "camvid"))
    run = plan.make_run(args, row, 3, "classification")
    command = runs.as_options({**run.arguments, **run.housekeeping, "output_dir": "out"})
    data, model, _, loop = parse_arguments(*IMAGE_CLASSIFICATION.arguments.values(), LoopArguments, arguments=command)
    assert loop.seed == 3 and model.baseline == ROWS[row].baseline
    assert loop.learning_rate == ROWS[row].arguments.get("learning_rate", 0.012)
    held_back = f"{folders}/out/images/selection.parquet" if ROWS[row].is_choice else None
    assert data.train_val_split == 0.2 and data.validation_file == held_back
    assert {"mlp_ratios": [1, 1, 1, 1], **ROWS[row].overrides}.items() <= model.config_overrides.items()
    run = plan.make_run(args, row, 3, "segmentation")
    command = runs.as_options({**run.arguments, **run.housekeeping, "output_dir": "out"})
    arguments = (*SEMANTIC_SEGMENTATION.arguments.values(), LoopArguments)
    data, model, *_, loop = parse_arguments(*arguments, arguments=command)
    assert loop.seed == 3 and model.baseline == ROWS[row].baseline and data.validation_file.endswith("val.parquet")
    assert run.start_from.settings() == plan.make_run(args, row, 3, "classification").settings()


def test_images_for_choices_are_in_no_table(tmp_path):
    Dataset.from_dict({"image": [f"image {index}" for index in range(50)]}).to_parquet(tmp_path / "train.parquet")
    for _ in range(2):  # the second time, the files are there
        divide_images(tmp_path / "train.parquet", tmp_path / "images", 0.2)
    parts = [Dataset.from_parquet(str(tmp_path / "images" / name))["image"] for name in (TABLES_FILE, SELECTION_FILE)]
    assert [len(part) for part in parts] == [40, 10] and len({*parts[0], *parts[1]}) == 50


def test_images_of_another_division_are_refused(tmp_path):
    for name in ("train", "other"):
        Dataset.from_dict({"image": ["image"] * 50}).to_parquet(tmp_path / f"{name}.parquet")
    divide_images(tmp_path / "train.parquet", tmp_path / "images", 0.2)
    for name, share in (("other", 0.2), ("train", 0.4)):
        with pytest.raises(ValueError, match=r"holds images of .*train\.parquet', 'share': 0\.2.*--output_dir"):
            divide_images(tmp_path / f"{name}.parquet", tmp_path / "images", share)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"table": ["8"]}, r"--table must be any of \['settings', .* '6', '7', .* got \['8'\]"),
        ({"seeds": [1, 1]}, r"--seeds must be different numbers of at least 0, got \[1, 1\]"),
        (
            {"table": ["7", "options"]},
            r"--table \['options'\] have rows for other image sizes than the 32 pixels",
        ),
        (
            {"table": ["6", "7", "sharing"], "recipe": None},
            r"--table \['6', '7', 'sharing'\] have the recipes \['ablation_cifar10', 'ablation_imagenette'\]",
        ),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"selection_share": 1.0}, r"--selection_share must be in \[0, 1\), got 1.0"),
        (
            {"table": ["7", "learning-rates"], "selection_share": 0.0},
            r"--selection_share must be more than 0 for --table \['learning-rates'\], got 0",
        ),
        ({"segmentation_data": "nowhere"}, "--segmentation_data nowhere must be a folder with .*'val.parquet'"),
    ],
)
def test_wrong_arguments_are_named(folders, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(folders, **settings)


@pytest.mark.parametrize("row", ["grid-means", "pvt-v2"])
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
        self.folder, self.log, self.action = Path(name), log, action
        self.needs = [] if start_from is None else [start_from]

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


@pytest.mark.parametrize("arguments", [[], ["grid-means"], ["grid-means", "detection"], ["squares", "segmentation"]])
def test_the_first_arguments_of_a_variant_are_checked(arguments):
    script = runpy.run_path(str(REPOSITORY / "examples" / "ablations" / "train_variant.py"))
    expected = "the first two arguments must be one of .*'grid-means'.*'segmentation'"
    with patch.object(sys, "argv", ["train_variant.py", *arguments]), pytest.raises(ValueError, match=expected):
        script["main"]()
