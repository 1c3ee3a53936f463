"""The checkpoints that ship with the repository are complete and work, and their cards state the measured scores."""

import json
import re
import shlex
import sys

import pytest
from conftest import CHECKPOINT_FOLDERS, REPOSITORY, run_process
from datasets import Image as ImageFeature
from datasets import load_dataset
from hub_repositories import make_image
from local_hub import card_errors
from PIL import Image
from pipeline_answers import as_arrays, assert_same, with_arrays
from skimage.data import chelsea
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import clustr_hf
from clustr_hf import bundled_checkpoint
from clustr_hf.metrics import Accuracy
from clustr_hf.publish import package_requirements, repository_files
from clustr_hf.publish.card import METRICS, load_card
from clustr_hf.remote_code.handler_clustr import pipeline_task


NAMES = [folder.name for folder in CHECKPOINT_FOLDERS]


def test_scikit_images_cat_is_a_cat():
    classify = pipeline("image-classification", model=str(bundled_checkpoint()))
    answers = classify(Image.fromarray(chelsea()))
    assert answers[0]["label"] == "cat" and answers[0]["score"] > 0.5


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"`name` must be one of \['clustr-nano-cifar10'\], got 'clustr-huge'"):
        bundled_checkpoint("clustr-huge")


def test_the_earlier_name_still_works():
    assert clustr_hf.shipped_checkpoint() == clustr_hf.bundled_checkpoint() == bundled_checkpoint("clustr-nano-cifar10")


