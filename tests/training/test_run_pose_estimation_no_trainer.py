"""The pose estimation script: training, output files, augmentation, evaluation, errors of malformed data."""

import json
import shutil
import sys

import numpy as np
import pytest
import run_pose_estimation_no_trainer
import torch
from conftest import REPOSITORY, run_process
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForPoseEstimation

from clustr_hf import (
    ClusTRConfig,
    ClusTRForImageClassification,
    ClusTRForPoseEstimation,
    ClusTRImageProcessor,
    ClusTRPoseEstimatorOutput,
    ClusTRPoseImageProcessor,
)
from clustr_hf.keypoints import COCO, COCO_WHOLEBODY
from clustr_hf.metrics import keypoint_average_precision
from clustr_hf.remote_code.image_processing_clustr_pose import decode_heatmaps
from clustr_hf.training.data.loaders import collate
from clustr_hf.training.data.splits import load_data
from clustr_hf.training.tasks.pose_estimation.annotations import parse_persons
from clustr_hf.training.tasks.pose_estimation.data import PoseDataArguments, pose_format
from clustr_hf.training.tasks.pose_estimation.evaluation import PoseScores, group_by_image, predict
from clustr_hf.training.tasks.pose_estimation.person_boxes import PersonBox, annotated_boxes, detected_boxes
from clustr_hf.training.tasks.pose_estimation.transforms import (
    PoseAugmentationArguments,
    PoseTransform,
    ReadPerson,
    Sample,
    prepare_for_evaluation,
)


SCRIPT = run_pose_estimation_no_trainer
PLAIN = PoseAugmentationArguments(
    flip_probability=0, shift_probability=0, half_body_probability=0, rotation_probability=0, scale_factor=0
)


def read_json(path):
    return json.loads(path.read_text())


def files_of(folder):
    """Arguments for the persons' files, by name."""
    settings = {"--train_dir": folder / "train", "--train_annotation_file": folder / "train.json"}
    settings |= {"--validation_dir": folder / "validation", "--validation_annotation_file": folder / "validation.json"}
    return {**settings, "--keypoints": "coco"}


def arguments_for(folder, output_dir):
    settings = {**files_of(folder), "--output_dir": output_dir, "--image_size": 64, "--train_batch_size": 8}
    settings |= {"--logging_steps": 1, "--learning_rate": 4e-3, "--eval_steps": "never", "--num_pictures": 1}
    return settings | {"--per_device_eval_batch_size": 3, "--max_grad_norm": 1}


@pytest.fixture
def train(person_folders, tmp_path, run_script):
    """Run the script on the drawn persons; returns the output folder."""

    def run(*arguments, output_dir=tmp_path / "out", **changes):
        settings = {**arguments_for(person_folders, output_dir), **{f"--{key}": v for key, v in changes.items()}}
        run_script(SCRIPT, settings, *arguments)
        return output_dir

    return run


@pytest.fixture(scope="module")
def trained(person_folders, tmp_path_factory):
    """Output folder of a training on the drawn persons, run as a user would."""
    output_dir = tmp_path_factory.mktemp("trained") / "dots"
    settings = {**arguments_for(person_folders, output_dir), "--max_train_steps": 80, "--eval_steps": 40}
    settings |= {"--num_pictures": 2, "--warmup_steps": 10, "--rotation_factor": 10, "--scale_factor": 0.1}
    settings |= {"--half_body_probability": 0, "--flip_probability": 0, "--flip_test": False}
    command = [sys.executable, SCRIPT.__file__, *(part for pair in settings.items() for part in pair)]
    run_process(command, output_dir.parent)
    return output_dir


