"""The classification script in this process: fine-tuning, output files, errors of malformed data."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import run_image_classification_no_trainer as script
import torch
from conftest import REPOSITORY, run_process
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from evaluate import evaluator
from local_hub import LocalHub, card_errors
from PIL import Image
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, pipeline

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor
from clustr_hf.metrics import Accuracy
from clustr_hf.training import dry_run
from clustr_hf.training.arguments import LoopArguments
from clustr_hf.training.distributed import check_fsdp_arguments
from clustr_hf.training.optimizers import make_optimizer
from clustr_hf.training.tasks.image_classification import task


@pytest.fixture
def train(image_folders, tmp_path, run_script):
    """Run the script with settings for tiny data; returns the output folder."""

    def run(*arguments, data=image_folders, output_dir=tmp_path / "out"):
        if data is not None:
            arguments = ("--train_dir", data / "train", "--validation_dir", data / "validation", *arguments)
        settings = {"--output_dir": output_dir, "--variant": "nano", "--image_size": 32, "--train_batch_size": 8}
        settings |= {"--logging_steps": 1, "--cache_dir": tmp_path / "cache"}
        run_script(script, settings, *arguments)
        return output_dir

    return run


def read_json(path):
    return json.loads(path.read_text())


def make_checkpoint(folder, **settings):
    """A checkpoint of a nano model with ten classes."""
    torch.manual_seed(1)
    ClusTRForImageClassification(ClusTRConfig.from_variant("nano", num_labels=10, **settings)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ClusTRImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def changed(folder, before):
    """Names of the weights that differ from `before`, apart from the head."""
    after = load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    return {name for name in after if "classifier" not in name and not torch.equal(after[name], before[name])}


def test_writes_a_repository_with_results_curves_and_card(train):
    folder = train("--max_train_steps", 2, "--report_to", "tensorboard")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_clustr.py", "preprocessor_config.json"} <= names
    assert {"README.md", "all_results.json", "log_history.json", "training_curve.png"} <= names
    assert not any(name.endswith(".incomplete") for name in names) and "model" not in names
    results = read_json(folder / "all_results.json")
    assert results["step"] == 2 and results["eval_samples"] == 31 and results["skipped_samples"] == 0
    card = (folder / "README.md").read_text()
    assert card_errors(card) == [] and {"handler.py", "requirements.txt"} <= names
    assert f"| Top-1 accuracy | {results['eval_accuracy']:.4f} | " in card and ", validation | 31 |" in card
    assert "python examples/run_image_classification_no_trainer.py \\\n" in card
    assert "    --max_train_steps 2 \\\n" in card
    assert "2 steps, 0." in card and " on a CPU (" in card and "](training_curve.png)" in card
    assert "| learning_rate | `0.001` |" in card and "| output_dir |" not in card
    assert "images0" not in card and "--validation_dir validation" in card  # no local paths
    with Image.open(folder / "training_curve.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert list((folder / "clustr_hf").glob("events.out.tfevents.*"))


def test_precision_memory_format_and_recomputed_activations_give_nearly_the_same_losses(train, tmp_path):
    def losses(*arguments):
        folder = train("--max_train_steps", 3, *arguments, output_dir=tmp_path / str(arguments[:1]))
        return [entry["loss"] for entry in read_json(folder / "log_history.json") if "loss" in entry]

    exact = losses()
    assert losses("--gradient_checkpointing", "true") == pytest.approx(exact, rel=1e-5)
    assert losses("--channels_last", "true") == pytest.approx(exact, rel=1e-5)
    half = losses("--mixed_precision", "bf16")
    assert half == pytest.approx(exact, rel=0.05) and half != exact


def test_a_new_model_of_transformers_has_the_given_configuration(train, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config.to_json_file(tmp_path / "resnet.json")
    arguments = ["--config_name", tmp_path / "resnet.json", "--max_train_steps", 2]
    folder = train(*arguments, "--channels_last", "true", "--config_overrides", '{"depths": [2, 1]}')
    model = ResNetForImageClassification.from_pretrained(folder)
    assert model.config.depths == [2, 1] and model.config.id2label == {0: "one", 1: "two", 2: "zero"}
    assert model.config.hidden_sizes == [8, 16] and not (folder / "README.md").exists()  # cards are of ClusTR
    assert {"preprocessor_config.json", "all_results.json"} <= {path.name for path in folder.iterdir()}
    for refused, value in (("--push_to_hub", "true"), ("--freeze_stages", 1), ("--lora_rank", 2)):
        with pytest.raises(ValueError, match=f"{refused} is for ClusTR models, got ResNetForImageClassification"):
            train(*arguments, refused, value, output_dir=tmp_path / "other")
    with pytest.raises(ValueError, match=r"ResNetConfig does not have the fields \['drop_path_rate'\]"):
        train(*arguments, "--drop_path_rate", 0.1, output_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="--baseline swin and --config_name both choose a new model"):
        train(*arguments, "--baseline", "swin", output_dir=tmp_path / "other")


def test_new_models_take_the_given_image_processor(train, tmp_path):
    size = {"height": 48, "width": 48}
    for name, settings in (("own", {}), ("raw", {"do_normalize": False}), ("bgr", {"rescale_factor": 1 / 127.5})):
        ClusTRImageProcessor(size=size, crop_size=size, image_mean=[0.4] * 3, **settings).save_pretrained(
            tmp_path / name
        )
    arguments = ["--max_train_steps", 1, "--image_processor_name"]
    folder = train(*arguments, tmp_path / "own")
    assert read_json(folder / "preprocessor_config.json")["image_mean"] == [0.4] * 3
    for name, message in (("raw", "`do_normalize=True`, got False"), ("bgr", "`rescale_factor=0.0039.*`, got 0.0078")):
        with pytest.raises(ValueError, match=f"the image processor of a training must have {message}"):
            train(*arguments, tmp_path / name, output_dir=tmp_path / "other")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_trained_in_float32(train, tmp_path, dtype):
    make_checkpoint(tmp_path / "checkpoint")
    model = ClusTRForImageClassification.from_pretrained(tmp_path / "checkpoint", dtype=dtype)
    model.save_pretrained(tmp_path / "checkpoint")
    assert {value.dtype for value in load_file(tmp_path / "checkpoint" / "model.safetensors").values()} == {dtype}
    arguments = ["--max_train_steps", 2, "--ignore_mismatched_sizes", "--model_name_or_path", tmp_path / "checkpoint"]
    folder = train(*arguments)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert read_json(folder / "config.json")["dtype"] == "float32"


def test_fine_tunes_a_checkpoint_with_another_number_of_classes(train, tmp_path):
    before = make_checkpoint(tmp_path / "checkpoint")
    arguments = ["--model_name_or_path", tmp_path / "checkpoint", "--ignore_mismatched_sizes", "--max_train_steps", 1]
    folder = train(*arguments)
    after = load_file(folder / "model.safetensors")
    assert after["classifier.weight"].shape == (3, before["classifier.weight"].shape[1])
    moved = max((after[name] - before[name]).abs().max() for name in before if "classifier" not in name)
    assert 0 < moved < 1e-2  # it started from the checkpoint
    assert read_json(folder / "config.json")["id2label"] == {"0": "one", "1": "two", "2": "zero"}


def test_frozen_stages_stay_as_they_are(train, tmp_path):
    before = make_checkpoint(tmp_path / "checkpoint")
    arguments = ["--model_name_or_path", tmp_path / "checkpoint", "--ignore_mismatched_sizes", "--max_train_steps", 1]
    moved = changed(train(*arguments, "--freeze_stages", 2), before)
    assert {name.split(".")[2] for name in moved} == {"2", "3"}
    with pytest.raises(ValueError, match=r"--freeze_stages must be at most 4.* got 5"):
        train("--freeze_stages", 5, "--max_train_steps", 1, output_dir=tmp_path / "other")


def test_lora_changes_the_attention_projections_only_and_saves_a_plain_model(train, tmp_path):
    before = make_checkpoint(tmp_path / "checkpoint")
    arguments = ["--model_name_or_path", tmp_path / "checkpoint", "--ignore_mismatched_sizes", "--max_train_steps", 2]
    folder = train(*arguments, "--lora_rank", 4, "--checkpointing_steps", 1)
    moved = changed(folder, before)
    projections = {name for name in before if name.endswith("weight") and "attention" in name and "_proj" in name}
    assert moved == projections and len(projections) > 10
    after = load_file(folder / "model.safetensors")
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4 for name in moved)
    resumed = train(
        *arguments, "--lora_rank", 4, "--resume_from_checkpoint", folder / "checkpoint-1", output_dir=tmp_path / "2"
    )
    again = load_file(resumed / "model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_moving_average_is_what_is_saved(train):
    folder = train(
        "--max_train_steps", 4, "--ema_decay", 0.6, "--checkpointing_steps", 1, "--checkpoints_total_limit", 9
    )
    saved, name = load_file(folder / "model.safetensors"), "clustr.stages.0.blocks.0.mlp.fc1.weight"
    weights = [load_file(folder / f"checkpoint-{step}" / "model.safetensors")[name] for step in range(1, 5)]
    decays = [ModelEmaV3(nn.Linear(1, 1), decay=0.6, use_warmup=True).get_decay(step) for step in range(1, 5)]
    average = weights[0]  # the first decay is 0: the average starts with these weights
    for decay, weight in zip(decays[1:], weights[1:]):
        average = decay * average + (1 - decay) * weight
    assert decays[0] == 0 < decays[1] < decays[2] <= 0.6
    torch.testing.assert_close(saved[name], average, rtol=0, atol=1e-7)
    assert not torch.equal(saved[name], weights[-1])


def test_biases_and_norms_are_not_decayed():
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano"))
    model.clustr.stages[0].requires_grad_(False)
    optimizer = make_optimizer(model, LoopArguments(output_dir="x", weight_decay=0.1))
    decayed, undecayed = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    for name, parameter in model.named_parameters():
        is_vector = name.endswith("bias") or "layer_norm" in name
        expected = (False, False) if ".stages.0." in name else (not is_vector, is_vector)
        assert (id(parameter) in decayed, id(parameter) in undecayed) == expected, name


def test_muon_moves_the_matrices_of_the_backbone_alike_in_all_directions():
    """One step without decay: the update of a matrix has equal singular values; the rest follows AdamW's direction."""
    torch.manual_seed(0)
    model = ClusTRForImageClassification(ClusTRConfig.from_variant("nano", num_labels=10))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = {
        name: make_optimizer(model, LoopArguments(output_dir="x", optimizer=name, learning_rate=1e-3, weight_decay=0.0))
        for name in ("adamw", "muon")
    }
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    changes = {}
    for optimizer_name, optimizer in optimizers.items():
        model.load_state_dict(before)
        optimizer.step()
        changes[optimizer_name] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    matrices = set()
    for name, change in changes["muon"].items():
        is_hidden = name.startswith("clustr.") and change.ndim >= 2 and "depthwise" not in name
        if is_hidden and "token_weight" not in name and change.shape[1] > 3:
            matrices.add(name)
            matrix = change.flatten(1)
            values = torch.linalg.svdvals(matrix) / (1e-3 * 0.2 * max(matrix.shape) ** 0.5)
            assert values.quantile(0.1) > 0.9 and values.max() < 1.3, name
        else:
            assert torch.cosine_similarity(change.flatten(), changes["adamw"][name].flatten(), dim=0) > 0.99, name
    config = model.config  # per block: queries, keys and values of each scale, output, two in the feed-forward
    in_blocks = [depth * (4 + len(scales)) for depth, scales in zip(config.depths, config.reduction_ratios)]
    assert len(matrices) == len(config.depths) - 1 + sum(in_blocks)


