"""Arguments from the command line and recipes; compares the recipes with Tables A2 to A4 of the paper."""

import json
import math
import re

import pytest
from conftest import REPOSITORY
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import nn
from torchvision.transforms import RandomHorizontalFlip

from clustr_hf import ClusTRConfig, ClusTRImageProcessor, ClusTRPoseImageProcessor
from clustr_hf.keypoints import CONVENTIONS
from clustr_hf.training.arguments import LoopArguments, parse_arguments
from clustr_hf.training.command_line import command_line, shorten_path
from clustr_hf.training.data.arguments import DataArguments
from clustr_hf.training.optimizers import make_optimizer
from clustr_hf.training.schedule import TrainingPlan
from clustr_hf.training.tasks.detection.model import LONG_SIDE
from clustr_hf.training.tasks.detection.task import OBJECT_DETECTION
from clustr_hf.training.tasks.image_classification.task import IMAGE_CLASSIFICATION
from clustr_hf.training.tasks.image_classification.transforms import training_transform
from clustr_hf.training.tasks.pose_estimation.task import POSE_ESTIMATION
from clustr_hf.training.tasks.semantic_segmentation.model import LONGEST_RATIO
from clustr_hf.training.tasks.semantic_segmentation.task import SEMANTIC_SEGMENTATION


RECIPES = REPOSITORY / "examples" / "recipes"
ARGUMENT_CLASSES = (*IMAGE_CLASSIFICATION.arguments.values(), LoopArguments)
SEGMENTATION_CLASSES = (*SEMANTIC_SEGMENTATION.arguments.values(), LoopArguments)
DETECTION_CLASSES = (*OBJECT_DETECTION.arguments.values(), LoopArguments)
POSE_CLASSES = (*POSE_ESTIMATION.arguments.values(), LoopArguments)
# Argument classes by a word in the name of a recipe; the other recipes are for classification.
CLASSES_BY_DATA = {
    **dict.fromkeys(("wholebody", "keypoints"), POSE_CLASSES),
    **dict.fromkeys(("ade20k", "camvid"), SEGMENTATION_CLASSES),
    **dict.fromkeys(("coco", "bccd", "nuclei"), DETECTION_CLASSES),
}


@pytest.fixture
def recipe(tmp_path):
    """A function that writes a recipe, given as an object or as text, and returns its path."""

    def write(content):
        path = tmp_path / "recipe.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def parse(*arguments):
    [args] = parse_arguments(LoopArguments, arguments=["--output_dir", "out", *map(str, arguments)])
    return args


@pytest.mark.parametrize("as_one_word", [False, True])
def test_the_command_line_overrides_the_recipe_which_overrides_the_defaults(recipe, as_one_word):
    path = recipe({"description": "any", "learning_rate": 0.5, "seed": 3, "dry_run": True, "eval_steps": "7"})
    args = parse("--seed", "4", *([f"--recipe={path}"] if as_one_word else ["--recipe", path]))
    expected = LoopArguments("out", recipe=path, learning_rate=0.5, seed=4, dry_run=True, eval_steps="7")
    assert args == expected


def test_without_a_recipe_there_are_defaults():
    assert parse() == LoopArguments("out")
    assert parse("--learning_rate", "0.5") == LoopArguments("out", learning_rate=0.5)


def test_a_recipe_may_hold_lists_which_the_command_line_replaces(recipe):
    path = recipe({"lr_milestones": [8, 11.5], "report_to": ["wandb", "tensorboard"]})
    args = parse("--recipe", path)
    assert (args.lr_milestones, args.report_to) == ([8.0, 11.5], ["wandb", "tensorboard"])
    assert parse("--recipe", path, "--report_to", "trackio").report_to == ["trackio"]
    assert parse("--recipe", path, "--report_to", "none").report_to is None