def test_learns_persons_and_writes_a_repository(trained):
    results = read_json(trained / "all_results.json")
    assert results["eval_samples"] == 8  # neither crowds nor persons without keypoints
    assert results["eval_body_ap"] > 0.3 and results["best_metric"] >= results["eval_body_ap"]
    table = read_json(trained / "per_part_results.json")
    assert list(table) == ["body"] and table["body"]["persons"] == 8
    assert table["body"]["ap"] == results["eval_body_ap"]
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_clustr_pose.py", "preprocessor_config.json"} <= names
    assert {"image_processing_clustr_pose.py", "pipeline_clustr_pose.py"} <= names
    assert {"README.md", "training_curve.png", "predictions.png"} <= names
    card = (trained / "README.md").read_text()
    assert "pipeline_tag: keypoint-detection" in card and 'pipeline("keypoint-detection"' in card
    assert f"| body | {100 * table['body']['ap']:.1f} |" in card
    assert f"| Body AP | {table['body']['ap']:.4f} |" in card and ", validation | 8 |" in card
    config = read_json(trained / "config.json")
    assert config["id2label"]["16"] == "right_ankle" and [1, 2] in config["flip_pairs"]
    processor = read_json(trained / "preprocessor_config.json")
    assert processor["size"] == {"height": 64, "width": 48} and processor["keypoint_heatmap_downscale_factor"] == 2
    with Image.open(trained / "predictions.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 20


def test_what_a_user_finds_is_what_the_script_has_evaluated(trained, person_folders):
    model = AutoModelForPoseEstimation.from_pretrained(trained).eval()
    processor = AutoImageProcessor.from_pretrained(trained)
    predictions, references = [], []
    content = read_json(person_folders / "validation.json")
    for image in content["images"]:
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        boxes = [row["bbox"] for row in rows if any(row["keypoints"][2::3]) and not row["iscrowd"]]
        with Image.open(person_folders / "validation" / image["file_name"]) as picture, torch.no_grad():
            outputs = model(**processor(picture, boxes=[boxes], return_tensors="pt"))
        [persons] = processor.post_process_pose_estimation(outputs, [boxes])
        scores = [person["scores"] for person in persons]
        keypoints = [torch.cat([p["keypoints"], p["scores"][:, None]], dim=1).tolist() for p in persons]
        means = [float(score[score > 0.2].mean()) for score in scores]
        predictions.append({"keypoints": np.array(keypoints).reshape(-1, 17, 3), "scores": means})
        corners = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        reference = {"keypoints": np.array([row["keypoints"] for row in rows]).reshape(-1, 17, 3), "boxes": corners}
        references.append({**reference, **{key: [row[key] for row in rows] for key in ("area", "iscrowd")}})
    expected = keypoint_average_precision(predictions, references, COCO)
    results = read_json(trained / "all_results.json")
    for name in ("body_ap", "body_ap75", "body_ar"):
        assert results[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6)


def moves(name):
    """Whether a weight is a statistic of batch norm, which a step changes at any learning rate."""
    return "running" in name or "num_batches" in name


def test_a_checkpoint_scores_the_same_whatever_order_its_keypoints_have(train, trained, tmp_path):
    """The checkpoint is saved with heatmaps and names in another order."""
    model = ClusTRForPoseEstimation.from_pretrained(trained)
    order = torch.arange(16, -1, -1)
    with torch.no_grad():
        for parameter in model.head[-1].parameters():
            parameter.copy_(parameter[order])
    names = COCO.names[::-1]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.config.flip_pairs = model.config.edges = None
    model.save_pretrained(tmp_path / "it")
    ClusTRPoseImageProcessor.from_pretrained(trained).save_pretrained(tmp_path / "it")
    expected = read_json(trained / "all_results.json")
    folder = train("--eval_only", "--model_name_or_path", tmp_path / "it", flip_test=False)
    assert read_json(folder / "eval_results.json")["eval_body_ap"] == pytest.approx(expected["eval_body_ap"], abs=0.01)
    start = ["--model_name_or_path", tmp_path / "it", "--max_train_steps", 1]
    folder = train(*start, learning_rate=1e-12, flip_test=False, output_dir=tmp_path / "tuned")
    assert read_json(folder / "all_results.json")["eval_body_ap"] == pytest.approx(expected["eval_body_ap"], abs=0.01)
    config = read_json(folder / "config.json")
    assert list(config["id2label"].values()) == list(COCO.names) and [1, 2] in config["flip_pairs"]
    after, before = (load_file(place / "model.safetensors") for place in (folder, trained))
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before if not moves(name))


def change_files(folder, target, change):
    """The persons' files, both modified by `change`."""
    shutil.copytree(folder, target)
    for split in ("train", "validation"):
        content = read_json(folder / f"{split}.json")
        change(content)
        (target / f"{split}.json").write_text(json.dumps(content))
    return target


def turn_around(content):
    """Change an annotation file: keypoints in another order, named in the category, and persons as second category."""
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 4, "name": "Person", "keypoints": list(COCO.names[::-1])}]
    for row in content["annotations"]:
        row["category_id"] = 4
        row["keypoints"] = np.array(row["keypoints"]).reshape(-1, 3)[::-1].ravel().tolist()
    dog = {**content["annotations"][0], "id": 900, "category_id": 1}
    content["annotations"].append(dog)


