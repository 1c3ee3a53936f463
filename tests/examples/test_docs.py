"""
README.md and docs/: every code block runs, and every link has a target.

Python blocks run, and what they print or compute is compared with `CHECKS`. Commands are parsed by the script that they
call (`test_commands_are_valid`); those of the README, and others that are quick on small data, also run. JSON is sent
to `handler.py`, BibTeX is compared with the model cards, and a block without a language is a map whose paths exist.
"""

import argparse
import base64
import json
import re
import runpy
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import build_hub_kernel
import numpy as np
import onnxruntime
import pytest
import run_image_classification_no_trainer
import run_instance_segmentation_no_trainer
import visualize_clusters
import yaml
from accelerate.commands.launch import launch_command_parser
from code_blocks import (
    GUIDES,
    TESTED_ELSEWHERE,
    Block,
    Command,
    all_blocks,
    commands_of,
    find_block,
    paths_of_map,
    read_page,
)
from conftest import CHECKPOINT_FOLDERS, REPOSITORY, run_process
from local_hub import LocalHub, card_errors
from PIL import Image
from transformers import AutoModelForImageClassification, HfArgumentParser

from clustr_hf.publish.card import TEMPLATE


# Other pages: links are checked, and on the cards also commands.
CARDS = [f"model_cards/{path.name}" for path in sorted((REPOSITORY / "model_cards").glob("*.md"))]
LINKED = [*GUIDES, "examples/README.md", "examples/space/README.md", *CARDS]

EXAMPLES, TRAINING = REPOSITORY / "examples", REPOSITORY / "src" / "clustr_hf" / "training"

# Python blocks by page and heading -> code to append, and a pattern of the output.
CHECKS = {
    ("README.md", "Predict"): ("", r"\{'label': 'cat', 'score': 0\.\d+\}"),
    ("docs/image_classification.md", "Build a model"): ("print(*logits.shape)", "1 1000"),
    ("docs/semantic_segmentation.md", "Build a model"): (
        "print(*(tuple(m.shape) for m in maps), outputs.logits.shape[1], *outputs.logits_sizes.flatten().tolist())",
        r"\(360, 480\) \(120, 90\) 11 32 43 43 32",
    ),
    ("docs/object_detection.md", "Build a model"): (
        "print(*(list(b) for b in boxes), *(tuple(m['segmentation'].shape) for m in masks), outputs.logits.shape[2])",
        r"(\['scores', 'labels', 'boxes'\] ){2}\(360, 480\) \(120, 90\) 3",
    ),
    ("docs/pose_estimation.md", "Build a model"): (
        "print(len(persons), *persons[0], len(persons[0]['keypoints']), *persons[1]['keypoints'][0])",
        "2 score box keypoints 133 label score x y",
    ),
    ("docs/backbone.md", "Feature maps"): ("print(*(m.shape[-1] for m in maps))", "56 28 14 7"),
    ("docs/clusters.md", "Read the clusters of a model"): (
        "print(len(blocks), *blocks[0], *blocks[-1])",
        r"9 \(1, 3136\) \(1, 3136\) .*",
    ),
    ("docs/clusters.md", "Cluster tokens without a model"): (
        "print(*coarse.shape, coarse.max().item(), fine.max().item(), *cluster_tokens.shape)",
        "2 3136 48 195 2 196 64",
    ),
    ("docs/cluster_count.md", "Number of clusters"): (
        "print(model.config.cluster_count, model.config.cluster_tolerance)",
        r"ratio 0\.01",
    ),
    ("docs/pretrained_weights.md", "Convert"): (
        "print(model.config.reduction_ratios, type(model).__name__)",
        r"\[\[64\], \[16\], \[4\], \[1\]\] ClusTRForImageClassification",
    ),
    ("docs/publishing.md", "From Python"): (
        "from pathlib import Path; print(*sorted(path.name for path in Path('out/repository').glob('*.json')))",
        "config.json preprocessor_config.json",
    ),
    ("docs/performance.md", "Speed options"): (
        "print(config.cluster_window, config.cluster_sharing, config.max_clusters)",
        "28 stage 196",
    ),
    ("docs/composites.md", "With the package"): ("print(model.encoder.config.model_type)", "clustr"),
}
# Python blocks with separate tests.
TESTED_APART = {
    ("docs/image_classification.md", "Predict with a checkpoint's own code"),
    ("docs/composites.md", "Without the package"),
    ("docs/hub_kernel.md", "Load and use"),
    ("docs/hub_kernel.md", "In a ClusTR model"),
}
OTHER_LANGUAGES = {"json": 1, "bibtex": 1, "": 1}  # number of blocks, each with a test


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder with the output `out` of a short run of the quickstart, and a link to the examples."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    run_process([sys.executable, REPOSITORY / "examples" / "quickstart.py", "--num_train_epochs", 2], folder)
    return folder