def test_null_in_a_recipe_leaves_the_default(recipe):
    path = recipe({"max_grad_norm": None, "lr_milestones": None, "seed": 5})
    assert parse("--recipe", path) == LoopArguments("out", recipe=path, seed=5)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{'seed': 1}", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "must hold one JSON object, got list"),
        ({"learning_rat": 1}, "unknown key 'learning_rat'.*learning_rate"),
        ({"learning_rate": "0.1"}, "'learning_rate' must be float, got '0.1'"),
        ({"learning_rate": True}, "'learning_rate' must be float, got True"),
        ({"learning_rate": [0.1]}, r"'learning_rate' must be float, got \[0.1\]"),
        ({"train_batch_size": True}, "'train_batch_size' must be int, got True"),
        ({"train_batch_size": 1.5}, "'train_batch_size' must be int, got 1.5"),
        ({"lr_scheduler_type": 3}, "'lr_scheduler_type' must be str, got 3"),
        ({"dry_run": "yes"}, "'dry_run' must be bool, got 'yes'"),
        ({"dry_run": 1}, "'dry_run' must be bool, got 1"),
        ({"max_train_steps": "9"}, r"'max_train_steps' must be int \| None, got '9'"),
        ({"lr_milestones": 3}, r"'lr_milestones' must be list\[float\] \| None, got 3"),
        ({"report_to": ["wandb", 1]}, r"'report_to' must be list\[str\] \| None, got \['wandb', 1\]"),
        ({"seed": None}, "'seed' must be int, got None"),
    ],
)
def test_a_broken_recipe_is_named_with_its_key(recipe, content, message):
    path = recipe(content)
    with pytest.raises(ValueError, match=f"--recipe {re.escape(path)}.*{message}"):
        parse("--recipe", path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"--recipe {re.escape(str(tmp_path))}/none.json cannot be read: .+"):
        parse("--recipe", f"{tmp_path}/none.json")


POSITIVE = [
    *("num_train_epochs", "max_train_steps", "train_batch_size", "per_device_train_batch_size"),
    *("per_device_eval_batch_size", "learning_rate", "learning_rate_batch_size", "polynomial_power", "max_grad_norm"),
    *("checkpoints_total_limit", "logging_steps", "dataloader_prefetch_factor"),
]
ZERO_OR_MORE = [
    *("min_learning_rate", "warmup_epochs", "warmup_steps", "warmup_learning_rate", "weight_decay", "freeze_stages"),
    *("dataloader_num_workers", "max_skipped_samples", "seed"),
]
BELOW_ONE = ["adam_beta1", "adam_beta2", "ema_decay"]
INTERVALS = ["eval_steps", "checkpointing_steps"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("optimizer", "sgd"),
        ("lr_scheduler_type", "linear"),
        ("mixed_precision", "fp8"),
        ("hub_strategy", "always"),
        *((name, value) for name in POSITIVE for value in (0, -1)),
        *((name, -1) for name in ZERO_OR_MORE),
        *((name, value) for name in ("learning_rate", "weight_decay") for value in (math.nan, math.inf)),
        *((name, value) for name in BELOW_ONE for value in (-0.1, 1.0, math.nan)),
        *((name, value) for name in INTERVALS for value in ("0", "-5", "1.5", "epochs", "")),
    ],
)
def test_a_bad_value_is_named_with_its_argument(name, value):
    with pytest.raises(ValueError, match=rf"--{name} must be .*got {re.escape(repr(value))}$"):
        LoopArguments("out", **{name: value})


def test_a_bad_tracker_is_named():
    with pytest.raises(ValueError, match=r"--report_to must be any of .*got 'mlflow'"):
        LoopArguments("out", report_to=["wandb", "mlflow"])


@pytest.mark.parametrize("milestones", [None, []])
def test_multistep_needs_milestones(milestones):
    with pytest.raises(ValueError, match=r"--lr_milestones must .*multistep"):
        LoopArguments("out", lr_scheduler_type="multistep", lr_milestones=milestones)


@pytest.mark.parametrize(
    "name, value",
    [*((name, 0) for name in ZERO_OR_MORE + BELOW_ONE), *((n, v) for n in INTERVALS for v in ("epoch", "never", "10"))],
)
def test_values_at_the_border_are_taken(name, value):
    assert getattr(LoopArguments("out", **{name: value}), name) == value


def parse_recipe(file):
    """All arguments by name, and the `LoopArguments`, of a recipe of this repository."""
    words = file.removesuffix(".json").split("_")
    classes = next((kinds for word, kinds in CLASSES_BY_DATA.items() if word in words), ARGUMENT_CLASSES)
    data = ["--train_dir=x", "--validation_dir=x", "--train_annotation_file=x", "--validation_annotation_file=x"]
    data = data if classes is POSE_CLASSES else ["--train_file=x"]
    parts = parse_arguments(*classes, arguments=["--recipe", str(RECIPES / file), *data, "--output_dir", "y"])
    return {name: value for part in parts for name, value in vars(part).items()}, parts[-1]


