"""The settings and the description of the evaluation data on the cards of training scripts."""

import json
import re
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
import run_image_classification as with_trainer
import run_image_classification_no_trainer as no_trainer
import run_object_detection_no_trainer as detection
import torch
from datasets import ClassLabel, Dataset
from datasets import Image as ImageFeature
from transformers import TrainingArguments

from clustr_hf.publish.card import CardContents, load_card, plain_value, write_model_card
from clustr_hf.training import training_card
from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.command_line import settings_of
from clustr_hf.training.data.arguments import DataArguments
from clustr_hf.training.models import ModelArguments
from clustr_hf.training.training_card import describe_data, describe_training


def settings_on(card):
    return dict(re.findall(r"^\| (\w+) \| `(.*)` \|$", card, flags=re.MULTILINE))


@pytest.fixture
def rows(tmp_path):
    """Thirty images of three classes in a parquet file."""
    labels = [index % 3 for index in range(30)]
    images = [np.full((32, 32, 3), 40 * label, dtype=np.uint8) for label in labels]
    data = Dataset.from_dict({"image": images, "label": labels}).cast_column("image", ImageFeature())
    path = tmp_path / "data" / "test.parquet"
    path.parent.mkdir()
    data.cast_column("label", ClassLabel(names=["a", "b", "c"])).to_parquet(path)
    return path


def test_trainers_card_has_values_and_no_names_of_enumerations(rows, run_script, tmp_path):
    settings = {"--train_file": rows, "--output_dir": tmp_path / "out", "--image_size": 32, "--max_steps": 1}
    settings |= {"--lr_scheduler_type": "cosine", "--report_to": "none"}
    run_script(with_trainer, settings, "--do_train", "--do_eval", "--use_cpu")
    card = (tmp_path / "out" / "README.md").read_text()
    shown = settings_on(card)
    assert shown["lr_scheduler_type"] == "cosine" and shown["optim"] == TrainingArguments("x").optim.value
    assert not re.search(r"\b[A-Z]\w+\.[A-Z_]+\b", "\n".join(shown.values()))
    assert shown["variant"] == "nano"  # from random weights
    # The evaluation images are a part of the only file, which is not a validation file.
    [result] = load_card(tmp_path / "out" / "README.md").data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("test.parquet", "15 % held back from the training")
    assert "| test.parquet, 15 % held back from the training | 5 |" in card and ", validation" not in card


@pytest.mark.parametrize("script", [with_trainer, no_trainer])
def test_a_fine_tuned_model_is_of_no_variant(script, rows, run_script, tmp_path):
    common = {"--train_file": rows, "--validation_file": rows, "--image_size": 32}
    if script is with_trainer:
        common |= {"--max_steps": 1, "--per_device_train_batch_size": 4, "--report_to": "none"}
        arguments = ["--do_train", "--do_eval", "--use_cpu"]
    else:
        common |= {"--max_train_steps": 1, "--train_batch_size": 4, "--eval_steps": "never"}
        arguments = []
    run_script(script, common | {"--output_dir": tmp_path / "first"}, *arguments)
    first = settings_on((tmp_path / "first" / "README.md").read_text())
    again = {"--output_dir": tmp_path / "second", "--model_name_or_path": tmp_path / "first"}
    run_script(script, common | again, *arguments)
    card = (tmp_path / "second" / "README.md").read_text()
    assert first["variant"] == "nano" and "variant" not in settings_on(card)
    assert card.startswith("---\n") and "license: apache-2.0" in card
    assert ", validation | 30 |" in card


def test_the_license_of_the_weights_is_kept(rows, run_script, tmp_path):
    common = {"--train_file": rows, "--validation_file": rows, "--image_size": 32}
    common |= {"--max_train_steps": 1, "--train_batch_size": 4, "--eval_steps": "never"}
    run_script(no_trainer, common | {"--output_dir": tmp_path / "first"})
    text = (tmp_path / "first" / "README.md").read_text()
    origin = "license: other\nlicense_name: own\nlicense_link: https://x.y/z\nbase_model: nvidia/mit-b0"
    (tmp_path / "first" / "README.md").write_text(text.replace("license: apache-2.0", origin))
    again = {"--output_dir": tmp_path / "second", "--model_name_or_path": tmp_path / "first"}
    run_script(no_trainer, common | again)
    metadata = load_card(tmp_path / "second" / "README.md").data.to_dict()
    assert metadata["license"] == "other" and metadata["base_model"] == "nvidia/mit-b0"
    assert metadata["license_name"] == "own" and metadata["license_link"] == "https://x.y/z"


class Colour(Enum):
    RED = "red"


