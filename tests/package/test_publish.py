"""Repositories are complete for every task, have valid cards, are pushed in one commit, and run without the package."""

import json
import math
import re
import sys

import numpy as np
import publish_to_hub
import pytest
import yaml
from conftest import REPOSITORY, run_process
from endpoint_server import EndpointServer
from hub_repositories import MODEL_CLASSES, PIPELINES, make_image, make_model
from huggingface_hub import EvalResult, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError
from local_hub import LocalHub, card_errors
from PIL import Image
from pipeline_answers import as_arrays, assert_same, with_arrays
from test_remote_code import AUTO_MAP, CODE_FILES, DETECTION_CODE, POSE_CODE
from transformers import pipeline

from clustr_hf import ClusTRBackbone, ClusTRConfig, ClusTRImageProcessor
from clustr_hf.publish import (
    build_repository,
    complete_repository,
    package_requirements,
    push,
    refresh_repository,
    repository_files,
    validate_repository,
)
from clustr_hf.publish.card import CardContents, Measurement, check_card, measurements_of, write_model_card


EXTRA_CODE = {
    "classification": set(),
    "semantic_fpn": {"modeling_clustr_dense.py", "modeling_clustr_segmentation.py"},
    "upernet": {"modeling_clustr_dense.py", "modeling_clustr_segmentation.py"},
    "detection": {*DETECTION_CODE, "modeling_clustr_retinanet.py"},
    "instances": {*DETECTION_CODE, "modeling_clustr_mask_rcnn.py"},
    "poses": POSE_CODE,
    "features": set(),
}
MEASURED = Measurement(
    *("accuracy", "Top-1 accuracy", 0.5, "Digits of mine", "python measure.py"), split="test", num_samples=8
)
TIGER = "https://huggingface.co/datasets/mishig/sample_images/resolve/main/tiger.jpg"


@pytest.fixture
def hub(monkeypatch):
    """A local Hub that `huggingface_hub` in this process uses."""
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


@pytest.fixture
def repository(tmp_path):
    """A classifier's repository, in a folder of its own."""
    return build_repository(*make_model("classification"), tmp_path / "clustr-cats")


def metadata(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize("kind", PIPELINES)
def test_repositories_are_complete(kind, tmp_path, hub):
    folder = build_repository(*make_model(kind), tmp_path / "made" / kind)
    assert [path.name for path in folder.parent.iterdir()] == [kind]
    names = {path.name for path in folder.iterdir()}
    code = {"handler.py", *CODE_FILES, *EXTRA_CODE[kind]}
    others = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "requirements.txt"}
    assert names == code | others
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"].items() >= AUTO_MAP.items()
    assert config["architectures"][0] in "".join([*config["auto_map"].values()])
    assert all((folder / f"{place.split('.')[0]}.py").is_file() for place in config["auto_map"].values())
    card, data = (folder / "README.md").read_text(), metadata(folder)
    assert card_errors(card) == []
    assert data["pipeline_tag"] == PIPELINES[kind] and data["library_name"] == "transformers"
    assert "custom_code" in data["tags"] and len(data["widget"]) > 0
    assert all(set(example) == {"src", "example_title"} for example in data["widget"])
    assert "model-index" not in data and "Not measured." in card and "was not stated" in card
    assert f"# {kind}\n" in card and f'model="your-name/{kind}"' in card
    assert repository_files(folder) == sorted(names)
    ModelCard.load(folder / "README.md").validate()  # asks the Hub


def test_requirements_are_those_of_the_package():
    lines = package_requirements()
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    assert names == ["torch", "torchvision", "transformers", "safetensors", "numpy", "pillow"]
    declared = (REPOSITORY / "setup.cfg").read_text()
    assert "transformers>=5.20,<6" in declared and {"transformers<6,>=5.20", "torch>=2.6"} <= set(lines)


def test_a_backbone_is_published_as_features(tmp_path):
    model = ClusTRBackbone(ClusTRConfig.from_variant("nano", out_features=["stage1", "stage4"]))
    folder = build_repository(model, ClusTRImageProcessor(size={"shortest_edge": 64}), tmp_path / "backbone")
    assert metadata(folder)["pipeline_tag"] == "image-feature-extraction"
    assert np.shape(validate_repository(folder)) == (1, 160, 14, 14)