def imagenet_recipe(variant):
    return parse_recipe(f"clustr_{variant}_imagenet1k.json")


def transforms_of(settings):
    """The random transforms of a recipe, by type."""
    names = ("min_crop_scale", "rand_augment", "random_erasing")
    transform = training_transform(ClusTRImageProcessor(), *(settings[name] for name in names))
    return {type(step): step for step in transform.args[0].transforms}


@pytest.mark.parametrize("file", sorted(path.name for path in RECIPES.glob("*.json")))
def test_every_recipe_is_of_the_variant_in_its_name(file):
    settings, _ = parse_recipe(file)
    variant = "nano" if file.startswith("ablation_") else file.split("_")[1]
    assert settings["variant"] == variant and file.split("_")[0] in ("clustr", "ablation")
    assert settings["recipe"] == str(RECIPES / file)


@pytest.mark.parametrize("position, variant", enumerate(("tiny", "small", "base")))
def test_imagenet_recipes_are_table_a2_as_the_paper_prints_it(shared, position, variant):
    text = (shared / "paper.txt").read_text()
    table = text.split("Table A2: ImageNet-1K training settings")[1].split("A4.2")[0]
    # Text extraction splits labels but keeps the order of the rows; the last cells count, below two header rows.
    values = [line.strip().split("\t")[-1] for line in table.splitlines() if "\t" in line][2:]
    size, rand_augment, crop, flip, erasing, smoothing, cutmix, mixup, drop, clip, name, momentum, *schedule = values
    rate, decay_type, weight_decay, batch_size, epochs, warmup = schedule
    settings, args = imagenet_recipe(variant)

    assert [settings["image_size"]] * 2 == list(map(int, re.findall(r"\d+", size)))
    magnitude, deviation = re.fullmatch(r"\((\d+), ([\d.]+)\)", rand_augment).groups()
    assert settings["rand_augment"].startswith(f"rand-m{magnitude}-mstd{deviation}-")
    steps = transforms_of(settings)
    assert (RandomResizedCropAndInterpolation in steps) == (crop == "Yes")
    assert (RandomHorizontalFlip in steps) == (flip == "Yes")
    numbers = dict(random_erasing=erasing, label_smoothing=smoothing, cutmix=cutmix, mixup=mixup)
    numbers |= dict(drop_path_rate=drop.split("/")[position], adam_beta1=momentum, weight_decay=weight_decay)
    numbers |= dict(train_batch_size=batch_size, num_train_epochs=epochs, warmup_epochs=warmup)
    numbers |= zip(
        ("learning_rate", "learning_rate_batch_size"),
        re.fullmatch(r"\$([\d.]+) \\times \\frac\{batchsize\}\{(\d+)\}\$", rate).groups(),
    )
    assert {key: settings[key] for key in numbers} == {key: float(number) for key, number in numbers.items()}
    assert str(settings["max_grad_norm"]) == clip.split("/")[position]
    assert type(make_optimizer(nn.Linear(2, 2), args)).__name__.lower() == name
    assert decay_type == f"{settings['lr_scheduler_type'].capitalize()} decay"


PAPER = dict(  # Table A2
    image_size=224,
    random_erasing=0.25,
    label_smoothing=0.1,
    cutmix=1,
    mixup=0.8,
    adam_beta1=0.9,
    learning_rate=0.0005,
    learning_rate_batch_size=512,
    lr_scheduler_type="cosine",
    weight_decay=0.05,
    train_batch_size=1024,
    num_train_epochs=300,
    warmup_epochs=5,
)
PVT_V2 = dict(  # Wang et al. (2022b), which the table mainly follows
    rand_augment="rand-m9-mstd0.5-inc1",
    min_learning_rate=1e-5,
    warmup_learning_rate=1e-6,
    repeated_augmentation=3,
    mixup_probability=1,
    cutmix_probability=0.5,
    adam_beta2=0.999,
)