def test_enumerations_are_values_wherever_they_are(tmp_path):
    nested = {"one": Colour.RED, "many": [Colour.RED, {"inner": (Colour.RED, 1)}]}
    assert str(plain_value(nested)) == "{'one': 'red', 'many': ['red', {'inner': ['red', 1]}]}"
    assert plain_value(0.5) == 0.5 and plain_value(None) is None
    config = {"architectures": ["ClusTRForImageClassification"], "depths": [1], "hidden_sizes": [8]}
    config |= {"reduction_ratios": [[1]], "model_type": "clustr", "id2label": {"0": "a"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_model_card(tmp_path, CardContents(recipe={"optim": Colour.RED, "several": [Colour.RED]}))
    card = (tmp_path / "README.md").read_text()
    assert "| optim | `red` |" in card and "| several | `['red']` |" in card


def test_settings_without_effect_are_left_out():
    def settings(*arguments):
        classes = (DataArguments, ModelArguments, LoopArguments)
        command = ["--output_dir", "x", "--train_dir", "y", *map(str, arguments)]
        return parse_arguments(*classes, arguments=command)[-1].settings

    cosine = settings()
    assert "min_learning_rate" in cosine and "variant" in cosine and "train_val_split" in cosine
    assert cosine.keys().isdisjoint({"polynomial_power", "warmup_learning_rate", "lr_milestones"})
    assert "polynomial_power" in settings("--lr_scheduler_type", "polynomial")
    assert "min_learning_rate" not in settings("--lr_scheduler_type", "constant")
    assert "lr_milestones" in settings("--lr_scheduler_type", "multistep", "--lr_milestones", 1, 2)
    assert "warmup_learning_rate" in settings("--warmup_steps", 3)
    assert "warmup_learning_rate" not in settings("--warmup_epochs", 3, "--warmup_steps", 0)
    fine_tuned = settings("--model_name_or_path", "z", "--validation_dir", "v")
    assert fine_tuned.keys().isdisjoint({"variant", "train_val_split"})
    assert settings_of(ModelArguments())["variant"] == "nano"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"train_file": "a/t.parquet", "validation_file": "a/v.parquet"}, ("a/v.parquet", None, "validation")),
        ({"train_file": "a/t.parquet"}, ("a/t.parquet", None, "15 % held back from the training")),
        ({"train_dir": "a/t", "train_val_split": 0.125}, ("a/t", None, "12.5 % held back from the training")),
        ({"dataset_name": "me/cats"}, ("me/cats", "me/cats", "validation")),
        (
            {"dataset_name": "me/cats", "max_eval_samples": 500},
            ("me/cats", "me/cats", "validation, at most 500 images chosen at random"),
        ),
    ],
)
def test_data_are_called_what_they_are(arguments, expected):
    args = DataArguments(**arguments)
    args.holds_back = "held back" in expected[-1]  # as `load_splits` sets it
    assert describe_data(args) == expected


def test_coco_files_that_are_split_are_called_so(coco_folders, run_script, tmp_path):
    settings = {"--train_dir": coco_folders / "train", "--train_annotation_file": coco_folders / "train.json"}
    settings |= {"--output_dir": tmp_path / "out", "--image_size": 32, "--train_batch_size": 2, "--max_train_steps": 1}
    overrides = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    settings |= {"--num_pictures": 0, "--train_val_split": 0.2, "--config_overrides": json.dumps(overrides)}
    run_script(detection, settings)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train.json, 20 % held back from the training | 3 |" in card


@pytest.mark.parametrize(
    ("device", "processes", "threads", "expected"),
    [
        ("cpu", 1, 1, r"a CPU \(\w+, 1 thread\)"),
        ("cpu", 1, 4, r"a CPU \(\w+, 4 threads\)"),
        ("cpu", 2, 1, r"a CPU \(\w+, 2 processes with 1 thread each\)"),
        ("cuda:0", 1, 1, "Accelerator of cuda:0"),
        ("cuda:0", 8, 1, "8 x Accelerator of cuda:0"),
        ("mps", 1, 8, "Accelerator of mps"),
    ],
)
def test_the_card_names_the_devices_of_all_processes(device, processes, threads, expected, monkeypatch):
    state = SimpleNamespace(device=torch.device(device), num_processes=processes)
    monkeypatch.setattr(training_card, "PartialState", lambda: state)
    monkeypatch.setattr(training_card, "device_name", lambda device: f"Accelerator of {device}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    text = describe_training({"step": 1_000, "train_runtime": 90})
    assert re.match(f"1,000 steps, 1.5 minutes on {expected}, with clustr_hf", text)