@pytest.mark.parametrize("folder", CHECKPOINT_FOLDERS, ids=NAMES)
def test_checkpoints_are_small_and_have_a_card_and_curves(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= names
    assert {"training_curve.png", "all_results.json", "log_history.json"} <= names
    assert not any(name.endswith((".bin", ".jpg")) or name == "predictions.png" for name in names)
    assert {path.name for path in folder.glob("*.py")} < set(repository_files(folder))
    card = (folder / "README.md").read_text()
    assert card_errors(card) == [] and "python examples/run_" in card
    assert (REPOSITORY / "model_cards" / f"{folder.name}.md").resolve() == folder / "README.md"
    results = json.loads((folder / "all_results.json").read_text())
    for value in (result.metric_value for result in load_card(folder / "README.md").data.eval_results):
        assert any(value == pytest.approx(result, abs=0.002) for result in results.values())


@pytest.mark.parametrize("folder", CHECKPOINT_FOLDERS, ids=NAMES)
def test_the_code_of_checkpoints_is_that_of_the_package(folder, tmp_path):
    """The code equals that written by `save_pretrained`. If this test fails, run `make checkpoints`."""
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(clustr_hf, config["architectures"][0])
    model_class(clustr_hf.ClusTRConfig.from_variant("nano")).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    code = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    code["handler.py"] = (REPOSITORY / "src" / "clustr_hf" / "remote_code" / "handler_clustr.py").read_text()
    assert {path.name: path.read_text() for path in folder.glob("*.py")} == code
    for name in ("config.json", "preprocessor_config.json"):
        saved, fresh = (json.loads((place / name).read_text()) for place in (folder, tmp_path))
        assert saved["auto_map"] == fresh["auto_map"]
        assert saved.get("custom_pipelines") == fresh.get("custom_pipelines")
    assert (folder / "requirements.txt").read_text().split() == package_requirements()


LOAD_ALONE = """
import json, sys
from transformers import AutoConfig, AutoModel, pipeline
import transformers
image, output, *places = sys.argv[1:]
for place in places:
    task, _, folder = place.partition("=")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    own = [name for name, path in config.auto_map.items() if path.endswith("." + config.architectures[0])]
    for name in ["AutoModel", *own]:
        model, report = getattr(transformers, name).from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True
        )
        assert not report["missing_keys"], (name, report)
    run = pipeline(task, model=folder, trust_remote_code=True)
    assert type(run.model).__module__.startswith("transformers_modules."), type(run.model)
    assert type(run.image_processor).__module__.startswith("transformers_modules.")
    sys.path.insert(0, folder)
    from handler import RequestLimits, _to_json  # masks as PNG files in base64
    print("answer:" + json.dumps(_to_json(run(image), RequestLimits())))
    del sys.path[0], sys.modules["handler"]
    again = f"{output}/{folder.rpartition('/')[2]}"
    run.model.save_pretrained(again)
    run.image_processor.save_pretrained(again)
    assert type(pipeline(task, model=again, trust_remote_code=True).model).__name__ == config.architectures[0]
"""


def test_checkpoints_work_without_the_package(tmp_path, run_without_package, monkeypatch):
    """Loads them with every matching Auto class and the pipeline, and again after saving them."""
    monkeypatch.setenv("CLUSTR_KERNEL", "off")  # the same arithmetic as without the package
    make_image((320, 240)).save(tmp_path / "image.png")
    tasks = {folder: pipeline_task(json.loads((folder / "config.json").read_text())) for folder in CHECKPOINT_FOLDERS}
    places = [f"{task}={folder}" for folder, task in tasks.items()]
    output = run_without_package(LOAD_ALONE, tmp_path / "image.png", tmp_path, *places)
    answers = [line.removeprefix("answer:") for line in output.splitlines() if line.startswith("answer:")]
    for (folder, task), answer in zip(tasks.items(), answers, strict=True):
        expected = pipeline(task, model=str(folder))(str(tmp_path / "image.png"))
        assert_same(with_arrays(json.loads(answer)), as_arrays(expected))


@pytest.mark.parametrize("folder", CHECKPOINT_FOLDERS, ids=NAMES)
def test_the_package_runs_checkpoints_without_asking_about_their_code(folder, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail(prompt))
    task = pipeline_task(json.loads((folder / "config.json").read_text()))
    run = pipeline(task, model=str(folder))
    assert type(run.model).__module__.startswith("clustr_hf.") and "custom code" not in capsys.readouterr().out


@pytest.mark.parametrize("folder", CHECKPOINT_FOLDERS, ids=NAMES)
def test_predict_runs_checkpoints_of_any_task_by_their_own_code(folder, tmp_path, run_without_package, monkeypatch):
    monkeypatch.setenv("CLUSTR_KERNEL", "off")  # the same arithmetic as without the package
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (96, 64)), ("b.jpg", (64, 80))):
        make_image(size).save(tmp_path / "images" / name)
    script = "import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    script = f"sys.argv[0] = 'predict.py'; {script}"
    output = ["--output", tmp_path / "cells.json"]
    run_without_package(script, REPOSITORY / "examples" / "predict.py", folder, tmp_path / "images", *output)
    found = json.loads((tmp_path / "cells.json").read_text())
    assert found["code"].startswith("transformers_modules.") and set(found["predictions"]) == {"a.png", "b.jpg"}
    task = pipeline_task(json.loads((folder / "config.json").read_text()))
    run = pipeline(task, model=str(folder))
    for name, prediction in found["predictions"].items():
        expected = run(str(tmp_path / "images" / name))
        prediction = [prediction] if isinstance(prediction, dict) else prediction
        assert [answer["label"] for answer in prediction] == [answer["label"] for answer in expected][: len(prediction)]
        assert len(prediction) == (1 if task == "image-classification" else len(expected))
        for answer, reference in zip(prediction, expected):
            if "mask" in reference:
                assert list(Image.open(tmp_path / answer["mask"]).getdata()) == list(reference["mask"].getdata())


def test_the_classifier_has_at_most_two_million_parameters():
    model = AutoModelForImageClassification.from_pretrained(bundled_checkpoint())
    assert model.num_parameters() <= 2_000_000