def test_cards_tell_what_is_behind_the_numbers(tmp_path):
    measured = [MEASURED, Measurement("mean_iou", "Mean IoU", 0.25, "Streets", "python other.py", "me/streets")]
    contents = CardContents(
        name="clustr-x",
        summary="Tells cats from dogs.",
        datasets=["me/streets"],
        training="Two cats, for a second.",
        command="python train.py \\\n    --steps 3",
        recipe={"learning_rate": 1e-3, "mixing": "a|b"},
        measurements=measured,
        tables=["| class | IoU |\n| --- | --- |\n| cat | 1.0 |"],
        limitations="Cats only.",
    )
    picture = tmp_path / "training_curve.png"
    make_image().save(picture)
    folder = build_repository(*make_model("classification"), tmp_path / "x", contents, files=[picture])
    card = (folder / "README.md").read_text()
    assert card_errors(card) == []
    for part in [
        *(
            "# clustr-x\n",
            "Tells cats from dogs.",
            "Two cats, for a second.",
            "```bash\npython train.py \\\n    --steps 3\n",
        ),
        *("| learning_rate | `0.001` |", "`a&#124;b`", "| Top-1 accuracy | 0.5000 | Digits of mine, test | 8 |"),
        *("| Mean IoU | 0.2500 | Streets |", "python measure.py", "python other.py", "| cat | 1.0 |", "Cats only."),
        *("](training_curve.png)", "xie2022clustr", "| classes | 3: cat, dog, owl |", "| parameters | 1.08 M |"),
    ]:
        assert part in card, part
    assert "predictions.png" not in card and "{{" not in card
    assert (folder / "training_curve.png").is_file()
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert [(r.metric_type, r.metric_value, r.dataset_name, r.dataset_split) for r in results] == [
        ("accuracy", 0.5, "Digits of mine", "test"),
        ("mean_iou", 0.25, "Streets", None),
    ]
    assert [r.dataset_type for r in results] == ["digits-of-mine", "me/streets"]
    assert all(isinstance(r, EvalResult) and r.task_type == "image-classification" for r in results)
    assert metadata(folder)["metrics"] == ["accuracy", "mean_iou"]


def test_code_of_checkpoints_is_brought_up_to_date(tmp_path):
    """Weights, card and other fields are kept; code that is no longer needed is removed."""
    folders = [
        build_repository(*make_model(kind), tmp_path / kind) for kind in ("classification", "poses", "instances")
    ]
    expected = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    for folder in folders:
        (folder / "modeling_clustr.py").write_text("outdated = True\n")
        (folder / "modeling_clustr_old.py").write_text("outdated = True\n")
        for name in ("handler.py", "requirements.txt", "versions_clustr.py"):
            (folder / name).unlink()
        for name in ("config.json", "preprocessor_config.json"):
            config = json.loads((folder / name).read_text())
            del config["auto_map"]
            config["custom_pipelines"] = {"old": {}}
            (folder / name).write_text(json.dumps(config))
    run_process([sys.executable, "-m", "clustr_hf.publish", *folders], tmp_path)
    for folder, files in zip(folders, expected):
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        processor = json.loads(found["preprocessor_config.json"])
        assert processor.pop("custom_pipelines") == {"old": {}}  # not one of our fields
        found["preprocessor_config.json"] = (json.dumps(processor, indent=2, sort_keys=True) + "\n").encode()
        assert found == files
    validate_repository(folders[1])  # other tests validate folders with the same files


def test_code_of_another_release_is_not_uploaded_but_replaced(repository):
    (repository / "modeling_clustr_old.py").write_text("outdated = True\n")
    assert "modeling_clustr_old.py" not in repository_files(repository)
    with pytest.raises(ValueError, match=r"must hold no code of other releases, .* holds \['modeling_clustr_old.py'\]"):
        validate_repository(repository)
    complete_repository(repository)
    assert not (repository / "modeling_clustr_old.py").exists()
    assert {*CODE_FILES, "handler.py"} == {path.name for path in repository.glob("*.py")}