def command_of(page: str, heading: str) -> list[str]:
    """The words of the only command under a heading, with the paths of examples made absolute."""
    [command] = commands_of(find_block(page, heading, "bash"))
    return [word.replace("examples/", f"{REPOSITORY}/examples/") for word in command.words]


def test_readme_is_short():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1200


def test_readme_opens_with_the_two_commands():
    first = read_page("README.md").blocks[0]
    commands = [" ".join(command.words) for command in commands_of(first)]
    assert first.language == "bash" and commands == ["make demo", "make test"]
    for command in commands:
        plan = subprocess.run([*command.split(), "-n"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert {"make demo": "quickstart.py", "make test": "pytest"}[command] in plan.stdout


def test_readme_shows_the_space():
    command = [*command_of("README.md", "Space"), "-n"]
    plan = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "examples/space/app.py" in plan.stdout


def test_readme_states_results_that_the_docs_state():
    """docs/results.md has every figure of the README's table of tasks."""
    rows = re.findall(
        r"^\| .* \| `ClusTR\w+` \| .* \| (.*) \| \[guide\].*$", read_page("README.md").prose, re.MULTILINE
    )
    figures = {figure for row in rows for figure in re.findall(r"\d[\d.,]*\d", row)}
    assert len(rows) == 6 and len(figures) >= 8
    results = (REPOSITORY / "docs" / "results.md").read_text()
    assert [figure for figure in figures if figure not in results] == []


def test_every_code_block_is_handled():
    """A new Python block needs an entry in `CHECKS`; commands are checked by the function in `PROGRAMS`."""
    python = [(block.page, block.heading) for block in all_blocks("python")]
    assert sorted(python) == sorted([*CHECKS, *TESTED_APART])
    others = [block.language for block in all_blocks() if block.language not in ("python", "bash")]
    assert {language: others.count(language) for language in others} == OTHER_LANGUAGES
    for page, (test, number) in TESTED_ELSEWHERE.items():
        assert len(read_page(page).blocks) == number and Path(page).name in (REPOSITORY / test).read_text()


@pytest.mark.parametrize("page, heading", CHECKS)
def test_python_blocks_run(page, heading, demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    block = find_block(page, heading, "python")
    code, expected = CHECKS[page, heading]
    capsys.readouterr()
    exec(compile(f"{block.text}\n{code}", str(block), "exec"), {"__name__": "__main__"})
    assert re.fullmatch(expected, capsys.readouterr().out.strip())


def test_checkpoints_predict_by_remote_code(demo):
    block = find_block("docs/image_classification.md", "Predict with a checkpoint's own code", "python")
    assert re.match(r"\d: 0\.\d{3}\n", run_process([sys.executable, "-c", block.text], demo))


def test_composites_are_made_without_the_package(demo, run_without_package):
    code = find_block("docs/composites.md", "Without the package", "python").text
    code = code.replace("your-name/your-clustr", str(demo / "out" / "clustr-nano-digits"))
    assert run_without_package(f"{code}\nprint(type(model.backbone).__module__)").startswith("transformers_modules.")


def test_the_hub_kernel_is_built_and_loaded(tmp_path, run_script, monkeypatch):
    pytest.importorskip("kernels", reason="the package `kernels` cannot be imported")
    monkeypatch.chdir(tmp_path)
    run_script(build_hub_kernel, {}, *command_of("docs/hub_kernel.md", "Build")[2:])
    code = find_block("docs/hub_kernel.md", "Load and use", "python").text
    assert run_process([sys.executable, "-c", f"{code}\nprint(*cluster_tokens.shape)"], tmp_path) == "2 196 64\n"


def test_models_take_the_hub_kernel(monkeypatch):
    """Runs the block with a mocked `from_pretrained`, since the kernel needs a GPU."""
    pytest.importorskip("kernels", reason="the package `kernels` cannot be imported")
    asked = []
    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", lambda *names, **given: asked.append(given))
    exec(find_block("docs/hub_kernel.md", "In a ClusTR model", "python").text, {})
    [given] = asked
    assert given["use_kernels"] and list(given["kernel_config"].kernel_mapping) == ["ClusTRClustering"]


def test_endpoints_answer_the_json(monkeypatch):
    from clustr_hf.remote_code.handler_clustr import EndpointHandler

    image = REPOSITORY / "examples" / "space" / "images" / "cat.jpg"
    text = find_block("docs/endpoints.md", "Inference Endpoints", "json").text
    request = json.loads(text.replace("<image file in base64>", base64.b64encode(image.read_bytes()).decode()))
    [folder] = [folder for folder in CHECKPOINT_FOLDERS if folder.name == "clustr-nano-bccd"]
    answer = EndpointHandler(str(folder))(request)
    assert all(found["score"] >= 0.5 for found in answer)


def test_the_citation_is_that_of_the_cards():
    entry = find_block("README.md", "Citation", "bibtex").text
    assert entry in TEMPLATE.read_text() and "2208.13138" in entry


def test_the_map_names_what_exists():
    """Every path on the map exists; the map has every uploaded code file and every top-level module of the package."""
    paths = set(paths_of_map(find_block("docs/architecture.md", "Map", "").text))
    assert [path for path in paths if not path.exists()] == []
    package = REPOSITORY / "src" / "clustr_hf"
    files = {*(package / "remote_code").glob("*_clustr*.py"), *package.glob("[a-z]*.py")}
    assert len(files) > 25 and files - paths == set()


# Commands


class Parsed(Exception):
    """Raised by the patched parsers once a script has parsed its arguments."""


# Files that commands look for while they parse their arguments; they are never opened.
DATA_FILES = ("imagenette128/train.parquet", "imagenette128/val.parquet", "cifar10/train.parquet")
DATA_FILES += ("camvid/train.parquet", "camvid/val.parquet", "camvid/id2label.json")


@pytest.fixture
def parse_command(tmp_path, monkeypatch):
    """Run a script, or a module with `-m`, until it has parsed its arguments; fails if it refuses them."""
    for name in ("examples", "src", "checkpoints"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for name in DATA_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def stop_after(parser_class, name):
        parse = getattr(parser_class, name)

        def parse_and_stop(self, *args, **settings):
            parse(self, *args, **settings)
            raise Parsed

        monkeypatch.setattr(parser_class, name, parse_and_stop)

    def run(arguments: list[str]):
        is_module = arguments[0] == "-m"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", arguments[is_module:])
        monkeypatch.syspath_prepend(str(REPOSITORY / Path(arguments[0]).parent))
        stop_after(argparse.ArgumentParser, "parse_args")
        stop_after(HfArgumentParser, "parse_args_into_dataclasses")
        with pytest.raises(Parsed):
            (runpy.run_module(arguments[1]) if is_module else runpy.run_path(arguments[0]))["main"]()

    return run


def check_make(arguments, parse_command):
    subprocess.run(["make", *arguments, "-n"], cwd=REPOSITORY, capture_output=True, check=True)


def check_pip(arguments, parse_command):
    """The extras in the command exist in setup.cfg."""
    assert arguments[0] == "install"
    setup = ConfigParser(interpolation=None)
    setup.read(REPOSITORY / "setup.cfg")
    extras = {extra for word in arguments for extra in re.findall(r"\[(\w+)\]", word)}
    assert extras <= setup["options.extras_require"].keys()


def check_git(arguments, parse_command):
    assert arguments[0] == "clone" and any(word.startswith("https://github.com/") for word in arguments)


def check_kernel_builder(arguments, parse_command):
    """The command uploads the folder that another command builds."""
    [build] = commands_of(find_block("docs/hub_kernel.md", "Build", "bash"))
    assert arguments == ["upload", build.words[2]]


def check_accelerate(arguments, parse_command):
    assert arguments[0] == "launch"
    launch = launch_command_parser().parse_args(arguments[1:])
    assert {"num_processes", "num_machines"} <= yaml.safe_load((REPOSITORY / launch.config_file).read_text()).keys()
    parse_command([launch.training_script, *launch.training_script_args])


def check_pytest(arguments):
    for word in arguments:
        assert not word.startswith("tests/") or (REPOSITORY / word).is_file()
    if "-m" in arguments:
        marker = arguments[arguments.index("-m") + 1].split()[-1]
        assert f'"{marker}: ' in (REPOSITORY / "pyproject.toml").read_text()


def check_python(arguments, parse_command):
    if arguments[:2] == ["-m", "pytest"]:
        check_pytest(arguments[2:])
    elif arguments != ["serve.py"]:  # a script that the reader writes
        parse_command(arguments)


PROGRAMS = {
    "make": check_make,
    "pip": check_pip,
    "git": check_git,
    "kernel-builder": check_kernel_builder,
    "accelerate": check_accelerate,
    "python": check_python,
}
BLOCKS = [*all_blocks("bash"), *(block for card in CARDS for block in read_page(card).blocks)]
COMMANDS = [command for block in BLOCKS if block.language == "bash" for command in commands_of(block)]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_are_valid(command: Command, parse_command):
    PROGRAMS[Path(command.words[0]).name](command.words[1:], parse_command)


def test_readme_fine_tunes(demo, image_folders):
    command = [word.replace("path/to", str(image_folders)) for word in command_of("README.md", "Fine-tune")]
    assert command[0] == "python"
    run_process([sys.executable, *command[1:], "--max_steps", 2, "--report_to", "none"], demo)
    assert json.loads((demo / "out" / "fine-tuned" / "config.json").read_text())["id2label"]["2"] == "zero"


def launch_of(block: Block):
    """Accelerate's launch arguments, parsed from the only command of a block."""
    [command] = commands_of(block)
    assert command.words[:2] == ["accelerate", "launch"]
    return launch_command_parser().parse_args(command.words[2:])


@pytest.mark.parametrize("index, num_processes", [(0, 8), (1, 16)])
def test_trainings_on_imagenet_are_launched(
    index, num_processes, image_folders, tmp_path, run_script, monkeypatch, capsys
):
    """Runs the script that Accelerate would launch on one process, without training."""
    blocks = [block for block in all_blocks("bash") if block.heading == "Train on ImageNet-1k"]
    launch = launch_of(blocks[index])
    settings = yaml.safe_load((REPOSITORY / launch.config_file).read_text())
    assert settings["num_processes"] == num_processes and settings["num_machines"] == num_processes // 8
    arguments = [part for part in launch.training_script_args if part not in ("--dataset_name", "ILSVRC/imagenet-1k")]
    small = ["--train_dir", image_folders / "train", "--validation_dir", image_folders / "validation"]
    small += ["--train_batch_size", 16, "--variant", "nano", "--image_size", 32, "--dry_run"]
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    run_script(run_image_classification_no_trainer, {}, *arguments, *small)
    assert re.search(r"steps +900 \(3 an epoch, 15 of warm-up\)", capsys.readouterr().out)
    assert (tmp_path / "out" / "clustr-small" / "learning_rate.png").is_file()


def test_a_training_on_coco_is_launched(coco_folders, tmp_path, run_script, monkeypatch):
    launch = launch_of(find_block("docs/object_detection.md", "Train on COCO", "bash"))
    arguments = " ".join(launch.training_script_args).replace("--model_name_or_path out/clustr-small", "--variant nano")
    for name, split in (("train2017", "train"), ("val2017", "validation")):
        arguments = arguments.replace(f"coco/{name}", f"{coco_folders}/{split}")
        arguments = arguments.replace(f"coco/annotations/instances_{name}.json", f"{coco_folders}/{split}.json")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    small = ["--image_size", 64, "--train_batch_size", 4, "--per_device_train_batch_size", 2, "--dry_run"]
    run_script(run_instance_segmentation_no_trainer, {}, *shlex.split(arguments), *small)
    assert (tmp_path / "out" / "clustr-small-mask-rcnn" / "learning_rate.png").is_file()


def test_models_are_exported_to_onnx_and_checked(demo):
    output = run_process([sys.executable, *command_of("docs/export.md", "Export")[1:]], demo)
    assert "Cluster labels equal to PyTorch's: " in output
    session = onnxruntime.InferenceSession(demo / "out" / "clustr-nano-digits.onnx")
    (logits,) = session.run(["logits"], {"pixel_values": np.zeros((5, 3, 32, 32), dtype=np.float32)})
    assert logits.shape == (5, 10)


def test_readme_publishes_and_anybody_can_load_it_from_the_hub(demo, tmp_path, run_without_package):
    name = "your-name/clustr-nano-digits"
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        output = run_process([sys.executable, *command_of("README.md", "Publish")[1:]], demo, **environment)
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


# The demo and its files


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


def test_cards_are_of_checkpoints_that_exist(demo):
    """Every checkpoint has a card; the demo's card equals the card that the demo writes, except for numbers."""
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


def test_clusters_of_a_checkpoint_are_drawn(demo, tmp_path, run_script, monkeypatch, capsys):
    cat = REPOSITORY / "examples/space/images/cat.jpg"
    command = [demo / "out" / "clustr-nano-digits", cat, "--shorter_side", 96]
    monkeypatch.chdir(tmp_path)

    def draw(*arguments):
        run_script(visualize_clusters, {}, *command, *arguments)
        return capsys.readouterr().out

    output = draw("--coarser", 8)
    assert "stage 1, block 1, scale 1" in output and "stage 2, block 1, scale 2" in output
    with Image.open(tmp_path / "clusters.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 20
    output = draw("--stages", 2, "--scales", 1)
    assert "stage 2, block 1, scale 1" in output and "stage 1" not in output and "scale 2" not in output
    with pytest.raises(SystemExit, match="no clusters of --stages None, --scales None, --block 7: the model has"):
        draw("--block", 7)


# Links


def broken(page: str, link: str) -> bool:
    """Whether the target of a link does not exist; nothing is downloaded."""
    if re.match(r"[a-z]+:", link):
        return re.fullmatch(r"https://(?!localhost|127\.)[\w-]+(\.[\w-]+)+(/\S*)?", link) is None
    target, _, anchor = link.partition("#")
    path = (REPOSITORY / page).resolve().parent / target if target else REPOSITORY / page
    if not path.exists() or REPOSITORY not in path.resolve().parents:
        return True
    return bool(anchor) and anchor not in read_page(str(path.resolve().relative_to(REPOSITORY))).anchors


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    links = read_page(page).links
    if page == "model_cards/clustr-nano-digits.md":  # its pictures are beside the demo's checkpoint
        links = [link for link in links if not link.endswith(".png")]
    assert [link for link in links if broken(page, link)] == []


def test_the_index_lists_every_page():
    pages = {name.removeprefix("docs/") for name in GUIDES if name.startswith("docs/")} - {"README.md"}
    assert pages <= set(read_page("docs/README.md").links)


@pytest.mark.parametrize(
    "link", ["http://github.com", "https://localhost/x", "docs/none.md", "docs/cpu.md#none", "../x"]
)
def test_broken_links_are_found(link):
    assert broken("README.md", link) and not broken("README.md", "docs/cpu.md#threads")


@pytest.mark.parametrize("page", [*GUIDES, "examples/README.md"])
def test_options_in_the_text_exist(page):
    """Options in code spans, such as `--dry_run`, are options of our scripts, of Accelerate or of Trainer."""
    code = "\n".join(path.read_text() for path in [*EXAMPLES.rglob("*.py"), *TRAINING.rglob("*.py")])
    options = {
        word for span in re.findall(r"`([^`]*)`", read_page(page).prose) for word in re.findall(r"--(\w+)", span)
    }
    others = {"cpu", "num_processes", "config_file", "machine_rank", "bf16", "do_train", "help"}
    assert [option for option in options - others if not re.search(rf"\b{option}", code)] == []


@pytest.mark.parametrize("page", [*GUIDES, "examples/README.md"])
def test_files_in_the_text_exist(page):
    """Paths from the root of the repository in code spans, such as `tests/examples/test_docs.py`."""
    spans = re.findall(r"`((?:examples|tests|docs|src|checkpoints|model_cards)/[\w./-]*)`", read_page(page).prose)
    assert [path for path in spans if not (REPOSITORY / path).exists()] == []
