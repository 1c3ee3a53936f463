"""The command that converts pretrained models: images, evaluation of each step, repository, card and license."""

import json
import sys
from types import SimpleNamespace

import convert_pretrained as script
import pytest
import torch
from local_hub import card_errors
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    PvtImageProcessor,
    PvtV2Config,
    PvtV2ForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from clustr_hf.publish import card as publish_card
from clustr_hf.publish.card import load_card
from clustr_hf.training.attention_off import attention_off
from clustr_hf.training.conversion import command as conversion_command
from clustr_hf.training.conversion.card import find_license


SMALL = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
SMALL |= {"mlp_ratios": [2, 2, 2, 2]}
NAMES = ["two", "zero", "one"]  # not in the order of the class folders
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "pvt"
    torch.manual_seed(0)
    PvtV2ForImageClassification(PvtV2Config(**SMALL, **LABELS)).save_pretrained(folder)
    PvtImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture
def convert(tmp_path, monkeypatch):
    def run(*arguments, output_dir=tmp_path / "out"):
        command = [script.__file__, "--output_dir", output_dir, "--cache_dir", tmp_path / "cache", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        script.main()
        return output_dir

    return run


def read_json(path):
    return json.loads(path.read_text())


def classes_of(data):
    return ("--train_dir", data / "train", "--validation_dir", data / "validation")


def test_converts_evaluates_each_step_and_writes_a_repository(convert, source, image_folders, capsys):
    arguments = ["--model_name_or_path", source, "--license", "mit", *classes_of(image_folders)]
    arguments += ["--num_calibration_images", 20, "--transfer_steps", 4, "--transfer_batch_size", 4]
    folder = convert(*arguments)
    report = read_json(folder / "all_results.json")
    steps = ["as converted", "least squares", "transfer"]
    assert list(report["scores"]) == ["source", "attention off", *steps]
    assert list(report["errors"]) == steps
    assert set(report["errors"]["transfer"]) == {"1, 1", "2, 1", "3, 1"}
    assert {scores["eval_samples"] for scores in report["scores"].values()} == {31}
    # The pipeline with the repository's own code scores as reported.
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    paths = sorted((image_folders / "validation").rglob("*.png"))
    right = sum(classify(str(path))[0]["label"] == path.parent.name for path in paths)
    assert right / 31 == pytest.approx(report["scores"]["transfer"]["eval_accuracy"])
    card = (folder / "README.md").read_text()
    assert card_errors(card) == []
    assert "license: mit\n" in card
    assert "weights converted from `pvt` (PvtV2ForImageClassification)" in card
    assert "on 16 images without labels, by least squares, then by 4 steps of attention transfer" in card
    assert str(source.parent) not in card
    assert "| least squares | " in card
    assert "License of the source's weights: mit" in capsys.readouterr().out
    again = convert(*arguments, output_dir=folder)  # an earlier repository is replaced, by the same weights
    assert all(
        torch.equal(a, b) for a, b in zip(*(load_file(each / "model.safetensors").values() for each in (folder, again)))
    )


def test_the_card_says_which_images_measured_the_accuracy(convert, source, image_folders):
    data = ["--train_dir", image_folders / "train", "--train_val_split", 0.25, "--max_eval_samples", 8]
    folder = convert("--model_name_or_path", source, "--license", "mit", *data, "--num_calibration_images", 0)
    part = "25 % held back from the training, at most 8 images chosen at random"
    [result] = load_card(folder / "README.md").data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("train", part)
    assert f"| train, {part} | 8 |" in (folder / "README.md").read_text()


def test_images_without_labels_and_options(convert, source, image_folders):
    arguments = ["--model_name_or_path", source, "--license", "mit", "--image_dir", image_folders / "train"]
    options = {"reduction_ratios": [16, 16, 4, 1], "cluster_window": 8}
    arguments += ["--num_calibration_images", 6, "--transfer_steps", 0, "--config_overrides", json.dumps(options)]
    folder = convert(*arguments, "--image_size", 96)
    report = read_json(folder / "all_results.json")
    assert report["scores"] == {}
    assert list(report["errors"]) == ["as converted", "least squares"]
    config = read_json(folder / "config.json")
    assert config["reduction_ratios"] == [[16], [16], [4], [1]] and config["cluster_window"] == 8
    assert read_json(folder / "preprocessor_config.json")["crop_size"] == {"height": 96, "width": 96}
    assert "Not measured." in (folder / "README.md").read_text()


def test_without_calibration(convert, source):
    folder = convert("--model_name_or_path", source, "--license", "mit", "--num_calibration_images", 0)
    assert read_json(folder / "all_results.json") == {"errors": {}, "scores": {}}
    assert "Its attention was not fitted to the source's." in (folder / "README.md").read_text()


TWO_LICENSES = "---\nlicense: [mit, cc-by-4.0]\n---\n"


def save_segformer(folder):
    SegformerForSemanticSegmentation(SegformerConfig(**SMALL, **LABELS)).save_pretrained(folder)
    SegformerImageProcessor(size=[64, 64]).save_pretrained(folder)
    return folder


def test_nvidias_terms_are_not_hidden(convert, tmp_path, capsys):
    source = save_segformer(tmp_path / "mit")
    with pytest.raises(ValueError, match=r"--license is needed: .* NVIDIA's own license"):
        convert("--model_name_or_path", source)
    for stated in (["--license", "other"], []):
        if not stated:
            (source / "README.md").write_text("---\nlicense: other\n---\n")
        folder = convert("--model_name_or_path", source, "--num_calibration_images", 0, *stated)
        card = (folder / "README.md").read_text()
        assert "license: other\nlicense_name: nvidia-source-code-license-for-segformer\nlicense_link: https://" in card
        assert "NVIDIA's own license, which allows non-commercial use only" in card
        assert "NVIDIA's own license" in capsys.readouterr().out
        assert "head has random weights and must be trained" in card


def test_the_license_is_carried_over_from_the_sources_card(convert, source, tmp_path):
    stated = tmp_path / "stated"
    stated.mkdir()
    for path in source.iterdir():
        (stated / path.name).write_bytes(path.read_bytes())
    (stated / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: https://x.y/z\n---\n")
    folder = convert("--model_name_or_path", stated, "--num_calibration_images", 0)
    assert "license: other\nlicense_name: own\nlicense_link: https://x.y/z\n" in (folder / "README.md").read_text()


def test_no_license_is_made_up(monkeypatch, tmp_path):
    """A source on the Hub without one license needs `--license`, unless it is of the authors."""
    arguments = SimpleNamespace(license=None, hub_arguments={"revision": "4f2a"}, model_name_or_path="someone/pvt")
    asked = []

    def download(*names, **given):
        asked.append((*names, given))
        return str(tmp_path / "README.md")

    monkeypatch.setattr(publish_card, "hf_hub_download", download)
    for text, message in (("", "no card"), ("---\ntags: [a]\n---\n", "no card"), (TWO_LICENSES, "names .*mit")):
        (tmp_path / "README.md").write_text(text)
        with pytest.raises(ValueError, match=f"--license is needed: someone/pvt has .*{message}"):
            find_license(arguments, "pvt_v2")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\nwidget:\n- text: no image\n---\n")
    assert find_license(arguments, "pvt_v2").license == "cc-by-nc-4.0"
    assert asked[0] == ("someone/pvt", "README.md", {"revision": "4f2a"})
    (tmp_path / "README.md").write_text("")
    arguments.model_name_or_path = "OpenGVLab/pvt_v2_b2"
    assert find_license(arguments, "pvt_v2").license == "apache-2.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_calibration_images", 4], "images for the calibration are needed"),
        (["--num_calibration_images", -1], "--num_calibration_images must be 0 or more"),
        (["--transfer_learning_rate", 0], "--transfer_learning_rate must be positive"),
        (["--config_overrides", "[1]"], "--config_overrides must be a JSON object"),
        (["--image_dir", "nowhere"], "images for the calibration are needed, .* nowhere has none"),
        (["--config_overrides", '{"depths": [1]}'], r"must not change \['depths'\]"),
    ],
)
def test_wrong_arguments_are_named_and_write_nothing(convert, source, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert("--model_name_or_path", source, "--license", "mit", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_and_other_channels_are_refused_at_once(convert, source, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_command, "calibration_images", None)  # not reached
    gray = PvtV2ForImageClassification(PvtV2Config(**SMALL, num_channels=1))
    gray.save_pretrained(tmp_path / "gray")
    with pytest.raises(ValueError, match="must be a model of RGB images, got `num_channels=1`"):
        convert("--model_name_or_path", tmp_path / "gray", "--license", "mit")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("Dear")
    with pytest.raises(FileExistsError, match=r"but holds .*letter"):
        convert("--model_name_or_path", source, "--license", "mit")


def test_unreadable_images_are_passed_over(convert, source, image_folders, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    for number, path in enumerate(sorted((image_folders / "train").rglob("*.png"))[:3]):
        (tmp_path / "mixed" / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "mixed" / "broken.png").write_bytes(b"no image")
    arguments = ["--model_name_or_path", source, "--license", "mit", "--image_dir", tmp_path / "mixed"]
    folder = convert(*arguments, "--transfer_steps", 0)
    assert "on 2 images without labels" in (folder / "README.md").read_text()
    assert "Passed over an unreadable image: calibration image" in capsys.readouterr().out


def test_attention_is_switched_off_and_on_again(source):
    model = AutoModelForImageClassification.from_pretrained(source).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        with attention_off(model):
            assert not torch.equal(model(images).logits, expected)
            assert torch.is_grad_enabled() is False
        assert torch.equal(model(images).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="must have output projections of attention"), attention_off(torch.nn.ReLU()):
        pass