def test_code_is_added_to_no_other_models(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    for architecture, message in [("ViTModel", "`architectures` must be one of"), ("ClusTRModel", "got 'ViTImagePr")]:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        with pytest.raises(ValueError, match=message):
            refresh_repository(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "preprocessor_config.json"}


@pytest.mark.parametrize("name", ['a "quoted" name', "{{ title }} | x", "große Straße", "line\nbreak"])
def test_cards_of_odd_names_are_whole(name, tmp_path):
    model, processor = make_model("classification")
    model.config.id2label = {0: name, 1: "{{ label }}", 2: "a\nb|c"}
    measured = Measurement("accuracy", "Top-1 accuracy", 0.5, "Straße" if "ß" not in name else "ß", "python x.py")
    folder = build_repository(model, processor, tmp_path / "x", CardContents(summary=name, measurements=[measured]))
    card = (folder / "README.md").read_text()
    assert card_errors(card) == [] and "a b&#124;c" in card
    if "title" not in name:
        check_card(folder / "README.md", "image-classification")
    write_model_card(folder, CardContents(name=name))
    assert f"# {' '.join(name.split()).replace('|', '&#124;')}\n" in (folder / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    compile(code, "card", "exec")


def test_a_measurement_is_a_number():
    with pytest.raises(ValueError, match="`value` of Top-1 accuracy must be finite, got nan"):
        Measurement("accuracy", "Top-1 accuracy", math.nan, "x", "y")


def test_results_of_training_scripts_get_their_names():
    results = {"eval_box_ap": 0.4, "eval_loss": 3.0, "eval_samples": 7, "eval_mask_ap": 0.3, "eval_box_ap50": math.nan}
    measured = measurements_of(results, "cells", "python train.py")
    assert [(m.name, m.value, m.num_samples) for m in measured] == [("Box AP", 0.4, 7), ("Mask AP", 0.3, 7)]


def test_example_images_are_in_the_widget(tmp_path, hub):
    path = tmp_path / "there.jpg"
    make_image().save(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = tmp_path / "lying.jpg"
    make_image((20, 30)).convert("CMYK").save(lying, exif=exif)
    images = {"A cat, asleep": lying, "Another: café": path}
    folder = build_repository(*make_model("classification"), tmp_path / "x", example_images=images)
    sources = ["images/0-a-cat-asleep.png", "images/1-another-caf.png"]
    assert metadata(folder)["widget"] == [
        {"src": source, "example_title": title} for source, title in zip(sources, images)
    ]
    assert Image.open(folder / sources[0]).size == (30, 20)
    with pytest.raises(ValueError, match=r"`example_images` 'thin': .* at most 10 times as long as wide"):
        build_repository(*make_model("classification"), folder, example_images={"thin": Image.new("L", (99, 1))})
    push(folder, "cats", validate=False)
    _, files = hub.repositories["me/cats"][-1]
    pushed = files["README.md"].decode()
    assert set(sources) <= files.keys()
    for source in sources:
        assert f"- src: {hub.url}/me/cats/resolve/main/{source}" in pushed
    assert 'model="me/cats"' in pushed and "your-name" not in pushed
    assert "your-name" in (folder / "README.md").read_text()  # the folder stays as it is


def test_a_card_that_is_there_is_kept_with_its_images(tmp_path):
    images = {"A cat": make_image()}
    first = build_repository(*make_model("poses"), tmp_path / "x", CardContents(summary="First."), images)
    second = build_repository(*make_model("poses"), tmp_path / "y", first / "README.md")
    assert (second / "README.md").read_text() == (first / "README.md").read_text()
    assert (second / "images" / "0-a-cat.png").is_file()
    third = build_repository(*make_model("poses"), tmp_path / "z", first / "README.md", {"B": make_image()})
    assert metadata(third)["widget"] == [{"src": "images/0-b.png", "example_title": "B"}]
    assert "First." in (third / "README.md").read_text()
    (tmp_path / "plain.md").write_text("# No metadata")
    with pytest.raises(ValueError, match="must have metadata with a pipeline_tag"):
        build_repository(*make_model("poses"), tmp_path / "w", tmp_path / "plain.md")
    assert not (tmp_path / "w").exists()


PUSH = """
import sys
from hub_repositories import make_model
from clustr_hf.publish import build_repository, push
kind, folder = sys.argv[1:]
model, processor = make_model(kind)
model.push_to_hub("plain")
processor.push_to_hub("plain")
print("revision:" + push(build_repository(model, processor, folder), "complete"))
"""

LOAD = """
import base64, io, json, sys
from transformers import pipeline
task, image, parameters, *places = sys.argv[1:]
for place in places:
    repo_id, revision = place.split("@")
    run = pipeline(task, model=repo_id, revision=revision, trust_remote_code=True)
    assert type(run.model).__module__.startswith("transformers_modules."), type(run.model).__module__
    assert type(run.image_processor).__module__.startswith("transformers_modules.")
    answer = run(image, **json.loads(parameters))
    for part in answer:
        if isinstance(part, dict) and "mask" in part:
            buffer = io.BytesIO()
            part["mask"].save(buffer, format="PNG")
            part["mask"] = base64.b64encode(buffer.getvalue()).decode()
    print("answer:" + json.dumps(answer))
"""
PARAMETERS = {"detection": {"threshold": 0.2}, "instances": {"threshold": 0.2}}


@pytest.mark.parametrize("kind", [kind for kind in PIPELINES if kind != "upernet"])  # the class of semantic_fpn
def test_pushed_models_answer_strangers_as_before(kind, tmp_path, run_without_package, monkeypatch):
    """Pushes with `push_to_hub` and with `publish.push` over HTTP, then loads by id and revision with remote code."""
    monkeypatch.setenv("CLUSTR_KERNEL", "off")  # the same arithmetic as without the package
    image = tmp_path / "image.png"
    make_image().save(image)
    task, parameters = PIPELINES[kind], PARAMETERS.get(kind, {})
    model, processor = make_model(kind)
    own = pipeline(task, model=model, image_processor=processor)
    expected = own(str(image), **parameters)
    assert len(expected) > 0
    with LocalHub() as hub:
        environment = {
            **hub.environment,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(REPOSITORY / "tests" / "helpers"),
        }
        printed = run_process([sys.executable, "-c", PUSH, kind, tmp_path / kind], tmp_path, **environment)
        revision, files = hub.repositories["me/complete"][-1]
        assert f"revision:{revision}" in printed
        assert len(hub.repositories["me/complete"]) == 2  # the empty repository, and one commit
        assert files.keys() == set(repository_files(tmp_path / kind))
        for commit in (hub.repositories["me/plain"][-1], hub.repositories["me/complete"][-1]):
            suffixes = {name.rpartition(".")[2] for name in commit[1]}
            assert suffixes <= {"json", "md", "py", "safetensors", "txt", "gitattributes"}
        places = [f"me/{name}@{hub.repositories[f'me/{name}'][-1][0]}" for name in ("plain", "complete")]
        output = run_without_package(LOAD, task, image, json.dumps(parameters), *places, **environment)
    answers = [line.removeprefix("answer:") for line in output.splitlines() if line.startswith("answer:")]
    assert len(answers) == 2
    for answer in answers:
        assert_same(with_arrays(json.loads(answer)), as_arrays(expected))


def test_pushes_are_one_commit_and_take_away_what_is_outdated(repository, hub):
    first = push(repository, "me/cats", validate=False)
    commits = hub.repositories["me/cats"]
    assert len(commits) == 2 and commits[-1][0] == first
    weights = ["model-00001-of-00002.safetensors", "pytorch_model.bin"]
    old = dict.fromkeys(["modeling_clustr_old.py", *weights, "images/0-a.png", "predictions.png"], b"")
    mine = ["notes.md", "lora/adapter_model.safetensors", "sub/x_clustr.py", "images/mine.png"]
    others = dict.fromkeys(mine, b"mine")
    commits.append(("f" * 40, {**commits[-1][1], **old, **others}))
    (repository / "config.json").write_text((repository / "config.json").read_text() + "\n")
    second = push(repository, "me/cats", commit_message="Again", validate=False)
    assert second not in (first, "f" * 40) and len(commits) == 4
    assert commits[-1][1].keys() == {*repository_files(repository), *others}


@pytest.mark.parametrize("repo_id", ["me/cats", "cats"])
@pytest.mark.parametrize("refused", ["create", "upload", "commit"])
def test_a_push_that_fails_leaves_nothing_new(refused, repo_id, repository, hub):
    hub.refused = {refused}
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        push(repository, repo_id, validate=False)
    assert hub.repositories == {}


@pytest.mark.parametrize("repo_id", ["me/cats", "cats"])
@pytest.mark.parametrize("refused", ["upload", "commit"])
def test_a_push_that_fails_leaves_what_was_there(refused, repo_id, repository, hub):
    push(repository, repo_id, validate=False)
    before = list(hub.repositories["me/cats"])
    make_model("features")[0].save_pretrained(repository)  # other weights
    hub.refused = {refused}
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        push(repository, repo_id, validate=False)
    assert hub.repositories["me/cats"] == before


def test_what_somebody_else_pushes_meanwhile_is_not_undone(repository, hub, monkeypatch):
    push(repository, "me/cats", validate=False)
    commit = HfApi.create_commit

    def commit_too_late(api, *arguments, **settings):
        hub.repositories["me/cats"].append(("f" * 40, {"theirs.md": b""}))
        return commit(api, *arguments, **settings)

    monkeypatch.setattr(HfApi, "create_commit", commit_too_late)
    with pytest.raises(HfHubHTTPError, match="412"):
        push(repository, "me/cats", validate=False)
    assert hub.repositories["me/cats"][-1][1] == {"theirs.md": b""}


def test_the_hub_refuses_a_card_before_anything_is_pushed(repository, hub):
    card = repository / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: mine"))
    with pytest.raises(ValueError, match="license mine"):
        push(repository, "me/cats", validate=False)
    assert hub.repositories == {}


def test_nothing_that_does_not_run_is_pushed(repository, hub):
    code = repository / "modeling_clustr.py"
    code.write_text(code.read_text().replace("class ClusTRForImageClassification", "class Other"))
    with pytest.raises(ValueError, match=r"must run without this package, but: (.|\n)*ClusTRForImageClassification"):
        push(repository, "me/cats")
    assert hub.repositories == {}


def broken(change):
    def parameter(name, message):
        return pytest.param(change, message, id=name)

    return parameter


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace(old, new):
    def change(folder):
        text = (folder / "README.md").read_text()
        assert old in text
        (folder / "README.md").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("handler.py"), r"lacks \['handler.py'\]"),
        (remove("requirements.txt"), r"lacks \['requirements.txt'\]"),
        (remove("README.md"), r"lacks \['README.md'\]"),
        (remove("config.json"), r"lacks \['config.json'\]"),
        (remove("preprocessor_config.json"), r"lacks \['preprocessor_config.json'\]"),
        (remove("model.safetensors"), r"lacks weights"),
        (remove("modeling_clustr.py"), r"must hold modeling_clustr.py, which its configuration names"),
        (replace("pipeline_tag: image-classification", "pipeline_tag: object-detection"), "pipeline_tag image-classif"),
        (replace("license: apache-2.0\n", ""), r"must have metadata for \['license'\]"),
        (replace(TIGER, "images/a.png"), "'images/a.png' must be one of the repository's"),
        (replace(TIGER, "../../etc/hostname"), "must be one of the repository's"),
        (replace(f"src: {TIGER}", "text: words"), "must have a widget of images"),
        (replace("tags:", "tags: [:"), "must begin with metadata in YAML"),
        (replace("## Training", "{{ training }}"), "must be filled in, but has '{{ training }}'"),
    ],
)
def test_validation_says_what_is_wrong(change, message, repository):
    change(repository)
    with pytest.raises(ValueError, match=message):
        validate_repository(repository)


