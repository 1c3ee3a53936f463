"""The examples and every code block of the README, run as a reader would."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import run_image_classification
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from benchmark import busy_machine
from conftest import CHECKPOINT_FOLDERS, REPOSITORY, run_process
from local_hub import LocalHub, card_errors
from PIL import Image

from clustr_hf.publish.card import TEMPLATE


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A short run of the quickstart; the folder it ran in, with its `out`."""
    folder = tmp_path_factory.mktemp("demo")
    run_process([sys.executable, REPOSITORY / "examples" / "quickstart.py", "--num_train_epochs", 3], folder)
    return folder


def test_readme_shows_the_space():
    command = code_blocks("bash")[6].split("#")[0].split()
    plan = subprocess.run([*command, "-n"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "examples/space/app.py" in plan.stdout


def test_a_busy_machine_is_measured(monkeypatch, capsys):
    monkeypatch.setenv("CLUSTR_KERNEL", "on")  # restores what the script sets
    monkeypatch.setattr(sys, "argv", ["busy_machine.py", "--threads", "1", "--busy_loops", "1", "--rounds", "2"])
    if not busy_machine.is_available():
        pytest.skip("the compiled kernel was not built")
    threads = torch.get_num_threads()
    try:
        busy_machine.main()
    finally:
        torch.set_num_threads(threads)
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| nothing", "| 1 busy"))
    ]
    assert [(row[0], row[2]) for row in rows] == [
        (f"| {situation}", clustering)
        for situation in ("nothing", "1 busy loops")
        for clustering in ("tensor operations", "compiled kernel")
    ]
    assert all(float(row[3]) > 0 for row in rows) and rows[0][5] == rows[2][5] == "1.00 |"


def test_cards_are_of_checkpoints_that_exist(demo):
    """The demo's card is the one that the demo writes, but for the numbers; others lie beside their checkpoints."""
    cards = REPOSITORY / "model_cards"
    names = {
        "README.md",
        "template.md",
        "clustr-nano-digits.md",
        *(f"{folder.name}.md" for folder in CHECKPOINT_FOLDERS),
    }
    assert {path.name for path in cards.iterdir()} == names
    assert (cards / "template.md").read_text() == TEMPLATE.read_text()
    texts = [path.read_text() for path in (cards / "clustr-nano-digits.md", demo / "out/clustr-nano-digits/README.md")]
    without_numbers = [re.sub(r"\d+(\.\d+)?", "0", text) for text in texts]
    assert without_numbers[0] == without_numbers[1] and card_errors(texts[0]) == []


def test_clusters_of_a_checkpoint_are_drawn(demo, tmp_path):
    script, cat = REPOSITORY / "examples" / "visualize_clusters.py", REPOSITORY / "examples/space/images/cat.jpg"
    command = [sys.executable, script, demo / "out" / "clustr-nano-digits", cat, "--shorter_side", 96]
    output = run_process([*command, "--coarser", 8], tmp_path)
    assert "stage 1, block 1, scale 1" in output and "stage 2, block 1, scale 2" in output
    with Image.open(tmp_path / "clusters.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 20
    output = run_process([*command, "--stages", 2, "--scales", 1], tmp_path)
    assert "stage 2, block 1, scale 1" in output and "stage 1" not in output and "scale 2" not in output
    with pytest.raises(AssertionError, match="no clusters of --stages None, --scales None, --block 7: the model"):
        run_process([*command, "--block", 7], tmp_path)


def test_quickstart_learns_reloads_and_draws(demo):
    out = demo / "out"
    assert json.loads((out / "results.json").read_text())["accuracy"] > 0.8
    predictions = json.loads((out / "predictions.json").read_text())
    assert len(predictions["predictions"]) == 360
    assert predictions["code"].startswith("transformers_modules.")
    results = json.loads((out / "results.json").read_text())
    assert results["photograph"]["label"] == "cat"
    for name in ("training_curve.png", "predictions.png", "clusters.png", "photograph.png"):
        with Image.open(out / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    card = (out / "clustr-nano-digits" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "{{" not in card


def train_command(output_dir, *arguments):
    return [
        *(sys.executable, REPOSITORY / "examples" / "run_image_classification.py", "--output_dir", output_dir),
        *("--do_train", "--do_eval", "--variant", "nano", "--image_size", 32, "--per_device_train_batch_size", 16),
        *("--logging_steps", 1, "--save_strategy", "epoch", "--eval_strategy", "epoch", "--report_to", "none"),
        *arguments,
    ]


def logged_losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def assert_resumes_exactly(data, tmp_path, first_checkpoint):
    """An interrupted run that goes on gives the losses and the result of one that never stopped."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_process(train_command(whole, *data, "--num_train_epochs", 2), tmp_path)
    resumed.mkdir()
    (whole / first_checkpoint).rename(resumed / first_checkpoint)
    output = run_process(train_command(resumed, *data, "--num_train_epochs", 2), tmp_path)
    assert f"Resuming from {resumed / first_checkpoint}" in output
    assert logged_losses(resumed) == logged_losses(whole)
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (whole, resumed)]
    assert results[0]["eval_accuracy"] == results[1]["eval_accuracy"]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]


@pytest.mark.slow
def test_training_script_resumes_exactly_on_image_folders(image_folders, tmp_path):
    data = ["--train_dir", image_folders / "train", "--validation_dir", image_folders / "validation"]
    assert_resumes_exactly(data, tmp_path, "checkpoint-4")
    config = json.loads((tmp_path / "resumed" / "config.json").read_text())
    assert config["id2label"] == {"0": "one", "1": "two", "2": "zero"}
    assert {
        "README.md",
        "model.safetensors",
        "modeling_clustr.py",
        "preprocessor_config.json",
        "training_curve.png",
    } <= {path.name for path in (tmp_path / "resumed").iterdir()}


@pytest.mark.slow
def test_training_script_resumes_exactly_on_cifar10(shared, tmp_path):
    files = shared / "data" / "cifar10"
    data = ["--train_file", files / "train.parquet", "--validation_file", files / "test.parquet"]
    data += ["--max_train_samples", 128, "--max_eval_samples", 100]
    assert_resumes_exactly(data, tmp_path, "checkpoint-8")


def test_training_script_pushes_to_the_hub_with_a_card(image_folders, tmp_path):
    data = ["--dataset_name", image_folders, "--num_train_epochs", 2, "--max_train_samples", 16]
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
        push = ["--push_to_hub", "--hub_model_id", "me/digits"]
        output = run_process(train_command(tmp_path / "out", *data, *push), tmp_path, **environment)
        commits = hub.repositories["me/digits"]
    assert f"pin its revision={commits[-1][0]}" in output
    assert len(commits) == 4  # the empty repository, after both epochs, and at the end
    weights = [files["model.safetensors"] for _, files in commits[1:]]
    assert weights[0] != weights[1] == weights[2]
    for _, files in commits[1:]:
        assert {"config.json", "model.safetensors", "modeling_clustr.py", "preprocessor_config.json"} <= files.keys()
        assert not any("/" in name or name.endswith(".bin") for name in files)
    card = files["README.md"].decode()
    assert card_errors(card) == [] and "pipeline_tag: image-classification" in card
    assert "| Top-1 accuracy | 0." in card and "python examples/run_image_classification.py" in card
    assert 'model="me/digits"' in card and "| per_device_train_batch_size | `16` |" in card


def test_pushes_that_fail_end_no_training(image_folders, tmp_path):
    data = ["--dataset_name", image_folders, "--num_train_epochs", 2, "--max_train_samples", 16]
    with LocalHub() as hub:
        hub.refused = {"commit"}
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
        with pytest.raises(AssertionError) as failure:
            run_process(train_command(tmp_path / "out", *data, "--push_to_hub"), tmp_path, **environment)
        assert hub.repositories == {}
    assert "could not push step 2, training goes on: 403" in str(failure.value)
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "eval_results.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of --dataset_name, --train_dir, --train_file is needed"),
        (["--train_dir", "{images}/train", "--label_column_name", "kind"], "'kind' is not in the data set"),
        (
            ["--train_dir", "{images}/train", "--push_to_hub", "--hub_strategy", "checkpoint"],
            "--hub_strategy must be end or every_save, got checkpoint",
        ),
        (["--train_dir", "{images}/train", "--push_to_hub", "--do_train", "false"], "--push_to_hub needs --do_train"),
    ],
)
def test_training_script_names_bad_arguments(image_folders, tmp_path, run_script, arguments, message):
    arguments = [argument.format(images=image_folders) for argument in arguments]
    with pytest.raises(ValueError, match=message):
        run_script(run_image_classification, {}, *train_command(tmp_path / "out", *arguments)[2:])


def code_blocks(language):
    text = (REPOSITORY / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_readme_has_only_blocks_that_these_tests_run():
    fences = re.findall(r"```(\w*)\n.*?```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    assert fences == [
        "bash",
        "python",
        "python",
        "python",
        "python",
        "python",
        "python",
        "bash",
        "bash",
        "bash",
        "bash",
        "bash",
        "bash",
        "",
    ]  # the last one is the map of files


def test_readme_opens_with_the_two_commands():
    commands = [line.split("#")[0].strip() for line in code_blocks("bash")[0].strip().splitlines()]
    assert commands == ["make demo", "make test"]
    for command in commands:
        plan = subprocess.run([*command.split(), "-n"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert {"make demo": "quickstart.py", "make test": "pytest"}[command] in plan.stdout


def test_readme_classifies_a_photograph():
    printed = run_process([sys.executable, "-c", code_blocks("python")[0]], REPOSITORY)
    assert re.fullmatch(r"\{'label': 'cat', 'score': 0\.\d+\}\n", printed)


def test_readme_loads_and_predicts_by_remote_code(demo):
    assert re.match(r"\d: 0\.\d{3}\n", run_process([sys.executable, "-c", code_blocks("python")[1]], demo))


def test_readme_uses_the_classes(demo):
    shapes = "\nprint(*logits.shape, len(clusters), *(m.shape[-1] for m in maps))"
    assert run_process([sys.executable, "-c", code_blocks("python")[2] + shapes], demo) == "1 1000 9 56 28 14 7\n"


def test_readme_segments(demo):
    shapes = (
        "\nprint(*(tuple(m.shape) for m in maps), outputs.logits.shape[1], *outputs.logits_sizes.flatten().tolist())"
    )
    printed = run_process([sys.executable, "-c", code_blocks("python")[3] + shapes], demo)
    assert printed == "(360, 480) (120, 90) 11 32 43 43 32\n"


def test_readme_detects(demo):
    shapes = (
        "\nprint(*(list(b) for b in boxes), *(tuple(m['segmentation'].shape) for m in masks), outputs.logits.shape[2])"
    )
    printed = run_process([sys.executable, "-c", code_blocks("python")[4] + shapes], demo)
    keys = "['scores', 'labels', 'boxes']"
    assert printed == f"{keys} {keys} (360, 480) (120, 90) 3\n"


def test_readme_estimates_poses(demo):
    shapes = "\nprint(len(persons), *persons[0], len(persons[0]['keypoints']), *persons[1]['keypoints'][0])"
    printed = run_process([sys.executable, "-c", code_blocks("python")[5] + shapes], demo)
    assert printed == "2 score box keypoints 133 label score x y\n"


def test_readme_fine_tunes(demo, image_folders):
    command = shlex.split(code_blocks("bash")[1].replace("\\\n", " "))
    assert command[0] == "python"
    places = {"path/to": str(image_folders), "examples/": f"{REPOSITORY}/examples/"}
    for place, actual in places.items():
        command = [part.replace(place, actual) for part in command]
    run_process([sys.executable, *command[1:], "--max_steps", 2, "--report_to", "none"], demo)
    assert json.loads((demo / "out" / "fine-tuned" / "config.json").read_text())["id2label"]["2"] == "zero"


@pytest.mark.parametrize("block, num_processes", [(2, 8), (3, 16)])
def test_readme_launches_trainings(block, num_processes, image_folders, tmp_path):
    """Accelerate takes the command as it is written; what it would start is tried on one process, without training."""
    command = shlex.split(code_blocks("bash")[block].replace("\\\n", " "))
    assert command[:2] == ["accelerate", "launch"]
    launch = launch_command_parser().parse_args(
        [f"{REPOSITORY}/{part}" if part.startswith("examples/") else part for part in command[2:]]
    )
    settings = yaml.safe_load(Path(launch.config_file).read_text())
    assert settings["num_processes"] == num_processes and settings["num_machines"] == num_processes // 8
    arguments = [part for part in launch.training_script_args if part not in ("--dataset_name", "ILSVRC/imagenet-1k")]
    small = ["--train_dir", image_folders / "train", "--validation_dir", image_folders / "validation"]
    small += ["--train_batch_size", 16, "--variant", "nano", "--image_size", 32, "--dry_run"]
    output = run_process([sys.executable, launch.training_script, *arguments, *small], tmp_path)
    assert re.search(r"steps +900 \(3 an epoch, 15 of warm-up\)", output)
    assert (tmp_path / "out" / "clustr-small" / "learning_rate.png").is_file()


def test_readme_exports_to_onnx_and_checks_it(demo):
    command = shlex.split(code_blocks("bash")[4].replace("\\\n", " ").replace("examples/", f"{REPOSITORY}/examples/"))
    output = run_process([sys.executable, *command[1:]], demo)
    assert "Cluster labels equal to PyTorch's: " in output
    session = onnxruntime.InferenceSession(demo / "out" / "clustr-nano-digits.onnx")
    (logits,) = session.run(["logits"], {"pixel_values": np.zeros((5, 3, 32, 32), dtype=np.float32)})
    assert logits.shape == (5, 10)


def test_readme_publishes_and_anybody_can_load_it_from_the_hub(demo, tmp_path, run_without_package):
    name = "your-name/clustr-nano-digits"
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        command = shlex.split(code_blocks("bash")[5].replace("examples/", f"{REPOSITORY}/examples/"))
        output = run_process([sys.executable, *command[1:]], demo, **environment)
        revision, files = hub.repositories[name][-1]
        assert f'model="{name}", revision="{revision}", trust_remote_code=True' in output
        assert {"config.json", "model.safetensors", "modeling_clustr.py", "preprocessor_config.json"} <= files.keys()
        card = files["README.md"].decode()
        assert card_errors(card) == [] and "# clustr-nano-digits" in card and "/resolve/main/images/3-a-3.png" in card
        assert not any(name.endswith((".bin", ".pkl", ".pt", ".pth")) for name in files)
        load = (
            "from transformers import AutoBackbone, pipeline\n"
            f"place = dict(trust_remote_code=True, revision='{revision}')\n"
            f"print(AutoBackbone.from_pretrained('{name}', out_features=['stage1'], **place).channels)\n"
            f"print(pipeline('image-classification', model='{name}', **place)(sys.argv[1], top_k=1)[0]['label'])"
        )
        image = demo / "out" / "held_out_digits" / "0000.png"
        channels, label = run_without_package(load, image, **environment).splitlines()
    assert channels == "[32]"
    predictions = json.loads((demo / "out" / "predictions.json").read_text())["predictions"]
    assert label == predictions["0000.png"]["label"]
