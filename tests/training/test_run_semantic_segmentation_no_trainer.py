"""The segmentation script: training, output files, evaluation, errors of malformed data."""

import json
import shutil
import sys

import numpy as np
import pytest
import run_image_classification_no_trainer as classification
import run_semantic_segmentation_no_trainer as script
import torch
from conftest import REPOSITORY, run_process
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from transformers import SwinBackbone, SwinConfig, pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRForSemanticSegmentation, ClusTRImageProcessor
from clustr_hf.metrics import MeanIoU
from clustr_hf.training.baselines import (
    BaselineArguments,
    PvtV2ForSemanticSegmentation,
    SwinForSemanticSegmentation,
    load_baseline,
)
from clustr_hf.training.tasks.semantic_segmentation.data import read_folder
from clustr_hf.training.tasks.semantic_segmentation.evaluation import (
    SegmentationEvaluationArguments,
    predict_logits,
    window_starts,
)
from clustr_hf.training.tasks.semantic_segmentation.model import segmentation_processor
from clustr_hf.training.tasks.semantic_segmentation.recipe import class_weights
from clustr_hf.training.tasks.semantic_segmentation.transforms import (
    SegmentationAugmentationArguments,
    SegmentationTransform,
    scaled_size,
)


def arguments_for(data, output_dir):
    """The script's arguments for the shapes, by name."""
    settings = {"--output_dir": output_dir, "--train_dir": data / "train", "--validation_dir": data / "validation"}
    settings |= {"--id2label_file": data / "id2label.json", "--image_size": 96, "--crop_size": 64}
    return settings | {"--train_batch_size": 4, "--logging_steps": 1, "--learning_rate": 3e-3, "--eval_steps": "never"}


@pytest.fixture
def train(segmentation_folders, tmp_path, run_script):
    """Run the script on the shapes; returns the output folder."""

    def run(*arguments, data=segmentation_folders, output_dir=tmp_path / "out", without=()):
        settings = {name: value for name, value in arguments_for(data, output_dir).items() if name not in without}
        run_script(script, settings, *arguments)
        return output_dir

    return run


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def trained(segmentation_folders, tmp_path_factory):
    """Output folder of a short training on the shapes, run as a user would."""
    output_dir = tmp_path_factory.mktemp("trained") / "shapes"
    settings = arguments_for(segmentation_folders, output_dir) | {"--max_train_steps": 90, "--eval_steps": 45}
    settings |= {"--class_weight_exponent": 0.5, "--eval_stride": 48, "--eval_window": 96, "--num_pictures": 3}
    command = [sys.executable, script.__file__, *(part for pair in settings.items() for part in pair)]
    run_process(command, output_dir.parent)
    return output_dir


def test_learns_shapes_and_writes_a_repository(trained):
    results = read_json(trained / "all_results.json")
    assert results["eval_mean_iou"] > 0.7 and results["eval_samples"] == 5
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_clustr_segmentation.py", "preprocessor_config.json"} <= names
    assert {"README.md", "training_curve.png", "predictions.png", "per_class_results.json"} <= names
    table = read_json(trained / "per_class_results.json")
    assert list(table) == ["ground", "disc", "square"]
    assert np.mean([row["iou"] for row in table.values()]) == pytest.approx(results["eval_mean_iou"])
    assert sum(row["pixels"] for row in table.values()) == 3 * 90 * 120 + 2 * 128 * 96
    card = (trained / "README.md").read_text()
    assert f"| Mean IoU | {results['eval_mean_iou']:.4f} |" in card and "| class_weight_exponent | " in card
    assert f"| disc | {100 * table['disc']['iou']:.1f} |" in card
    assert 'pipeline("image-segmentation"' in card and "pipeline_tag: image-segmentation" in card
    processor = read_json(trained / "preprocessor_config.json")
    assert not processor["do_center_crop"] and processor["size"] == {"shortest_edge": 96, "longest_edge": 384}
    weights = read_json(trained / "config.json")["semantic_class_weights"]
    assert weights[0] < 0.5 < max(weights[1:]) <= 2