def test_persons_and_their_keypoints_are_found_by_name(person_folders, tmp_path):
    changed = change_files(person_folders, tmp_path / "data", turn_around)
    for rows, expected in zip(load(changed).values(), load(person_folders).values(), strict=True):
        for row, same in zip(rows, expected, strict=True):
            found, wanted = (vars(parse_persons(each, COCO)) for each in (row, same))
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    boxes = [{"image_id": 50, "bbox": [1, 2, 30, 40], "score": 0.9, "category_id": number} for number in (1, 4, 4)]
    (tmp_path / "boxes.json").write_text(
        json.dumps([*boxes, {key: boxes[0][key] for key in boxes[0] if key[0] != "c"}])
    )
    assert len(detected_boxes(load(changed)["validation"], str(tmp_path / "boxes.json"))) == 3


@pytest.mark.parametrize(
    "categories, message",
    [
        (
            [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            r"one category 'person', or one only, got \['cat', 'dog'\]",
        ),
        (
            [{"id": 1, "name": "person", "keypoints": ["nose", "tail"]}],
            r"must have the keypoints .*got \['nose', 'tail'\]",
        ),
    ],
)
def test_persons_and_keypoints_that_cannot_be_found_are_refused(person_folders, tmp_path, categories, message):
    changed = change_files(person_folders, tmp_path / "data", lambda content: content.update(categories=categories))
    with pytest.raises(ValueError, match=message):
        load(changed)


def test_resumes_to_the_same_weights(train, tmp_path):
    """Trains with all augmentation."""
    steps = ["--max_train_steps", 4, "--checkpointing_steps", 2]
    whole = train(*steps, output_dir=tmp_path / "whole")
    resumed = train(
        *steps, "--resume_from_checkpoint", whole / "checkpoint-2", output_dir=tmp_path / "resumed", num_pictures=0
    )
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (resumed / "predictions.png").exists()


def test_a_classifier_is_fine_tuned(train, tmp_path):
    ClusTRForImageClassification(ClusTRConfig.from_variant("nano", num_labels=10)).save_pretrained(tmp_path / "it")
    ClusTRImageProcessor().save_pretrained(tmp_path / "it")
    before = load_file(tmp_path / "it" / "model.safetensors")
    settings = ["--max_train_steps", 1, "--freeze_stages", 1]
    folder = train("--model_name_or_path", tmp_path / "it", *settings, learning_rate=1e-4)
    after = load_file(folder / "model.safetensors")
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert moved and {name.split(".")[2] for name in moved} == {"1", "2", "3"}
    assert read_json(folder / "preprocessor_config.json")["image_processor_type"] == "ClusTRPoseImageProcessor"


def test_evaluates_on_the_boxes_of_a_detector(train, trained, person_folders, tmp_path):
    """Duplicate boxes count once; other categories and images are ignored."""
    content = read_json(person_folders / "validation.json")
    found = [
        {"image_id": row["image_id"], "bbox": row["bbox"], "score": score, "category_id": 1}
        for row in content["annotations"]
        if any(row["keypoints"][2::3]) and not row["iscrowd"] and row["image_id"] != 53
        for score in (0.9, 0.8)
    ]
    found += [{**found[0], "category_id": 2}, {**found[0], "image_id": 1234}, {**found[0], "bbox": [3, 3, 0, 8]}]
    (tmp_path / "boxes.json").write_text(json.dumps(found))
    settings = ["--model_name_or_path", trained, "--max_train_steps", 1, "--flip_test", False]
    folder = train(*settings, learning_rate=1e-9, validation_boxes_file=tmp_path / "boxes.json")
    results, before = read_json(folder / "all_results.json"), read_json(trained / "all_results.json")
    assert results["eval_samples"] == 12
    assert 0 < results["eval_body_ar50"] <= 0.75 + 1e-9  # six of the eight persons
    assert results["eval_body_ap50"] > 0.5 * before["eval_body_ap50"] > 0.2


def make_sample(points, box=(10.0, 10.0, 60.0, 80.0), size=(120, 100), convention=COCO):
    """An image (height, width) that is bright at a keypoint."""
    image = Image.new("RGB", size[::-1])
    canvas = ImageDraw.Draw(image)
    keypoints = torch.zeros(convention.num_keypoints, 3)
    for index, (x, y) in points.items():
        canvas.ellipse((x - 3, y - 3, x + 3, y + 3), fill="white")
        keypoints[index] = torch.tensor([x, y, 2.0])
    return Sample(image, PersonBox(0, 0, box), keypoints)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_every_person_once(trained, person_folders, tmp_path):
    """FSDP in bf16, with a learning rate of almost 0: the scores are close to those of one process."""
    config = REPOSITORY / "examples" / "accelerate" / "fsdp2_cpu.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 0]
    settings = {**arguments_for(person_folders, tmp_path / "two"), "--max_train_steps": 1, "--learning_rate": 1e-12}
    settings |= {"--model_name_or_path": trained, "--flip_test": False, "--mixed_precision": "bf16"}
    command = [*launch, SCRIPT.__file__, *(part for pair in settings.items() for part in pair)]
    run_process(command, tmp_path, OMP_NUM_THREADS="1")
    one, two = (read_json(place / "all_results.json") for place in (trained, tmp_path / "two"))
    assert one["eval_samples"] == two["eval_samples"] == 8
    assert two["eval_body_ap50"] == pytest.approx(one["eval_body_ap50"], abs=0.2)


AUGMENTATIONS = {
    "nothing": {},
    "flip": {"flip_probability": 1},
    "shift": {"shift_probability": 1},
    "rotation": {"rotation_probability": 1},
    "scale": {"scale_factor": 0.5},
    "everything": {"flip_probability": 1, "shift_probability": 1, "rotation_probability": 1, "scale_factor": 0.3},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_heat_is_where_the_keypoint_is_in_the_crop(name):
    """Checks each augmentation of the crop; a flip turns the left elbow into the right one."""
    processor = ClusTRPoseImageProcessor(size={"height": 128, "width": 96})
    transform = PoseTransform(processor, COCO, PoseAugmentationArguments(**{**vars(PLAIN), **AUGMENTATIONS[name]}))
    left, right = COCO.names.index("left_elbow"), COCO.names.index("right_elbow")
    expected = right if "flip_probability" in AUGMENTATIONS[name] else left
    found = 0
    for seed in range(10):
        torch.manual_seed(seed)
        crop = transform(make_sample({left: (45.0, 42.0)}))
        assert crop["pixel_values"].shape == (3, 128, 96) and crop["labels"].shape == (17, 32, 24)
        if not crop["label_weights"].any():
            continue  # the keypoint is outside the crop
        assert crop["label_weights"].nonzero().tolist() == [[expected]]
        brightness = crop["pixel_values"][1] - crop["pixel_values"][1].min()
        total, axes = brightness.sum(), [torch.arange(extent) * 1.0 for extent in (128, 96)]
        y, x = ((brightness.sum(dim=1 - axis) @ axes[axis] / total).item() for axis in (0, 1))
        if not (8 < x < 88 and 8 < y < 120):
            continue  # the border cuts the dot
        [[point]], _ = decode_heatmaps(crop["labels"][None, expected, None])
        assert point.tolist() == pytest.approx([x * 23 / 95, y * 31 / 127], abs=0.15)
        found += 1
    assert found >= 4


def test_random_regions_are_as_the_arguments_say():
    processor, sample = ClusTRPoseImageProcessor(), make_sample(dict.fromkeys(range(5), (40.0, 50.0)))
    whole = (torch.tensor([40.0, 50.0]), torch.tensor([75.0, 100.0]))
    regions = [PoseTransform(processor, COCO, PLAIN)._random_region(sample) for _ in range(3)]
    for center, extent, rotation in regions:
        assert torch.equal(center, whole[0]) and torch.equal(extent, whole[1]) and rotation == 0
    transform = PoseTransform(processor, COCO, PoseAugmentationArguments(flip_probability=0))
    centers, extents, rotations = map(torch.stack, zip(*(transform._random_region(sample) for _ in range(4000))))
    shift = (centers - whole[0]) / extents * (extents / whole[1])
    assert (shift != 0).any(dim=1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert 0.15 < shift.abs().max() <= 0.16 + 1e-6
    scale = (extents / whole[1])[:, 0]
    torch.testing.assert_close(extents[:, 1] / whole[1][1], scale)
    assert scale.min() >= 0.5 and scale.max() <= 1.5 and scale.std().item() == pytest.approx(0.38, abs=0.03)
    assert (rotations != 0).float().mean().item() == pytest.approx(0.6, abs=0.03)
    turned = rotations[rotations != 0]
    assert turned.abs().max() <= 80 and turned.std().item() == pytest.approx(39, abs=2) and abs(turned.mean()) < 3


def plain_but(**changes):
    arguments = PoseAugmentationArguments(**{**vars(PLAIN), **changes})
    return PoseTransform(ClusTRPoseImageProcessor(), COCO, arguments)


def test_half_bodies():
    """Persons with more than eight keypoints: crops are 1.5 times the box of the upper or the lower keypoints."""
    upper = {index: (20.0 + index, 20.0 + 2 * index) for index in range(11)}
    lower = {index: (30.0 + index, 70.0 + index) for index in range(11, 17)}
    whole = [40.0, 50.0]
    transform = plain_but(half_body_probability=1)
    heights = [transform._random_region(make_sample(upper | lower))[0].tolist()[1] for _ in range(1000)]
    assert sorted(set(heights)) == pytest.approx([30.0, 83.5])
    assert np.mean(np.array(heights) < 50) == pytest.approx(0.7, abs=0.05)  # the upper half
    _, extent, _ = transform._random_region(make_sample(upper))
    assert extent.tolist() == pytest.approx([22.5, 30.0])  # 10 x 20, at the shape of the crop 15 x 20
    few = make_sample({index: (20.0 + index, 20.0) for index in range(8)})
    assert transform._random_region(few)[0].tolist() == whole
    together = make_sample(dict.fromkeys(range(9), (20.0, 20.0)))
    assert transform._random_region(together)[0].tolist() == whole  # a half without extent
    transform = plain_but(half_body_probability=1, half_body_keypoints=2)
    two_above = make_sample({0: (1, 1), 1: (2, 2), 15: (3, 3), 16: (4, 5)})  # two lower keypoints are too few
    assert {tuple(transform._random_region(two_above)[0].tolist()) for _ in range(20)} == {(1.5, 1.5)}
    one_above = make_sample({0: (1, 1), 15: (3, 3), 16: (4, 5)})
    assert transform._random_region(one_above)[0].tolist() == whole


def load(folder, **changes):
    args = PoseDataArguments(**{**{name[2:]: str(value) for name, value in files_of(folder).items()}, **changes})
    return load_data(args, {}, 0, pose_format(args))


def test_who_is_trained_and_evaluated_on(person_folders):
    rows = load(person_folders)["validation"]
    places = annotated_boxes(rows, COCO)
    assert [(place.row, place.person) for place in places] == [(row, person) for row in range(4) for person in (0, 1)]
    processor = ClusTRPoseImageProcessor()
    read = ReadPerson(rows, places, processor, COCO, "validation")
    sample = read(3)
    expected = parse_persons(rows[1], COCO)
    torch.testing.assert_close(sample.keypoints, torch.from_numpy(expected.keypoints[1]).float())
    evaluated, trained_on = prepare_for_evaluation(sample, processor), PoseTransform(processor, COCO, PLAIN)(sample)
    torch.testing.assert_close(evaluated["pixel_values"], trained_on["pixel_values"], atol=1e-4, rtol=0)
    target = processor(
        sample.image, boxes=[[sample.person_box.box]], keypoints=[sample.keypoints[None]], return_tensors="pt"
    )
    torch.testing.assert_close(target["labels"][0], trained_on["labels"], atol=1e-4, rtol=0)
    assert torch.equal(target["label_weights"][0], trained_on["label_weights"])


class TrueHeat(torch.nn.Module):
    """A model that returns given target heatmaps."""

    def __init__(self, heatmaps):
        super().__init__()
        self.heatmaps = heatmaps

    def forward(self, pixel_values, flip_pairs=None):
        return ClusTRPoseEstimatorOutput(heatmaps=self.heatmaps)


@pytest.mark.parametrize(
    "folder, images, file, name",
    [
        ("coco-wholebody-sample", "images", "test_coco_wholebody.json", "coco_wholebody"),
        ("coco-mini", "val", "annotations/person_keypoints_val.json", "coco"),
    ],
)
def test_the_truth_through_the_whole_chain_is_worth_all_there_is(shared, folder, images, file, name):
    """From boxes and crops to decoding and metric. Three persons of coco-mini have keypoints outside their crops."""
    folder = shared / "data" / folder
    files = {}
    for split in ("train", "validation"):
        files |= {f"{split}_dir": str(folder / images), f"{split}_annotation_file": str(folder / file)}
    args = PoseDataArguments(**files, keypoints=name)
    rows, processor = load_data(args, {}, 0, pose_format(args))["validation"], ClusTRPoseImageProcessor()
    places = annotated_boxes(rows, args.convention)
    read = ReadPerson(rows, places, processor, args.convention, "validation")
    flip_pairs, scores = args.convention.flip_pairs, PoseScores(rows, args.convention)
    records = []
    for index, place in enumerate(places):
        person = read(index)
        keypoints = [person.keypoints[None]]
        target = processor(person.image, boxes=[[place.box]], keypoints=keypoints, return_tensors="pt")
        batch = collate([prepare_for_evaluation(person, processor)])
        records += predict(TrueHeat(target["labels"]), batch, processor, flip_pairs)
    found, table = scores(records)
    annotations = read_json(folder / file)["annotations"]
    assert len(records) == sum(row["num_keypoints"] > 0 and not row["iscrowd"] for row in annotations) > 10
    assert found["eval_body_ap50"] == 1.0 and found["eval_body_ap"] > 0.98
    if name == "coco_wholebody":
        assert [row["ap"] for row in table.values()] == [1.0] * 7
        persons = {name: row["persons"] for name, row in table.items()}
        assert persons == {"body": 12, "foot": 10, "face": 4, "lefthand": 5, "righthand": 5, "hand": 7, "wholebody": 12}


def test_predictions_by_image_without_those_found_twice():
    generator = np.random.default_rng(0)
    points = np.concatenate([generator.uniform(0, 100, (17, 2)), np.full((17, 1), 0.6)], axis=1)
    nearly, other = (points + np.array(offset) for offset in ([0.5, 0, 0], [40, 30, 0]))
    places = [(2, 0.5, points), (2, 0.9, nearly), (0, 1.0, other)]
    records = [
        (PersonBox(row, None, (0.0, 0.0, 100.0, 100.0), score), {"keypoints": keypoints, "score": 0.6, "area": 10000.0})
        for row, score, keypoints in places
    ]
    first, second, third = group_by_image(records, 3, COCO.sigmas)
    assert first["scores"] == pytest.approx([0.6]) and np.array_equal(first["keypoints"][0], other)
    assert second["keypoints"].shape == (0, 17, 3)
    assert third["scores"] == pytest.approx([0.54]) and np.array_equal(third["keypoints"][0], nearly)


@pytest.mark.slow
def test_learns_the_persons_of_the_sample_by_heart(shared, tmp_path, run_script):
    """Overfits COCO-WholeBody's sample with a shortened recipe."""
    folder = shared / "data" / "coco-wholebody-sample"
    settings = {"--recipe": REPOSITORY / "examples" / "recipes" / "clustr_nano_wholebody_sample.json"}
    for split in ("train", "validation"):
        settings |= {
            f"--{split}_dir": folder / "images",
            f"--{split}_annotation_file": folder / "test_coco_wholebody.json",
        }
    settings |= {"--output_dir": tmp_path, "--max_train_steps": 150, "--eval_steps": "never", "--num_pictures": 0}
    run_script(SCRIPT, settings, "--image_size", 128)
    results = read_json(tmp_path / "all_results.json")
    assert results["eval_wholebody_ap"] > 0.6  # 0.97 after 240 steps


def test_trains_and_evaluates_on_cocos_keypoints(shared, tmp_path, run_script):
    folder = shared / "data" / "coco-mini"
    settings = {"--recipe": REPOSITORY / "examples" / "recipes" / "clustr_nano_person_keypoints.json"}
    for split, images in (("train", "train"), ("validation", "val")):
        settings[f"--{split}_dir"] = folder / images
        settings[f"--{split}_annotation_file"] = folder / "annotations" / f"person_keypoints_{images}.json"
    settings |= {"--output_dir": tmp_path, "--max_train_steps": 2, "--eval_steps": "never", "--image_size": 64}
    run_script(SCRIPT, settings, "--max_eval_samples", 20, "--num_pictures", 1)
    results = read_json(tmp_path / "all_results.json")
    assert (
        results["eval_samples"] > 5 and 0 <= results["eval_body_ap"] <= 1 and (tmp_path / "predictions.png").is_file()
    )


def test_broken_images_are_skipped_counted_and_not_drawn(person_folders, tmp_path, run_script):
    data = shutil.copytree(person_folders, tmp_path / "data")
    for path in (data / "train" / "11.png", data / "validation" / "50.png"):  # the first one in the pictures
        path.write_bytes(b"broken")
    run_script(SCRIPT, arguments_for(data, tmp_path / "out"), "--num_train_epochs", 1)
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["skipped_samples"] == 2 and results["eval_samples"] == 6  # two persons per image
    assert (tmp_path / "out" / "predictions.png").is_file()


def test_dry_run_of_the_papers_recipe(train, capsys):
    recipe = REPOSITORY / "examples" / "recipes" / "clustr_small_coco_wholebody.json"
    folder = train("--recipe", recipe, "--dry_run", "--variant", "nano", image_size=64, train_batch_size=4)
    printed = capsys.readouterr().out
    assert "1,260 (6 an epoch" in printed or "1260 (6 an epoch" in printed
    assert (folder / "learning_rate.png").is_file() and not (folder / "config.json").exists()


def spoil(folder, target, change):
    """Copies of a folder's files, with validation annotations that `change` has damaged."""
    content = read_json(folder / "validation.json")
    change(content)
    (target / "validation.json").write_text(json.dumps(content))
    for name in ("train", "validation"):
        (target / name).symlink_to(folder / name)
    (target / "train.json").write_text((folder / "train.json").read_text())
    return target


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["annotations"][0].pop("keypoints"), r"image 50: an annotation must have \['keypoints'\], got"),
        (lambda c: c["annotations"][0]["keypoints"].pop(), r"image 50: an annotation must have 17 keypoints .* got 50"),
        (lambda c: c["annotations"][1].pop("bbox"), r"image 50: an annotation must have \['bbox'\]"),
        (lambda c: c["annotations"].clear(), "the validation images must have persons to look at, got none"),
        (lambda c: c["images"][0].update(file_name="no.png"), "must name images that exist .* missing"),
    ],
)
def test_wrong_annotations_are_named(person_folders, tmp_path, run_script, change, message):
    settings = arguments_for(spoil(person_folders, tmp_path, change), tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        run_script(SCRIPT, settings, "--max_train_steps", 1)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "content, message",
    [("{", "must hold COCO's detections"), ("[3]", "must hold COCO's detections"), (None, "cannot be read")],
)
def test_a_wrong_file_of_boxes_is_named(train, tmp_path, content, message):
    path = tmp_path / "boxes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        train("--max_train_steps", 1, validation_boxes_file=path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--keypoints", "hands"], r"--keypoints must be one of \('coco', 'coco_wholebody'\), got 'hands'"),
        (["--flip_probability", 2], r"--flip_probability must be in \[0, 1\], got 2.0"),
        (["--scale_factor", 1], r"--scale_factor must be in \[0, 1\), got 1.0"),
        (["--rotation_factor", -1], "--rotation_factor must be 0 or more, got -1.0"),
        (["--num_pictures", -1], "--num_pictures must be 0 or more, got -1"),
        (["--picture_threshold", 1.5], r"--picture_threshold must be in \[0, 1\], got 1.5"),
        (["--config_overrides", '{"strides": [1, 1, 2, 2]}'], "the ratio of crops to heatmaps must be an integer"),
    ],
)
def test_wrong_arguments_are_named(train, arguments, message):
    with pytest.raises(ValueError, match=message):
        train("--max_train_steps", 1, *arguments)


def test_a_model_of_another_convention_is_told_apart(train, tmp_path):
    config = ClusTRConfig.from_variant("nano", **COCO_WHOLEBODY.config_fields())
    ClusTRForPoseEstimation(config).save_pretrained(tmp_path / "it")
    ClusTRPoseImageProcessor(padding_factor=1.5).save_pretrained(tmp_path / "it")
    folder = train(
        "--model_name_or_path", tmp_path / "it", "--max_train_steps", 1, "--ignore_mismatched_sizes", num_pictures=0
    )
    config = read_json(folder / "config.json")
    assert len(config["id2label"]) == 17 and len(config["flip_pairs"]) == 8
    assert read_json(folder / "preprocessor_config.json")["padding_factor"] == 1.5