def test_the_card_of_the_classifier_says_what_its_weights_score(shared):
    """Scores all 2,000 images, in batches as the training script does."""
    folder = bundled_checkpoint()
    classify = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder).eval(),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    rows = load_dataset("parquet", data_files=str(shared / "data" / "cifar10" / "test.parquet"), split="train")
    names = rows.features["label"].names
    answers = classify([row["image"] for row in rows], batch_size=100, top_k=1)
    predictions = [names.index(answer[0]["label"]) for answer in answers]
    accuracy = Accuracy().compute(predictions=predictions, references=rows["label"])["accuracy"]
    stated = float(re.search(r"\| Top-1 accuracy \| (0\.\d+) \|", (folder / "README.md").read_text())[1])
    assert accuracy == pytest.approx(stated, abs=0.002)  # four images, since rounding differs between machines


@pytest.mark.parametrize("name, data_folder", [("camvid", "camvid-jpeg"), ("bccd", "bccd"), ("nuclei", "nuclei-dev")])
def test_the_other_cards_say_what_their_commands_measure(shared, tmp_path, name, data_folder):
    """Runs the evaluation command of the card on the folders of this checkout."""
    path = REPOSITORY / "checkpoints" / f"clustr-nano-{name}" / "README.md"
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if "--eval_only" in block)
    python, *command = shlex.split(block.replace("\\\n", " "))
    assert python == "python" and f"checkpoints/{path.parent.name}" in command
    folders = {"examples": REPOSITORY / "examples", "checkpoints": REPOSITORY / "checkpoints", "out": tmp_path}
    folders[name] = shared / "data" / data_folder
    parts = [part.split("/", maxsplit=1) for part in command]
    command = ["/".join([str(folders.get(first, first)), *rest]) for first, *rest in parts]
    run_process([sys.executable, *command], tmp_path)
    (results,) = (json.loads(path.read_text()) for path in tmp_path.rglob("eval_results.json"))
    measured = load_card(path).data.eval_results
    assert len(measured) >= 2
    for result in measured:
        (metric,) = (key for key, (_, title) in METRICS.items() if title == result.metric_name)
        assert result.metric_value == pytest.approx(results[metric], abs=0.002), metric


def test_the_card_says_that_camvids_validation_is_of_a_drive_of_the_training(shared):
    """File names identify the drive; the card also states the number of training frames without that drive."""
    drives = {}
    for split in ("train", "val"):
        path = shared / "data" / "camvid-jpeg" / f"{split}.parquet"
        rows = load_dataset("parquet", data_files=str(path), split="train").cast_column(
            "image", ImageFeature(decode=False)
        )
        drives[split] = [image["path"].partition("_")[0] for image in rows["image"]]
    [drive] = set(drives["val"])
    seen, number = drives["train"].count(drive), len(drives["train"])
    card = " ".join((REPOSITORY / "checkpoints" / "clustr-nano-camvid" / "README.md").read_text().split())
    assert f"All {len(drives['val'])} validation frames come from one drive, {drive}" in card
    assert f"{seen} of the {number} training frames" in card
    others = " and ".join(sorted(set(drives["train"]) - {drive}))
    assert f"on the {number - seen} frames of the drives {others}" in card
    assert f"--exclude_train_names '^{drive}_'" in card


def test_cards_have_no_names_of_enumerations_and_no_variant_of_what_was_fine_tuned():
    for folder in CHECKPOINT_FOLDERS:
        card = (folder / "README.md").read_text()
        settings = dict(re.findall(r"^\| (\w+) \| `(.*)` \|$", card, flags=re.MULTILINE))
        assert settings and not re.search(r"`[A-Z]\w+\.[A-Z_]+`", card)
        training = card.split("--eval_only")[0]
        assert ("variant" in settings) == ("--model_name_or_path out/" not in training), folder


@pytest.mark.parametrize("folder", CHECKPOINT_FOLDERS, ids=NAMES)
def test_checkpoints_become_whole_repositories(folder, tmp_path):
    script = REPOSITORY / "examples" / "publish_to_hub.py"
    output = run_process([sys.executable, script, folder, "--dry_run", "--repository_dir", tmp_path / "hub"], tmp_path)
    assert "is complete, and answers without clustr_hf" in output and "A new card is written" not in output
    assert (tmp_path / "hub" / "README.md").read_text() == (folder / "README.md").read_text()