@pytest.mark.parametrize("name, value", [("ema_decay", 0.9), ("optimizer", "muon"), ("channels_last", True)])
def test_what_needs_whole_weights_is_refused_with_fsdp(name, value):
    check_fsdp_arguments(LoopArguments(output_dir="x"))
    with pytest.raises(ValueError, match=f"--{name}.* does not work with FSDP"):
        check_fsdp_arguments(LoopArguments(output_dir="x", **{name: value}))


@pytest.mark.parametrize("interval", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(train, tmp_path, monkeypatch, interval):
    calls = []

    def make_loss(*_):
        def compute_loss(model, batch):
            calls.append(1)
            loss = model(**batch).loss
            return loss * float("nan") if len(calls) == 4 else loss

        return compute_loss

    monkeypatch.setattr(task, "make_loss", make_loss)
    message = r"the loss of step 4 is nan; the last good checkpoint is .*checkpoint-2"
    with pytest.raises(FloatingPointError, match=message):
        train("--max_train_steps", 9, "--checkpointing_steps", 2, "--logging_steps", interval)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2"}


def test_weights_that_are_not_finite_are_not_saved(train, tmp_path, monkeypatch):
    def make_loss(*_):
        def compute_loss(model, batch):  # a finite loss whose gradient is not finite
            return model(**batch).logits.sum() * 0 + (model.classifier.bias * 0).sum().sqrt()

        return compute_loss

    monkeypatch.setattr(task, "make_loss", make_loss)
    with pytest.raises(FloatingPointError, match="weights are not finite after step 1; there is no checkpoint yet"):
        train("--max_train_steps", 3, "--checkpointing_steps", 1, "--eval_steps", "never")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.fixture
def own_images(image_folders, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(image_folders, tmp_path / "images")


def test_corrupt_images_are_named_counted_and_skipped(train, own_images, caplog):
    images = sorted((own_images / "train").rglob("*.png"))
    images[3].write_bytes(images[3].read_bytes()[:60])
    images[40].write_bytes(b"not an image")
    validation = sorted((own_images / "validation").rglob("*.png"))
    validation[5].write_bytes(b"")
    folder = train("--num_train_epochs", 2, data=own_images)
    results = read_json(folder / "all_results.json")
    assert results["skipped_samples"] == 3 and results["eval_samples"] == 30
    told = [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]
    assert len(told) == 3
    for path in (images[3], images[40], validation[5]):
        assert sum(str(path) in message for message in told) == 1


def test_too_many_corrupt_images_stop_the_run(train, own_images, tmp_path):
    for path in list((own_images / "train").rglob("*.png"))[:20]:
        path.write_bytes(b"not an image")
    with pytest.raises(RuntimeError, match=r"3 samples could not be read, --max_skipped_samples allows 2; .*\.png"):
        train("--num_train_epochs", 1, "--max_skipped_samples", 2, data=own_images)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_empty_class_folder_is_named(train, own_images, tmp_path):
    (own_images / "train" / "three").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*train/three has no images"):
        train(data=own_images)
    shutil.rmtree(own_images / "train" / "three")
    shutil.copytree(own_images / "validation" / "one", own_images / "validation" / "four")
    with pytest.raises(ValueError, match=r"classes without training images: \['four'\]"):
        train(data=own_images)
    with pytest.raises(ValueError, match=r"--train_dir .*nowhere/train is not a folder"):
        train(data=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def write_parquet(path, labels, names=("zero", "one")):
    """A data set of grey images whose labels need not be valid."""
    images = [Image.fromarray(np.full((32, 32, 3), shade, dtype=np.uint8)) for shade in range(len(labels))]
    values = Dataset.from_dict(
        {"image": images, "label": labels}, features=Features({"image": ImageFeature(), "label": Value("int64")})
    )
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    Dataset(values.data.table.cast(features.arrow_schema)).to_parquet(path)


def test_label_that_is_no_class_is_named(train, tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1] * 6)
    write_parquet(tmp_path / "validation.parquet", [0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"the label of validation sample 2 must be in \[0, 2\), got 2"):
        train(
            *("--train_file", tmp_path / "train.parquet", "--validation_file", tmp_path / "validation.parquet"),
            data=None,
        )
    assert not (tmp_path / "out").exists()


def test_bad_recipe_is_named_and_nothing_is_written(train, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"mixupp": 0.8}))
    with pytest.raises(ValueError, match=r"recipe\.json has the unknown key 'mixupp'"):
        train("--recipe", tmp_path / "recipe.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--train_batch_size", 7, "--mixup", 0.8],
            "--mixup and --cutmix need an even number of images on a device, got 7",
        ),
        (["--train_batch_size", 100], "--train_batch_size is 100, but there are 60 samples"),
        (["--report_to", "abacus"], "--report_to must be any of"),
        (["--mixup", -1], "--mixup must be 0 or more, got -1"),
        (["--label_smoothing", 2], r"--label_smoothing must be in \[0, 1\], got 2"),
        (["--lora_rank", 0], "--lora_rank must be 1 or more, got 0"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere is not a checkpoint"),
        (["--streaming"], "--streaming needs --dataset_name or --train_file"),
    ],
)
def test_arguments_that_do_not_fit_are_named(train, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(*arguments)
    assert not (tmp_path / "out").exists()


def test_resuming_with_other_batches_is_refused(train, tmp_path):
    folder = train("--max_train_steps", 2, "--checkpointing_steps", 1)
    with pytest.raises(ValueError, match=r"has checkpoint-2 of an earlier run"):
        train("--max_train_steps", 2)
    for argument, value in (("--seed", 5), ("--train_batch_size", 16)):
        with pytest.raises(ValueError, match=rf"{argument[2:]} was \d+ and is now {value}"):
            train("--max_train_steps", 4, "--resume_from_checkpoint", folder / "checkpoint-2", argument, value)


def spoil(path, change):
    content = bytearray(path.read_bytes())
    if change == "flip":
        content[-9] ^= 1  # in the last weights, or in a moment of the optimizer
    path.write_bytes(content if change == "flip" else content[:-1000])


def test_a_damaged_checkpoint_is_left_out_and_the_run_ends_as_it_would_have(train, tmp_path, caplog):
    arguments = ["--max_train_steps", 3, "--checkpointing_steps", 1, "--checkpoints_total_limit", 3]
    folder = train(*arguments)
    weights = load_file(folder / "model.safetensors")
    for step, name in ((3, "optimizer.bin"), (2, "model.safetensors")):
        spoil(folder / f"checkpoint-{step}" / name, "flip")
        resume = ["--resume_from_checkpoint", folder / f"checkpoint-{step}"]
        for mode in ([], ["--eval_only"]):
            with pytest.raises(ValueError, match=rf"checkpoint-{step} is damaged: {name} differs .* beside it: .*-1"):
                train(*arguments, *resume, *mode)
    resumed = train(*arguments, "--resume_from_checkpoint", "latest")
    after = load_file(resumed / "model.safetensors")
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    told = [record.getMessage() for record in caplog.records if "falling back to checkpoint-1" in record.getMessage()]
    assert [re.search(r"checkpoint-\d", message)[0] for message in told] == ["checkpoint-3", "checkpoint-2"]


def test_checkpoints_that_cannot_be_loaded_are_named(train, tmp_path):
    folder = train("--max_train_steps", 1, "--checkpointing_steps", 1)
    latest = ["--resume_from_checkpoint", "latest", "--max_train_steps", 2]
    with pytest.raises(ValueError, match=r"--ema_decay must be given if and only if it was when .*checkpoint-1 was"):
        train(*latest, "--ema_decay", 0.9)
    with pytest.raises(ValueError, match="checkpoint-1 is of another model, optimizer or launch: "):
        train(*latest, "--config_overrides", '{"depths": [2, 1, 1, 2]}')
    state = read_json(folder / "checkpoint-1" / "training_state.json")
    del state["checksums"]  # a checkpoint from before checksums existed
    (folder / "checkpoint-1" / "training_state.json").write_text(json.dumps(state))
    (folder / "checkpoint-1" / "checksums.json").unlink()
    for name in ("optimizer.bin", "model.safetensors"):
        spoil(folder / "checkpoint-1" / name, "cut")
        with pytest.raises(ValueError, match="checkpoint-1 is damaged, or of another model, optimizer or launch: "):
            train(*latest)
    with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded: "):
        train(*latest, "--eval_only")


def test_weights_of_a_run_that_have_changed_are_named(train, tmp_path, caplog):
    folder = train("--max_train_steps", 1)
    start = ["--model_name_or_path", folder, "--eval_only"]
    train(*start, output_dir=tmp_path / "evaluated")
    assert "is not as the training saved it" not in caplog.text
    spoil(folder / "model.safetensors", "flip")
    train(*start, output_dir=tmp_path / "evaluated")
    assert "is not as the training saved it: model.safetensors differs" in caplog.text
    spoil(folder / "model.safetensors", "cut")
    with pytest.raises(ValueError, match=r"--model_name_or_path .* has weights .*, in model\.safetensors: .* again"):
        train(*start, output_dir=tmp_path / "evaluated")


def test_dry_run_says_what_would_be_done_and_trains_nothing(train, capsys):
    recipe = REPOSITORY / "examples" / "recipes" / "clustr_tiny_imagenet1k.json"
    arguments = ["--dry_run", "--recipe", recipe, "--train_batch_size", 16, "--per_device_train_batch_size", 4]
    folder = train(*arguments, "--variant", "nano", "--image_size", 32)
    said = capsys.readouterr().out
    assert "16 = 1 processes x 4 images x 4 accumulated" in said
    assert "900 (3 an epoch, 15 of warm-up)" in said and "GB: weights" in said and "peak 1.56e-05" in said
    assert [path.name for path in folder.iterdir()] == ["learning_rate.png"]
    assert "measured" not in said


def test_dry_run_measures_a_step_on_the_accelerator(train, capsys, monkeypatch):
    """On the CPU, the memory of the process stands in for that of the device."""
    monkeypatch.setattr(dry_run, "is_accelerator", lambda device: True)
    images = []
    try_step = dry_run.try_step

    def noted(model, optimizer, compute_loss, batch, autocast):
        images.append(len(batch["pixel_values"]))
        return try_step(model, optimizer, compute_loss, batch, autocast)

    monkeypatch.setattr(dry_run, "try_step", noted)
    arguments = ["--train_batch_size", 16, "--per_device_train_batch_size", 4, "--gradient_checkpointing", "true"]
    folder = train("--dry_run", *arguments)
    assert re.search(r"\nmemory of a step, measured +\d+\.\d\d GB at its peak on ", capsys.readouterr().out)
    assert images == [4] and [path.name for path in folder.iterdir()] == ["learning_rate.png"]


def test_streams_train_and_resume_exactly(train, tmp_path):
    for split, number in (("train", 40), ("validation", 9)):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1] * (number // 2) + [0] * (number % 2))
    data = ["--train_file", tmp_path / "train.parquet", "--validation_file", tmp_path / "validation.parquet"]
    arguments = [*data, "--streaming", "--max_train_steps", 4, "--checkpointing_steps", 2, "--random_erasing", 0.5]
    whole = train(*arguments, data=None)
    assert read_json(whole / "all_results.json")["eval_samples"] == 9
    resume = ["--resume_from_checkpoint", whole / "checkpoint-2"]
    resumed = train(*arguments, *resume, data=None, output_dir=tmp_path / "resumed")
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(before[name], after[name]) for name in before)
    for more, message in (([], "--max_train_steps is needed"), (["--max_train_samples", 9], "use --max_train_steps")):
        with pytest.raises(ValueError, match=message):
            train(*data, "--streaming", *more, data=None, output_dir=tmp_path / "other")