@pytest.mark.parametrize("variant, drop_path, clip", [("tiny", 0.1, None), ("small", 0.1, None), ("base", 0.3, 1.0)])
def test_imagenet_recipes_have_the_settings_of_the_paper_and_of_pvt_v2(variant, drop_path, clip):
    settings, args = imagenet_recipe(variant)
    expected = {**PAPER, **PVT_V2, "drop_path_rate": drop_path, "max_grad_norm": clip}
    assert {name: settings[name] for name in expected} == expected
    optimizer = make_optimizer(nn.Linear(2, 2), args)
    assert type(optimizer).__name__ == "AdamW"
    assert [(g["betas"], g["weight_decay"]) for g in optimizer.param_groups] == [((0.9, 0.999), w) for w in (0.05, 0)]


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_imagenet_recipes_train_for_300_epochs_of_1251_steps(variant):
    plan = TrainingPlan.make(imagenet_recipe(variant)[1], num_samples=1_281_167, num_processes=8)
    assert (plan.steps_per_epoch, plan.num_steps, plan.warmup_steps) == (1251, 375_300, 6255)
    assert (plan.per_device_batch_size, plan.accumulation) == (128, 1)
    assert plan.peak_learning_rate == pytest.approx(1e-3)
    assert plan.learning_rate(0) == pytest.approx(1e-6)
    assert plan.learning_rate(375_299) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_imagenet_recipes_crop_flip_augment_and_erase_at_random(variant):
    steps = transforms_of(imagenet_recipe(variant)[0])
    crop = steps[RandomResizedCropAndInterpolation]
    assert (tuple(crop.size), tuple(crop.scale)) == ((224, 224), (0.08, 1.0))
    assert steps[RandomHorizontalFlip].p == 0.5
    assert {(op.magnitude, op.magnitude_std) for op in steps[RandAugment].ops} == {(9, 0.5)}
    assert (steps[RandomErasing].probability, steps[RandomErasing].mode) == (0.25, "pixel")


SEGMENTATION_HEADS = ("semantic_fpn", "upernet")


@pytest.mark.parametrize("column, head", enumerate(SEGMENTATION_HEADS))
def test_ade20k_recipes_are_table_a3_as_the_paper_prints_it(shared, column, head):
    text = (shared / "paper.txt").read_text()
    table = text.split("Table A3: ADE20K training settings")[1].split("A4.3")[0]
    # Text extraction separates labels from cells but keeps the order of the numbers, below three header rows.
    rows = [row.replace(", 000", "000").replace("ImageNet-1K", "") for row in table.splitlines() if "\t" in row][4:]
    numbers = [list(map(float, re.findall(r"\d+(?:\.\d+)?", row))) for row in rows]
    size, scaling, cropping, flipping, dropout, _, rate, power, decay, batch_size, steps, warmup = numbers
    settings, args = parse_recipe(f"clustr_small_ade20k_{head}.json")

    assert [settings["crop_size"]] * 2 == size
    assert [settings["image_size"] * LONGEST_RATIO, settings["image_size"]] == scaling[:2]
    assert [settings["min_scale"], settings["max_scale"]] == scaling[2:]
    assert [settings["crop_size"]] * 2 + [settings["max_class_share"]] == cropping
    assert [settings["flip_probability"]] == flipping
    assert [ClusTRConfig().classifier_dropout_prob] == dropout
    assert args.lr_scheduler_type == "polynomial" and "poly, " in table and "adamw" in table
    assert type(make_optimizer(nn.Linear(2, 2), args)).__name__ == "AdamW"
    found = [args.learning_rate, args.polynomial_power, args.weight_decay, args.max_train_steps]
    assert found == [row[column] for row in (rate, power, decay, steps)]
    assert [args.train_batch_size] == batch_size
    assert args.warmup_steps == [0, *warmup][column]  # "No" and 1500


@pytest.mark.parametrize(
    "head, steps, warmup, rate, last_rate",
    [
        ("semantic_fpn", 80_000, 0, 1e-4, 1e-4 * (1 / 80_000) ** 0.9),
        ("upernet", 160_000, 1500, 6e-5 * (1 - 1500 / 160_000), 6e-5 / 160_000),
    ],
)
def test_ade20k_recipes_have_their_schedules(head, steps, warmup, rate, last_rate):
    settings, args = parse_recipe(f"clustr_small_ade20k_{head}.json")
    plan = TrainingPlan.make(args, num_samples=20_210, num_processes=8)
    assert (plan.num_steps, plan.warmup_steps, plan.per_device_batch_size) == (steps, warmup, 2)
    assert plan.learning_rate(warmup) == pytest.approx(rate)
    assert plan.learning_rate(steps - 1) == pytest.approx(last_rate, rel=1e-6)
    assert settings["segmentation_head"] == head and settings["do_reduce_labels"] and settings["variant"] == "small"


