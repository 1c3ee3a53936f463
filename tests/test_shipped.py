"""The checkpoints that come along: what they are, that they work, and that their cards say what they measure."""

import json
import re
import shlex
import sys

import pytest
from conftest import CHECKPOINT_FOLDERS, REPOSITORY, run_process
from datasets import Image as ImageFeature
from datasets import load_dataset
from local_hub import card_errors
from PIL import Image
from skimage.data import chelsea
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from clustr_hf import shipped_checkpoint
from clustr_hf.metrics import Accuracy
from clustr_hf.model_card import METRICS, load_card


NAMES = [folder.name for folder in CHECKPOINT_FOLDERS]


def test_scikit_images_cat_is_a_cat():
    classify = pipeline("image-classification", model=str(shipped_checkpoint()))
    answers = classify(Image.fromarray(chelsea()))
    assert answers[0]["label"] == "cat" and answers[0]["score"] > 0.5


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"`name` must be one of \['clustr-nano-cifar10'\], got 'clustr-huge'"):
        shipped_checkpoint("clustr-huge")


@pytest.mark.parametrize("folder", CHECKPOINT_FOLDERS, ids=NAMES)
def test_checkpoints_are_small_and_have_a_card_and_curves(folder):
    """And no code, and no files of code named: whoever publishes them takes that of the package."""
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= names
    assert {"training_curve.png", "all_results.json", "log_history.json"} <= names
    assert not any(name.endswith((".py", ".bin", ".jpg")) or name == "predictions.png" for name in names)
    assert not any("auto_map" in (folder / name).read_text() for name in names if name.endswith("config.json"))
    card = (folder / "README.md").read_text()
    assert card_errors(card) == [] and "python examples/run_" in card
    assert (REPOSITORY / "model_cards" / f"{folder.name}.md").resolve() == folder / "README.md"
    results = json.loads((folder / "all_results.json").read_text())
    for value in (result.metric_value for result in load_card(folder / "README.md").data.eval_results):
        assert any(value == pytest.approx(result, abs=0.002) for result in results.values())


def test_the_classifier_has_at_most_two_million_parameters():
    model = AutoModelForImageClassification.from_pretrained(shipped_checkpoint())
    assert model.num_parameters() <= 2_000_000


def test_the_card_of_the_classifier_says_what_its_weights_score(shared):
    """On all 2,000 images, batch by batch as the training script does."""
    folder = shipped_checkpoint()
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
    assert accuracy == pytest.approx(stated, abs=0.002)  # four images: sums differ from machine to machine


@pytest.mark.parametrize("name, data_folder", [("camvid", "camvid-jpeg"), ("bccd", "bccd"), ("nuclei", "nuclei-dev")])
def test_the_other_cards_say_what_their_commands_measure(shared, tmp_path, name, data_folder):
    """The command on the card that evaluates, with the folders that there are here."""
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
    """Which the names of the files tell; and what is left where that drive is left out."""
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
    assert "is whole, and answers without clustr_hf" in output and "A new card is written" not in output
    assert (tmp_path / "hub" / "README.md").read_text() == (folder / "README.md").read_text()