def test_the_picture_shows_three_images_with_truth_and_prediction(trained):
    with Image.open(trained / "predictions.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.std() > 20
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(3 * 90 / (3 * 120), rel=0.15)


def test_evaluates_a_checkpoint_without_training(train, trained):
    windows = ["--eval_window", 96, "--eval_stride", 48]
    folder = train("--eval_only", "--model_name_or_path", trained, "--class_weight_exponent", 0.5, *windows)
    written = {"eval_results.json", "per_class_results.json", "predictions.png"}
    assert {path.name for path in folder.iterdir()} == written
    assert read_json(folder / "per_class_results.json") == read_json(trained / "per_class_results.json")
    results, of_training = read_json(folder / "eval_results.json"), read_json(trained / "all_results.json")
    assert results == {name: pytest.approx(of_training[name]) for name in of_training if name.startswith("eval_")}
    with pytest.raises(ValueError, match="--eval_only needs weights: --model_name_or_path or --resume_from_checkpoint"):
        train("--eval_only")
    with pytest.raises(ValueError, match="--push_to_hub cannot be combined with --eval_only"):
        train("--eval_only", "--model_name_or_path", trained, "--push_to_hub")


def count_otherwise(data, names, *folders):
    """Change the order of the classes in label maps and in the file that names them."""
    own = ["ground", "disc", "square"]
    values = np.array([names.index(name) for name in own], dtype=np.uint8)
    for path in (path for folder in folders for path in (data / folder / "annotations").iterdir()):
        Image.fromarray(values[np.asarray(Image.open(path))]).save(path)
    (data / "id2label.json").write_text(json.dumps(dict(enumerate(names))))


@pytest.mark.parametrize("names", [["square", "ground", "disc"], ["disc", "square", "ground"]])
def test_a_checkpoint_scores_the_same_whatever_order_the_maps_count_in(train, trained, own_data, tmp_path, names):
    count_otherwise(own_data, names, "train", "validation")
    windows = ["--eval_window", 96, "--eval_stride", 48]
    start = ["--model_name_or_path", trained, *windows, "--class_weight_exponent", 0.5]
    folder = train("--eval_only", *start, data=own_data)
    results, of_training = read_json(folder / "eval_results.json"), read_json(trained / "all_results.json")
    assert results == {name: pytest.approx(of_training[name]) for name in of_training if name.startswith("eval_")}
    start += ["--max_train_steps", 1, "--learning_rate", 1e-12]
    folder = train(*start, data=own_data, output_dir=tmp_path / "tuned")
    config, before = (read_json(place / "config.json") for place in (folder, trained))
    for name in ("id2label", "semantic_class_weights"):
        assert config[name] == before[name]
    table, expected = (read_json(place / "per_class_results.json") for place in (folder, trained))
    for name, row in expected.items():
        assert table[name] == pytest.approx(row, abs=0.02)  # the statistics of batch norm have changed


def test_maps_of_some_of_a_checkpoints_classes_are_evaluated(train, trained, own_data):
    names = ["disc", "ground"]
    for path in (own_data / "validation" / "annotations").iterdir():
        pixels = np.asarray(Image.open(path))
        Image.fromarray(np.array([1, 0, 255], dtype=np.uint8)[pixels]).save(path)
    shutil.copytree(own_data / "validation", own_data / "train", dirs_exist_ok=True)
    for path in (own_data / "train" / "annotations").iterdir():
        if not (own_data / "validation" / "annotations" / path.name).exists():
            path.unlink()
            (own_data / "train" / "images" / path.name).unlink()
    (own_data / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    folder = train("--eval_only", "--model_name_or_path", trained, data=own_data)
    assert read_json(folder / "eval_results.json")["eval_mean_accuracy"] > 0.6
    with pytest.raises(ValueError, match=r"has 3 classes, .* the data has 2, .*--ignore_mismatched_sizes trains a new"):
        train("--model_name_or_path", trained, "--max_train_steps", 1, data=own_data)


def test_other_classes_than_a_checkpoints_are_refused_by_name(train, trained, own_data):
    (own_data / "id2label.json").write_text('{"0": "ground", "1": "disc", "2": "star"}')
    for mode in (["--eval_only"], ["--max_train_steps", 1]):
        with pytest.raises(
            ValueError, match=r"\['ground', 'disc', 'square'\], and the .* \['ground', 'disc', 'star'\]"
        ):
            train("--model_name_or_path", trained, *mode, data=own_data)


def test_evaluates_the_last_checkpoint_of_a_run_and_leaves_the_run_alone(train):
    """Evaluates the moving average; files that another run is writing are kept."""
    settings = ["--max_train_steps", 2, "--ema_decay", 0.9, "--checkpointing_steps", 2, "--num_pictures", 0]
    folder = train(*settings)
    of_training, names = read_json(folder / "all_results.json"), {path.name for path in folder.iterdir()}
    (folder / "best-9.incomplete").mkdir()
    train(*settings, "--eval_only", "--resume_from_checkpoint", "latest")
    results = read_json(folder / "eval_results.json")
    assert results == {name: pytest.approx(of_training[name]) for name in of_training if name.startswith("eval_")}
    assert {path.name for path in folder.iterdir()} == names | {"eval_results.json", "best-9.incomplete"}
    with pytest.raises(ValueError, match=r"--resume_from_checkpoint latest: .* has none to evaluate"):
        train(*settings, "--eval_only", "--resume_from_checkpoint", "latest", output_dir=folder / "other")


def test_the_pipeline_and_the_metric_agree_with_the_scripts_evaluation(trained, segmentation_folders, train):
    folder = train("--model_name_or_path", trained, "--max_train_steps", 1, "--learning_rate", 1e-12)
    results = read_json(folder / "all_results.json")
    segment = pipeline("image-segmentation", model=str(folder), trust_remote_code=True)
    predictions, references = [], []
    for path in sorted((segmentation_folders / "validation" / "images").iterdir()):
        found = np.full(Image.open(path).size[::-1], -1)
        for answer in segment(str(path)):
            found[np.asarray(answer["mask"]) > 0] = segment.model.config.label2id[answer["label"]]
        predictions.append(found)
        references.append(np.asarray(Image.open(segmentation_folders / "validation" / "annotations" / path.name)))
    expected = MeanIoU().compute(predictions=predictions, references=references, num_labels=3)
    assert results["eval_mean_iou"] == pytest.approx(expected["mean_iou"])
    assert results["eval_overall_accuracy"] == pytest.approx(expected["overall_accuracy"])


def test_resumes_to_the_same_weights(train, tmp_path):
    steps = ["--max_train_steps", 4, "--photometric_distortion", "--checkpointing_steps", 2]
    whole = train(*steps, output_dir=tmp_path / "whole")
    checkpoint = ["--resume_from_checkpoint", whole / "checkpoint-2"]
    resumed = train(*steps, *checkpoint, output_dir=tmp_path / "resumed")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The training is complete: nothing is trained or evaluated, and the card still has its table.
    again = train(*steps, "--resume_from_checkpoint", "latest", output_dir=tmp_path / "whole")
    assert "| disc |" in (again / "README.md").read_text()


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_classifier_is_fine_tuned_with_either_head(train, tmp_path, head):
    torch.manual_seed(1)
    ClusTRForImageClassification(ClusTRConfig.from_variant("nano", num_labels=10)).save_pretrained(tmp_path / "it")
    ClusTRImageProcessor().save_pretrained(tmp_path / "it")
    before = load_file(tmp_path / "it" / "model.safetensors")
    settings = ["--segmentation_head", head, "--max_train_steps", 1, "--freeze_stages", 1, "--learning_rate", 1e-4]
    folder = train("--model_name_or_path", tmp_path / "it", *settings)
    after = load_file(folder / "model.safetensors")
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert moved and {name.split(".")[2] for name in moved} == {"1", "2", "3"}
    assert max((after[name] - before[name]).abs().max() for name in moved) < 1e-3
    assert read_json(folder / "config.json")["segmentation_head"] == head
    assert read_json(folder / "preprocessor_config.json")["do_center_crop"] is False


def test_a_baseline_trains_under_the_same_head(train):
    overrides = {
        "strides": [4, 2, 2, 2],
        "patch_sizes": [7, 3, 3, 3],
        "reduction_ratios": [[64, 16], [16, 4], [4, 1], [1]],
    }
    arguments = ["--peer", "pvt_v2", "--config_overrides", json.dumps(overrides), "--max_train_steps", 1]
    folder = train(*arguments, "--drop_path_rate", 0.1)
    model = PvtV2ForSemanticSegmentation.from_pretrained(folder)
    assert model.config.sr_ratios == [8, 4, 2, 1] and model.config.drop_path_rate == 0.1
    assert model(torch.randn(1, 3, 64, 96)).logits.shape == (1, 3, 16, 24)
    assert not list(folder.glob("modeling_*.py")) and not (folder / "README.md").exists()
    assert (folder / "predictions.png").is_file()
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("pvt_v2.encoder") for name in weights)


def test_baselines_start_from_their_classifiers(train, image_folders, tmp_path, run_script):
    """The backbone's weights are loaded; those of another baseline are refused."""
    overrides = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 1, 2, 2]}
    classifier, options = tmp_path / "classifier", ["--peer", "swin", "--attn_implementation", "eager"]
    settings = {"--output_dir": classifier, "--train_dir": image_folders / "train", "--max_train_steps": 1}
    settings |= {"--validation_dir": image_folders / "validation", "--image_size": 32, "--train_batch_size": 8}
    settings |= {"--cache_dir": tmp_path / "cache"}
    run_script(classification, settings, *options, "--config_overrides", json.dumps(overrides))
    assert read_json(classifier / "config.json")["model_type"] == "swin" and not (classifier / "README.md").exists()
    start = [*options, "--model_name_or_path", classifier, "--max_train_steps", 1, "--learning_rate", 1e-6]
    folder = train(*start)
    before, after = (load_file(path / "model.safetensors") for path in (classifier, folder))
    shared = [name for name in before if name.startswith(("swin.embeddings", "swin.encoder"))]
    assert shared and all(torch.allclose(before[name], after[name], atol=1e-5) for name in shared)
    model = SwinForSemanticSegmentation.from_pretrained(folder).eval()
    assert model.config.embed_dim == 8 and model(torch.randn(1, 3, 50, 34)).logits.shape == (1, 3, 25, 17)
    with pytest.raises(ValueError, match="must be a checkpoint of --baseline pvt_v2"):
        train("--peer", "pvt_v2", "--model_name_or_path", classifier, output_dir=tmp_path / "other")