@pytest.mark.parametrize("column, head", enumerate(("mask_rcnn", "retinanet")))
def test_coco_recipes_are_table_a4_as_the_paper_prints_it(shared, column, head):
    text = (shared / "paper.txt").read_text()
    table = text.split("Table A4: COCO object detection training settings")[1].split("Figure A1")[0]
    # Text extraction separates labels from cells but keeps the order of the numbers, below four header rows.
    rows = [row.replace("(1\t333", "(1333").replace("10\u00d7", "") for row in table.splitlines() if "\t" in row][4:]
    numbers = [list(map(float, re.findall(r"\d+(?:\.\d+)?", row))) for row in rows]
    scale, flipping, dropout, _, rate, milestones, decay, batch_size, epochs, warmup = numbers
    settings, args = parse_recipe(f"clustr_small_coco_{head}.json")

    assert [LONG_SIDE, settings["image_size"]] == scale
    assert settings["min_scale"] == settings["max_scale"] == 1 and settings["crop_size"] is None
    assert [settings["flip_probability"]] == flipping and settings["vertical_flip_probability"] == 0
    assert [settings["drop_path_rate"]] == dropout
    assert "adamw" in table and type(make_optimizer(nn.Linear(2, 2), args)).__name__ == "AdamW"
    assert args.learning_rate == rate[column] and [args.weight_decay] == decay
    assert args.lr_scheduler_type == "multistep" and args.lr_milestones == milestones
    assert [args.train_batch_size] == batch_size and [args.num_train_epochs] == epochs
    assert [args.warmup_steps] == warmup


@pytest.mark.parametrize("head, peak", [("mask_rcnn", 2e-4), ("retinanet", 1e-4)])
def test_coco_recipes_have_their_schedules(head, peak):
    _, args = parse_recipe(f"clustr_small_coco_{head}.json")
    plan = TrainingPlan.make(args, num_samples=118_287, num_processes=8)
    assert (plan.steps_per_epoch, plan.num_steps, plan.per_device_batch_size) == (7392, 12 * 7392, 2)
    steps = (0, 500, 8 * 7392 - 1, 8 * 7392, 11 * 7392 - 1, 11 * 7392, plan.num_steps - 1)
    rates = [peak / 1000, peak, peak, peak / 10, peak / 10, peak / 100, peak / 100]
    assert [plan.learning_rate(step) for step in steps] == pytest.approx(rates, rel=1e-6)


def test_an_abbreviated_recipe_is_refused_and_the_last_of_two_is_read(recipe, tmp_path):
    with pytest.raises(ValueError, match="--reci"):
        parse("--reci", recipe({"seed": 3}))
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text('{"seed": 1}')
    second.write_text('{"seed": 2}')
    assert parse("--recipe", first, f"--recipe={second}").seed == 2


def test_empty_lists_and_negative_numbers_of_a_recipe_are_read(recipe):
    assert parse("--recipe", recipe({"report_to": []})).report_to is None
    with pytest.raises(ValueError, match="--learning_rate must be positive, got -1e-05"):
        parse("--recipe", recipe({"learning_rate": -1e-5}))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lr_milestones", "nan"], "--lr_milestones must be positive"),
        (["--eval_steps", "²"], "--eval_steps must be `epoch`"),
    ],
)
def test_values_that_only_look_like_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(*arguments)


def test_a_recipe_names_no_recipe(recipe):
    with pytest.raises(ValueError, match="unknown key 'recipe'"):
        parse("--recipe", recipe({"recipe": "other.json"}))


def test_whole_body_recipe_is_section_4_4_as_the_paper_prints_it(shared):
    text = (shared / "paper.txt").read_text().split("4.4 2D Whole-body Pose Estimation")[1].split("Results:")[0]
    settings, args = parse_recipe("clustr_small_coco_wholebody.json")
    for phrase, value in (
        (r"learning rate of ([\d.]+) ", args.learning_rate),
        (r"momentum of ([\d.]+)", args.adam_beta1),
        (r"weight decay of ([\d.]+)\.", args.weight_decay),
        (r"batch size to (\d+)", args.train_batch_size),
        (r"number of epochs to (\d+)", args.num_train_epochs),
    ):
        assert float(re.search(phrase, text)[1]) == value
    assert "AdamW" in text and type(make_optimizer(nn.Linear(2, 2), args)).__name__ == "AdamW"
    numbers = [int(number) for number in re.findall(r"(\d+) (?:keypoints|for)", text)]
    parts = {name: len(part) for name, part in CONVENTIONS[settings["keypoints"]].parts.items()}
    assert numbers == [133, parts["body"], parts["foot"], parts["face"], parts["lefthand"] + parts["righthand"]]