def test_validation_runs_the_example_image(tmp_path):
    model, processor = make_model("semantic_fpn")
    folder = build_repository(model, processor, tmp_path / "x", example_images={"A": make_image((80, 70))})
    answers = validate_repository(folder)
    assert {answer["label"] for answer in answers} <= {"cat", "dog", "owl"}
    with EndpointServer(folder) as server:
        status, expected = server.post((folder / "images" / "0-a.png").read_bytes(), "image/png")
    assert status == 200 and answers == expected
    assert validate_repository(folder, make_image((64, 64))) != answers


def test_code_of_repositories_asks_for_no_pickles(tmp_path):
    for kind in MODEL_CLASSES:
        folder = build_repository(*make_model(kind), tmp_path / kind)
        for path in folder.glob("*.py"):
            assert not re.search(r"weights_only|pickle|torch\.load", path.read_text()), path


def test_a_folder_is_replaced_only_if_nothing_else_is_lost(tmp_path):
    model, processor = make_model("classification")
    folder = tmp_path / "x"
    folder.mkdir()
    build_repository(model, processor, folder, example_images={"A": make_image()})
    build_repository(model, processor, folder)
    assert not (folder / "images").exists()
    for name in ("checkpoint-100", "optimizer.bin", "notes.txt", ".secret.json"):
        stranger = folder / name
        stranger.mkdir() if "-" in name else stranger.write_bytes(b"")
        with pytest.raises(FileExistsError, match=f"must be new, empty or an earlier repository, but holds .*{name}"):
            build_repository(model, processor, folder)
        assert name not in repository_files(folder)
        stranger.rmdir() if "-" in name else stranger.unlink()
    (tmp_path / "link").symlink_to(folder)
    build_repository(model, processor, tmp_path / "link", CardContents(summary="By a link."))
    assert "By a link." in (folder / "README.md").read_text()
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.md").write_text("Dear diary")
    with pytest.raises(FileExistsError, match=r"holds \['diary.md'\]"):
        build_repository(model, processor, notes)
    with pytest.raises(FileExistsError, match="is a file"):
        build_repository(model, processor, notes / "diary.md")
    assert (notes / "diary.md").read_text() == "Dear diary"