def test_maps_of_swin_are_those_of_its_backbone():
    """The feature maps equal those of transformers' backbone with the same weights."""
    fields = {"hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 1, 2, 2], "strides": [4, 2, 2, 2]}
    arguments = BaselineArguments(baseline="swin", config_overrides={**fields, "patch_sizes": [7, 3, 3, 3]})
    model = load_baseline(arguments, "segmenter", ["a", "b"], None)[0].eval()
    stages = [f"stage{index}" for index in range(1, 5)]
    fields = {name: value for name, value in model.config.to_dict().items() if name != "out_indices"}
    backbone = SwinBackbone(SwinConfig.from_dict({**fields, "out_features": stages})).eval()
    weights = {f"swin.{name}": weight for name, weight in model.swin.state_dict().items()}
    for stage, norm in zip(stages, (*model.stage_norms, model.swin.layernorm), strict=True):
        weights |= {f"hidden_states_norms.{stage}.{name}": weight for name, weight in norm.state_dict().items()}
    backbone.load_state_dict(weights)
    images = torch.randn(2, 3, 90, 66)
    with torch.no_grad():
        for ours, theirs in zip(model._stage_maps(images)[0], backbone(images).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_swin_that_cannot_be_is_refused(train):
    with pytest.raises(ValueError, match=r"--baseline swin needs hidden_sizes that double .* got \[32, 64, 128, 160\]"):
        train("--peer", "swin", "--max_train_steps", 1)


def write_parquet(path, folder, shift):
    rows = read_folder(str(folder))
    maps = [Image.fromarray((np.asarray(row["annotation"]) + shift).astype(np.uint8)) for row in rows]
    features = Features({"image": ImageFeature(), "map": ImageFeature()})
    Dataset.from_dict({"image": [row["image"] for row in rows], "map": maps}, features=features).to_parquet(path)


def test_parquet_files_and_labels_counted_from_one(train, tmp_path, segmentation_folders):
    """With 1 added to all labels, as in ADE20K, the same images give the same model."""
    expected = load_file(train("--max_train_steps", 2, output_dir=tmp_path / "expected") / "model.safetensors")
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}.parquet", segmentation_folders / split, shift=1)
    files = ["--train_file", tmp_path / "train.parquet", "--validation_file", tmp_path / "validation.parquet"]
    settings = ["--label_column_name", "map", "--do_reduce_labels", "--max_train_steps", 2]
    folder = train(*files, *settings, without=("--train_dir", "--validation_dir"))
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_json(folder / "preprocessor_config.json")["do_reduce_labels"] is True
    assert read_json(folder / "all_results.json") | {"train_runtime": 0} == read_json(
        tmp_path / "expected" / "all_results.json"
    ) | {"train_runtime": 0}


def test_dry_run_says_what_the_papers_recipe_would_do(train, capsys):
    recipe = REPOSITORY / "examples" / "recipes" / "clustr_small_ade20k_upernet.json"
    without = ("--image_size", "--crop_size", "--eval_steps", "--learning_rate", "--train_batch_size")
    train("--dry_run", "--recipe", recipe, "--train_batch_size", 8, "--variant", "nano", without=without)
    said = capsys.readouterr().out
    assert "160,000" in said and "1,500 of warm-up" in said and "GB: weights" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp_cpu", "fsdp2_cpu"])
def test_two_processes_evaluate_every_image_once(segmentation_folders, tmp_path, kind):
    """Images of two sizes make the batches of the processes differ in shape. Also runs FSDP in bf16."""
    settings = arguments_for(segmentation_folders, tmp_path / "two") | {"--max_train_steps": 2}
    settings |= {"--per_device_eval_batch_size": 2, "--mixed_precision": "bf16" if kind == "fsdp2_cpu" else "no"}
    config = REPOSITORY / "examples" / "accelerate" / f"{kind}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 0]
    command = [*launch, script.__file__, *(part for pair in settings.items() for part in pair)]
    run_process(command, tmp_path, OMP_NUM_THREADS="1")
    assert read_json(tmp_path / "two" / "all_results.json")["eval_samples"] == 5
    table = read_json(tmp_path / "two" / "per_class_results.json")
    assert sum(row["pixels"] for row in table.values()) == 3 * 90 * 120 + 2 * 128 * 96


@pytest.fixture
def own_data(segmentation_folders, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(segmentation_folders, tmp_path / "data")


def spoil_size(data):
    Image.new("L", (5, 5)).save(data / "train" / "annotations" / "03.png")


def spoil_label(data):
    pixels = np.zeros((96, 96), dtype=np.uint8)
    pixels[4, 5] = 7
    Image.fromarray(pixels).save(data / "train" / "annotations" / "03.png")


def spoil_kind(data):
    Image.new("RGB", (96, 96)).save(data / "train" / "annotations" / "03.png")


def spoil_pairs(data):
    (data / "train" / "annotations" / "03.png").unlink()


def spoil_names(data):
    (data / "id2label.json").write_text('{"0": "ground", "2": "disc"}')


def spoil_doubled_names(data):
    (data / "id2label.json").write_text('{"0": "ground", "1": "disc", "2": "disc"}')


def spoil_json(data):
    (data / "id2label.json").write_text('["ground", "disc"]')


def spoil_number(data):
    (data / "id2label.json").write_text(json.dumps({i: str(i) for i in range(256)}))


def spoil_endings(data):
    Image.new("RGB", (96, 96)).save(data / "train" / "images" / "03.bmp")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_size, r"label map of train sample 3 must have the size of its image, \(96, 96\), got \(5, 5\)"),
        (spoil_label, r"labels of train sample 3 must be in \[0, 3\), or 255 .*, got 7"),
        (spoil_kind, r"label map of train sample 3 must hold one label a pixel, got shape \(96, 96, 3\)"),
        (spoil_pairs, r"12 images, 11 label maps, without a partner: \['03'\]"),
        (spoil_json, "id2label.json must be a JSON object from indices to names of classes"),
        (spoil_number, "must name at most 255 classes, since 255 marks ignored pixels"),
        (spoil_endings, "must have one file of each name, got 03.bmp, 03.png"),
        (spoil_doubled_names, r"must give each class a name of its own, got \['ground', 'disc', 'disc'\]"),
        (spoil_names, r"must name the classes 0, 1, 2 \.\.\., got \[0, 2\]"),
    ],
)
def test_bad_data_is_named(train, own_data, tmp_path, spoil, message):
    spoil(own_data)
    with pytest.raises(ValueError, match=message):
        train("--num_train_epochs", 1, data=own_data)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_corrupt_images_are_skipped_and_counted(train, own_data):
    (own_data / "train" / "images" / "02.png").write_bytes(b"not an image")
    (own_data / "train" / "annotations" / "05.png").write_bytes(b"")
    (own_data / "validation" / "images" / "12.png").write_bytes(b"not an image")  # the first one in the pictures
    folder = train("--num_train_epochs", 1, "--class_weight_exponent", 1, data=own_data)
    results = read_json(folder / "all_results.json")
    assert results["skipped_samples"] == 3 and results["eval_samples"] == 4
    assert (folder / "predictions.png").is_file()