def test_whole_body_recipe_has_the_settings_of_tcformer():
    """The section follows Zeng et al. (2022a): images of 256 x 192, milestones 170 and 200, augmentation."""
    settings, args = parse_recipe("clustr_small_coco_wholebody.json")
    augmentation = dict(
        flip_probability=0.5,
        shift_factor=0.16,
        shift_probability=0.3,
        half_body_keypoints=8,
        half_body_probability=0.3,
        rotation_factor=40,
        rotation_probability=0.6,
        scale_factor=0.5,
    )
    assert {name: settings[name] for name in augmentation} == augmentation
    assert settings["image_size"] == 256 and settings["flip_test"]
    processor = ClusTRPoseImageProcessor()
    assert dict(processor.size) == {"height": 256, "width": 192} and processor.padding_factor == 1.25
    assert (processor.keypoint_heatmap_downscale_factor, processor.keypoint_heatmap_sigma) == (4, 2)
    plan = TrainingPlan.make(args, num_samples=149_813, num_processes=8)
    assert plan.steps_per_epoch == 292 and plan.warmup_steps == 500
    rates = [plan.learning_rate(step) for step in (0, 499, 170 * 292 - 1, 170 * 292, 200 * 292 - 1, 200 * 292)]
    assert rates == pytest.approx([5e-7, 5e-4, 5e-4, 5e-5, 5e-5, 5e-6], rel=0.003)


def test_the_command_on_a_card_tells_no_secrets_and_no_folders(monkeypatch):
    arguments = ["--train_dir", "/home/somebody/train", "--token", "hf_secret", "--learning_rate=0.1"]
    arguments += [
        "--token=hf_other",
        "--hub_token",
        "hf_third",
        "--lr_milestones",
        "3",
        "5",
        "--output_dir",
        "out/my run",
    ]
    assert command_line("/somewhere/examples/run.py", arguments) == (
        "python examples/run.py \\\n    --train_dir train \\\n    --learning_rate=0.1 \\\n"
        "    --lr_milestones 3 5 \\\n    --output_dir 'out/my run'"
    )
    assert command_line("run.py", [f"{REPOSITORY}/examples/recipes/x.json"]).endswith("run.py examples/recipes/x.json")
    others = [
        "--hub-token",
        "secret",
        "--x",
        "https://me:secret@host/a.csv?key=secret",
        "--y=hf_Secret12",
        "../../bob/z",
    ]
    assert command_line("run.py", others) == (
        "python examples/run.py \\\n    --x https://host/a.csv \\\n    --y=hf_... z"
    )
    assert shorten_path("/") == "" and shorten_path("data/train") == "data/train"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert command_line("run.py", []) == "accelerate launch --num_processes 8 examples/run.py"


def test_the_settings_on_a_card_are_what_the_weights_depend_on():
    (args,) = parse_arguments(LoopArguments, arguments=["--output_dir", "x", "--learning_rate", "0.5", "--seed", "3"])
    assert args.settings["learning_rate"] == 0.5 and args.settings["seed"] == 3
    assert args.settings["adam_beta2"] == 0.999 and "max_grad_norm" not in args.settings
    assert args.settings["num_train_epochs"] == 10.0
    assert not {"output_dir", "dry_run", "push_to_hub", "logging_steps", "recipe"} & args.settings.keys()
    assert args.command.endswith("--output_dir x \\\n    --learning_rate 0.5 \\\n    --seed 3")
    splits = ["--output_dir", "x", "--train_file", "a.parquet", "--train_val_split", "0.2"]
    _, args = parse_arguments(DataArguments, LoopArguments, arguments=splits)
    assert args.settings["train_val_split"] == 0.2 and "max_train_steps" not in args.settings
    splits += ["--validation_file", "b.parquet", "--max_train_steps", "7", "--warmup_steps", "2"]
    _, args = parse_arguments(DataArguments, LoopArguments, arguments=splits)
    assert args.settings["max_train_steps"] == 7
    assert not {"train_val_split", "num_train_epochs", "warmup_epochs"} & args.settings.keys()