def test_pushes_each_checkpoint_and_the_end(image_folders, tmp_path):
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
        command = [sys.executable, script.__file__, "--train_dir", image_folders / "train"]
        command += ["--validation_dir", image_folders / "validation", "--output_dir", tmp_path / "digits"]
        command += ["--variant", "nano", "--image_size", 32, "--train_batch_size", 8, "--max_train_steps", 2]
        command += ["--checkpointing_steps", 1, "--push_to_hub", "--hub_model_id", "me/digits"]
        run_process([*command, "--hub_strategy", "checkpoint"], tmp_path, **environment)
        commits = hub.repositories["me/digits"]
    files = [set(files) for _, files in commits]
    assert len(commits) >= 2 and {"model.safetensors", "modeling_clustr.py", "all_results.json"} <= files[-1]
    assert not any("/" in name or name.endswith((".bin", ".pkl")) for name in files[-1])
    assert {"handler.py", "requirements.txt", "README.md", "training_curve.png"} <= files[-1]
    weights = [files["model.safetensors"] for _, files in commits if "model.safetensors" in files]
    assert weights[0] != weights[-1]


def test_evaluate_scores_our_pipeline_with_our_metric(train, image_folders):
    folder = train("--num_train_epochs", 1)
    data = load_dataset("imagefolder", data_files=str(image_folders / "validation" / "**"), split="train")
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    result = evaluator("image-classification").compute(
        model_or_pipeline=classify, data=data, metric=Accuracy(), label_mapping=classify.model.config.label2id
    )
    assert result["accuracy"] == pytest.approx(read_json(folder / "all_results.json")["eval_accuracy"])