def test_a_checkpoints_class_weights_are_not_kept(train, trained):
    assert read_json(trained / "config.json")["semantic_class_weights"] is not None
    folder = train("--model_name_or_path", trained, "--max_train_steps", 1)
    assert read_json(folder / "config.json")["semantic_class_weights"] is None


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_overrides_win_over_what_the_recipe_sets(train, trained, from_checkpoint):
    start = ["--model_name_or_path", trained] if from_checkpoint else []
    overrides = ["--drop_path_rate", 0.1, "--config_overrides", '{"drop_path_rate": 0.2}', "--max_train_steps", 1]
    assert read_json(train(*start, *overrides) / "config.json")["drop_path_rate"] == 0.2


def test_fields_of_a_checkpoint_are_changed_and_checked(train, trained, tmp_path):
    start = ["--model_name_or_path", trained, "--max_train_steps", 1]
    folder = train(*start, "--config_overrides", '{"max_clusters": 9}')
    assert read_json(folder / "config.json")["max_clusters"] == 9
    for overrides, message in (
        ('{"hiden_sizes": 1}', r"names \['hiden_sizes'\], which are no fields of ClusTRConfig"),
        ('{"segmentation_head": "fcn"}', "`segmentation_head` must be one of"),
        ('{"num_neighbors": 0}', "`num_neighbors` must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*start, "--config_overrides", overrides, output_dir=tmp_path / "other")


@pytest.mark.parametrize(
    "arguments, without, message",
    [
        (["--peer", "vit"], (), r"--baseline must be one of \['pvt_v2', 'swin'\], got 'vit'"),
        (["--segmentation_head", "mask2former"], (), "`segmentation_head` must be one of"),
        (["--eval_window", 64, "--eval_stride", 65], (), "--eval_stride must be from 1 to --eval_window, got 65"),
        (["--min_scale", 3], (), r"--min_scale and --max_scale must be 0 < min <= max, got \(3.0, 2.0\)"),
        (["--max_class_share", 75], (), r"--max_class_share must be in \[0, 1\], got 75"),
        (["--class_weight_exponent", 2], (), r"--class_weight_exponent must be in \[0, 1\], got 2"),
        (["--config_overrides", "{hidden"], (), "--config_overrides is not valid JSON"),
        (["--config_overrides", '{"hiden_sizes": 1}'], (), r"names \['hiden_sizes'\], which are no fields"),
        (["--config_overrides", "[1]"], (), r"--config_overrides must be a JSON object, got \[1\]"),
        ([], ("--id2label_file",), "--id2label_file is needed"),
        (["--freeze_stages", 1, "--peer", "pvt_v2"], (), "--freeze_stages cannot be combined with --baseline"),
        (
            ["--segmentation_head", "upernet", "--per_device_train_batch_size", 1],
            (),
            "UPerNet needs at least 2 images on a device at a time",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(train, tmp_path, arguments, without, message):
    with pytest.raises(ValueError, match=message):
        train(*arguments, without=without)
    assert not (tmp_path / "out").exists()


class ByPosition(torch.nn.Module):
    """A model with stride 1 whose logits depend only on the value of their pixel."""

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=torch.cat([pixel_values, -pixel_values], dim=1))


@pytest.mark.parametrize("size, window, stride", [((40, 60), 16, 10), ((33, 17), 16, 16), ((12, 50), 20, 7)])
def test_windows_cover_an_image_and_are_averaged(size, window, stride):
    pixel_values = torch.randn(2, 1, *size)
    args = SegmentationEvaluationArguments(eval_window=window, eval_stride=stride)
    logits = predict_logits(ByPosition(), pixel_values, args)
    torch.testing.assert_close(logits, torch.cat([pixel_values, -pixel_values], dim=1))


def test_one_window_is_the_whole_image():
    torch.manual_seed(0)
    model = ClusTRForSemanticSegmentation(ClusTRConfig.from_variant("nano", num_labels=3)).eval()
    pixel_values = torch.randn(1, 3, 48, 64)
    whole = predict_logits(model, pixel_values, SegmentationEvaluationArguments())
    window = predict_logits(model, pixel_values, SegmentationEvaluationArguments(eval_window=64))
    resized = interpolate(whole, size=(48, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(window, resized)


@pytest.mark.parametrize(
    "length, window, stride, starts",
    [(10, 10, 3, [0]), (11, 10, 3, [0, 1]), (20, 8, 5, [0, 5, 10, 12]), (18, 8, 5, [0, 5, 10])],
)
def test_windows_begin_so_that_the_last_one_fits(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_class_weights_are_the_median_frequency_over_the_frequency():
    maps = [torch.tensor([[0, 0, 0, 0], [1, 1, 255, 3]]), torch.tensor([[0, 0, 0, 0]])]
    assert class_weights(maps, 4, 1.0) == [0.25, 1.0, 1.0, 2.0]  # 8, 2, 0, 1 pixels; the median of those seen is 2
    assert class_weights(maps, 4, 0.5) == [0.5, 1.0, 1.0, 1.4142]
    assert class_weights(maps, 4, 0.0) == [1.0] * 4


@pytest.mark.parametrize(
    "size, scale, expected",
    [
        ((360, 480), 1.0, (512, 683)),
        ((480, 360), 0.5, (341, 256)),
        ((100, 1000), 1.0, (205, 2048)),
        ((9, 900), 2, (41, 4096)),
    ],
)
def test_images_are_scaled_as_by_the_papers_framework(size, scale, expected):
    """The limits of the longer and the shorter side are (2048, 512) times the scale."""
    assert scaled_size(size, {"shortest_edge": 512, "longest_edge": 2048}, scale) == expected


def make_transform(**settings):
    processor = segmentation_processor(ClusTRImageProcessor(), 64, do_reduce_labels=False)
    return processor, SegmentationTransform(processor, SegmentationAugmentationArguments(crop_size=48, **settings))


def checkered(size, square=16):
    """An image whose colours encode the classes 0 to 2, and the label map."""
    rows, columns = torch.meshgrid(*(torch.arange(extent) for extent in size), indexing="ij")
    labels = (rows // square + 2 * (columns // square)) % 3
    return Image.fromarray((labels * 100).to(torch.uint8).numpy()).convert("RGB"), labels


def test_labels_go_through_the_geometry_of_their_image():
    processor, transform = make_transform()
    image, labels = checkered((64, 96))
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        sample = transform((image, labels))
        assert sample["pixel_values"].shape == (3, 48, 48) and sample["pixel_values"].dtype == torch.float32
        assert sample["labels"].shape == (48, 48) and sample["labels"].dtype == torch.int64
        counts = sample["labels"] != 255
        mean, std = processor.image_mean[0], processor.image_std[0]
        shade = (sample["pixel_values"][0] * std + mean) * 255 / 100
        right = (shade.round() == sample["labels"])[counts]
        assert right.float().mean() > 0.85  # all but the blended borders
        assert (sample["pixel_values"][:, ~counts] == 0).all()
        seen.add(sample["labels"].numpy().tobytes())
    assert len(seen) > 25


def test_flips_and_colours_are_chosen_at_random():
    image, labels = checkered((64, 64), square=8)
    plain = make_transform(min_scale=0.75, max_scale=0.75, flip_probability=0.0)[1]((image, labels))
    flipped = make_transform(min_scale=0.75, max_scale=0.75, flip_probability=1.0)[1]((image, labels))
    assert torch.equal(flipped["labels"], plain["labels"].flip(1))
    assert torch.equal(flipped["pixel_values"], plain["pixel_values"].flip(2))
    distort = make_transform(min_scale=0.75, max_scale=0.75, flip_probability=0.0, photometric_distortion=True)[1]
    distorted = [distort((image, labels)) for _ in range(8)]
    assert all(torch.equal(sample["labels"], plain["labels"]) for sample in distorted)
    assert not all(torch.equal(sample["pixel_values"], plain["pixel_values"]) for sample in distorted)


def test_distorted_colours_keep_their_channels():
    transform = make_transform(photometric_distortion=True)[1]
    red = tv_tensors.Image(torch.tensor([220, 60, 40], dtype=torch.uint8)[:, None, None].expand(3, 8, 8).clone())
    distorted = [transform.distort(red).float().mean(dim=(1, 2)) for _ in range(60)]
    assert all(color.argmax() == 0 for color in distorted)  # red stays the strongest channel
    assert len({tuple(color.tolist()) for color in distorted}) > 30


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0])
def test_labels_are_scaled_to_where_their_pixels_go(scale):
    """The edge between two halves stays in the middle of the image and of the labels."""
    processor = segmentation_processor(ClusTRImageProcessor(), 64, do_reduce_labels=False)
    arguments = SegmentationAugmentationArguments(crop_size=128, min_scale=scale, max_scale=scale, flip_probability=0.0)
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:, 32:] = 1
    image = Image.fromarray((labels * 200).to(torch.uint8).numpy()).convert("RGB")
    sample = SegmentationTransform(processor, arguments)((image, labels))
    side = round(64 * scale)
    expected = torch.zeros(side, side, dtype=torch.int64)
    expected[:, side // 2 :] = 1
    assert torch.equal(sample["labels"][:side, :side], expected)
    shade = sample["pixel_values"][0, 0, :side]
    assert (shade[: side // 2] < shade[side // 2 :].min()).all()


def test_crops_that_one_class_fills_are_drawn_anew():
    """Class 1 is a narrow strip, which most crops would miss without the rule."""
    labels = torch.zeros(64, 300, dtype=torch.int64)
    labels[:, 250:270] = 1
    image = Image.new("RGB", (300, 64))

    def hits(max_class_share):
        transform = make_transform(min_scale=1.0, max_scale=1.0, max_class_share=max_class_share)[1]
        torch.manual_seed(0)
        return sum((transform((image, labels))["labels"] == 1).any().item() for _ in range(60))

    assert hits(0.9) > 1.8 * hits(1.0) > 0


def test_a_map_without_any_label_is_cropped_all_the_same():
    transform = make_transform()[1]
    sample = transform((Image.new("RGB", (80, 60)), torch.full((60, 80), 255)))
    assert (sample["labels"] == 255).all()