class BrokenProcessor:
    def save_pretrained(self, folder):
        (folder / "half.json").write_text("{")
        raise OSError("no space left")


def test_what_fails_leaves_nothing_half_written(tmp_path):
    model, processor = make_model("classification")
    with pytest.raises(OSError, match="no space left"):
        build_repository(model, BrokenProcessor(), tmp_path / "x")
    with pytest.raises(ValueError, match=r"`files` must have names of .*training_curve.* got .*weights.bin"):
        build_repository(model, processor, tmp_path / "x", files=[tmp_path / "weights.bin"])
    with pytest.raises(FileNotFoundError):
        build_repository(model, processor, tmp_path / "x", files=[tmp_path / "clusters.png"])
    assert list(tmp_path.iterdir()) == []


def test_only_models_of_this_package_become_repositories(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["SwinForImageClassification"]}')
    for write_it in (complete_repository, write_model_card):
        with pytest.raises(ValueError, match=r"`architectures` must be one of .*ClusTRModel.* got SwinForImageClass"):
            write_it(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def publish_command(*arguments):
    return [sys.executable, REPOSITORY / "examples" / "publish_to_hub.py", *arguments]


def test_the_script_publishes_what_a_training_left(tmp_path):
    """Card, pictures and results of the output folder are published; its checkpoints and pickles are not."""
    folder = tmp_path / "out" / "clustr-cats"
    model, processor = make_model("classification")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    complete_repository(folder, CardContents(summary="Cats.", measurements=[MEASURED]))
    make_image().save(folder / "training_curve.png")
    make_image().save(tmp_path / "a_cat.png")
    (folder / "all_results.json").write_text("{}")
    for name in ("training_args.bin", "checkpoint-1/optimizer.pt", "checkpoint-1/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        images = ["--example_images", tmp_path / "a_cat.png"]
        output = run_process(publish_command(folder, *images, "--dry_run"), tmp_path, **environment)
        assert "answers without clustr_hf" in output and hub.repositories == {}
        made = tmp_path / "out" / "hub" / "clustr-cats"
        assert re.search(r"model\.safetensors +[\d,]+ bytes", output) and str(made) in output
        output = run_process(publish_command(folder, *images, "--repo_id", "me/cats"), tmp_path, **environment)
        revision, files = hub.repositories["me/cats"][-1]
    assert f'model="me/cats", revision="{revision}", trust_remote_code=True' in output
    assert files.keys() == set(repository_files(made))
    assert {"training_curve.png", "all_results.json", "images/0-a-cat.png", "handler.py"} <= files.keys()
    card = files["README.md"].decode()
    assert "Cats." in card and "Top-1 accuracy" in card and "example_title: A cat" in card


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "checkpoint nowhere must be a folder with a saved model, but has no config.json"),
        ([".", "--example_images", "missing.png"], "missing.png: no such file"),
    ],
)
def test_the_script_names_bad_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["publish_to_hub.py", *arguments])
    with pytest.raises(SystemExit):
        publish_to_hub.main()
    assert message in capsys.readouterr().err


TRAIN = """
from hub_repositories import make_image, make_model
from transformers import Trainer, TrainingArguments
model, processor = make_model("classification")
inputs = processor(make_image(), return_tensors="pt").pixel_values[0]
rows = [{"pixel_values": inputs, "labels": label} for label in (0, 1)]
args = TrainingArguments("cats", max_steps=1, push_to_hub=True, report_to="none")
trainer = Trainer(model=model, args=args, train_dataset=rows, processing_class=processor)
trainer.train()
trainer.push_to_hub()
"""


def test_trainers_own_push_makes_a_repository_that_loads(tmp_path, run_without_package):
    image = tmp_path / "image.png"
    make_image().save(image)
    with LocalHub() as hub:
        environment = {
            **hub.environment,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(REPOSITORY / "tests" / "helpers"),
        }
        run_process([sys.executable, "-c", TRAIN], tmp_path, **environment)
        revision, files = hub.repositories["me/cats"][-1]
        assert files.keys() > CODE_FILES
        # The only pickle that Trainer pushes holds its arguments; this package does not read it.
        assert [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".pth"))] == ["training_args.bin"]
        place = f"me/cats@{revision}"
        output = run_without_package(LOAD, "image-classification", image, "{}", place, **environment)
    assert '"label": ' in output
