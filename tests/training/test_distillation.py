"""
Distillation in the training scripts. Oracles: the formula written out with loops, the teacher's own image processor,
and the same training without interruption or on one process.
"""

import json
import math
import sys

import numpy as np
import pytest
import run_image_classification as trainer_script
import run_image_classification_no_trainer as classification
import run_semantic_segmentation_no_trainer as segmentation
import torch
from forked_scripts import run_on_two_processes
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    PvtV2Config,
    PvtV2ForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    TimmWrapperImageProcessor,
    TrainingArguments,
    ViTImageProcessor,
)

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, ClusTRImageProcessor
from clustr_hf.training.distillation import (
    DistillationArguments,
    PixelFormat,
    Teacher,
    make_converter,
    match_classes,
)
from clustr_hf.training.tasks.image_classification.trainer import DistillationTrainer


SMALL = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
SMALL |= {"mlp_ratios": [2, 2, 2, 2]}


def small_processor(side=32):
    return ClusTRImageProcessor(size={"height": side, "width": side}, do_center_crop=False)


def save_teacher(folder, model, processor):
    """A teacher with clear opinions: the logits of new models are almost 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A classifier of other classes, among them those of the digits, in another order and with another processor."""
    names = ["two", "zero", "many", "one"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    torch.manual_seed(1)
    processor = ViTImageProcessor(size={"height": 48, "width": 48})
    model = PvtV2ForImageClassification(PvtV2Config(**SMALL, **labels))
    return save_teacher(tmp_path_factory.mktemp("teacher"), model, processor)


@pytest.fixture(scope="module")
def segmentation_teacher(tmp_path_factory):
    names = ["ground", "square", "disc"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    torch.manual_seed(1)
    model = SegformerForSemanticSegmentation(SegformerConfig(**SMALL, decoder_hidden_size=8, **labels))
    return save_teacher(tmp_path_factory.mktemp("segmenter"), model, SegformerImageProcessor(size=[64, 64]))


def divergence(student, teacher, temperature):
    """Kullback-Leibler divergence of two lists of logits, in plain Python."""
    shares = []
    for logits in (student, teacher):
        powers = [math.exp(value / temperature) for value in logits]
        shares.append([power / sum(powers) for power in powers])
    return sum(q * (math.log(q) - math.log(p)) for p, q in zip(*shares))


class FixedLogits(torch.nn.Module):
    """A model that returns the same logits for all images."""

    device = torch.device("cpu")

    def __init__(self, logits):
        super().__init__()
        self.fixed = logits

    def forward(self, pixel_values):
        return type("Output", (), {"logits": self.fixed})


def make_teacher(logits, classes=None, **settings):
    args = DistillationArguments("teacher", **settings)
    return Teacher(FixedLogits(logits), lambda pixel_values: pixel_values, classes, args)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 1.0), (0.5, 1.0), (0.25, 3.0), (1.0, 2.0)])
def test_the_loss_of_a_classifier(alpha, temperature):
    student, given = torch.randn(4, 3), torch.randn(4, 5)
    classes = [4, 0, 2]
    teacher = make_teacher(given, classes, distillation_alpha=alpha, distillation_temperature=temperature)
    loss = teacher.add_to(torch.tensor(0.7), student, torch.zeros(4, 3, 8, 8))
    chosen = [[row[index] for index in classes] for row in given.tolist()]
    mean = sum(divergence(*rows, temperature) for rows in zip(student.tolist(), chosen)) / 4
    assert loss.item() == pytest.approx((1 - alpha) * 0.7 + alpha * temperature**2 * mean, abs=1e-5)


def test_the_loss_of_a_segmenter_ignores_pixels_without_label():
    student, given = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    valid = torch.rand(2, 8, 10) > 0.3
    teacher = make_teacher(given, distillation_alpha=0.5, distillation_temperature=2.0)
    loss = teacher.add_to_dense(torch.tensor(1.0), student, torch.zeros(2, 3, 16, 20), valid)
    values = [
        divergence(student[b, :, i, j].tolist(), given[b, :, i, j].tolist(), 2.0)
        for b in range(2)
        for i in range(4)
        for j in range(5)
        if valid[b, 2 * i + 1, 2 * j + 1]
    ]
    assert 0 < len(values) < 40
    assert loss.item() == pytest.approx(0.5 + 0.5 * 4 * sum(values) / len(values), abs=1e-5)
    none_valid = teacher.add_to_dense(torch.tensor(1.0), student, torch.zeros(2, 3, 16, 20), torch.zeros_like(valid))
    assert none_valid.item() == 0.5


def test_equal_logits_have_no_distillation_loss_and_the_student_is_drawn_to_the_teacher():
    student, given = torch.zeros(1, 3, requires_grad=True), torch.tensor([[3.0, 0.0, -3.0]])
    make_teacher(given, distillation_alpha=1.0).add_to(torch.tensor(9.0), student, torch.zeros(1, 3, 8, 8)).backward()
    assert student.grad[0, 0] < 0 < student.grad[0, 2]
    same = make_teacher(student.detach(), distillation_alpha=1.0)
    assert same.add_to(torch.tensor(9.0), student.detach(), torch.zeros(1, 3, 8, 8)).item() == 0


PROCESSORS = {
    "vit": ViTImageProcessor(size={"height": 32, "width": 32}),
    "bit": BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "efficientnet": EfficientNetImageProcessor(size=[32, 32], rescale_factor=1 / 127.5, rescale_offset=True),
    "mobilevit": MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "segformer": SegformerImageProcessor(size=[32, 32], do_normalize=False),
    "raw": SegformerImageProcessor(size=[32, 32], do_normalize=False, do_rescale=False),
    "clustr": small_processor(),
}


@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("students", ["clustr", "efficientnet", "mobilevit"])
def test_the_teacher_sees_the_pixels_of_its_own_processor(name, students):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image, teachers = Image.fromarray(pixels), PROCESSORS[name]
    given, expected = (each(image, return_tensors="pt").pixel_values for each in (PROCESSORS[students], teachers))
    converted = make_converter(PROCESSORS[students], teachers, resizes=True)(given)
    torch.testing.assert_close(converted, expected.float(), atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_the_processor_of_timms_models():
    settings = {"input_size": (3, 40, 48), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "crop_pct": 1.0}
    processor = TimmWrapperImageProcessor(pretrained_cfg=settings)
    image = Image.fromarray(np.full((40, 48, 3), 51, np.uint8))
    expected = processor(image, return_tensors="pt").pixel_values
    given = small_processor()(image, return_tensors="pt").pixel_values
    converted = make_converter(small_processor(), processor, resizes=True)(given)
    torch.testing.assert_close(converted, expected, atol=1e-5, rtol=0)


def test_sizes_of_the_teacher():
    assert PixelFormat.of(PROCESSORS["bit"]).size == PixelFormat.of(PROCESSORS["vit"]).size == (32, 32)
    assert PixelFormat.of(ClusTRImageProcessor()).size == (224, 224)
    assert PixelFormat.of(SegformerImageProcessor(do_resize=False)).size is None
    images = torch.rand(2, 3, 24, 24)
    assert make_converter(small_processor(), small_processor(48), resizes=True)(images).shape == (2, 3, 48, 48)
    kept = make_converter(small_processor(), small_processor(48), resizes=False)(images)
    assert torch.equal(kept, images)


def test_processors_that_are_not_linear_are_refused():
    def squared(image, return_tensors):
        pixel_values = small_processor()(image, return_tensors=return_tensors).pixel_values
        return type("Batch", (), {"pixel_values": pixel_values**2})

    with pytest.raises(ValueError, match="must be a linear function of the pixels"):
        PixelFormat.of(squared)


def test_classes_are_matched_by_name(caplog):
    assert match_classes(["a", "b"], ["a", "b"], "t") is None and not caplog.text
    assert match_classes(["LABEL_0", "LABEL_1"], ["a", "b"], "t") is None
    assert "t does not name its classes: they are taken in the order of the student's, ['a', 'b']" in caplog.text
    assert match_classes(["c", "a", "b"], ["a", "b"], "t") == [1, 2]
    with pytest.raises(ValueError, match=r"t must know the classes of the data by name, but lacks \['c'\]"):
        match_classes(["a", "b"], ["a", "c"], "t")
    with pytest.raises(ValueError, match=r"t has several classes named \['a'\]"):
        match_classes(["a", "a", "b"], ["a", "b"], "t")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distillation_alpha": 1.5}, "--distillation_alpha must be in"),
        ({"distillation_temperature": 0.0}, "--distillation_temperature must be positive"),
        ({"distillation_temperature": math.nan}, "--distillation_temperature must be positive"),
    ],
)
def test_wrong_weights_and_temperatures(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(**settings)


def classification_arguments(data, output_dir, *arguments):
    settings = {"--output_dir": output_dir, "--variant": "nano", "--image_size": 32, "--train_batch_size": 8}
    settings |= {"--train_dir": data / "train", "--validation_dir": data / "validation", "--logging_steps": 1}
    settings |= {"--drop_path_rate": 0.2, "--eval_steps": "never", "--cache_dir": output_dir.parent / "cache"}
    return [*(part for pair in settings.items() for part in pair), *arguments]


@pytest.fixture
def train(image_folders, tmp_path, run_script):
    def run(name, *arguments):
        run_script(classification, {}, *classification_arguments(image_folders, tmp_path / name, *arguments))
        return tmp_path / name

    return run


def losses(folder):
    return [entry["loss"] for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_classifier_learns_from_its_teacher_and_resumes_exactly(train, teacher):
    steps = ["--max_train_steps", 4, "--cutmix", 1.0, "--teacher_model_name_or_path", teacher]
    steps += ["--distillation_alpha", 0.9]
    whole = train("whole", *steps, "--checkpointing_steps", 2)
    resumed = train("resumed", *steps, "--resume_from_checkpoint", whole / "checkpoint-2")
    assert same(weights(whole), weights(resumed))
    assert weights(whole).keys() == ClusTRForImageClassification(ClusTRConfig.from_variant("nano")).state_dict().keys()
    plain = train("plain", "--max_train_steps", 4, "--cutmix", 1.0)
    assert losses(whole)[0] != losses(plain)[0]  # the first loss differs, the weights are the same
    ignored = train("ignored", *steps[:-1], 0.0)
    assert same(weights(ignored), weights(plain))  # the teacher changes neither the data nor the random numbers
    card = (whole / "README.md").read_text()
    assert f"| teacher_model_name_or_path | `{teacher.name}` |" in card
    assert "| distillation_alpha | `0.9` |" in card
    assert "distillation" not in (plain / "README.md").read_text()


def test_lora_frozen_stages_averages_accumulation_and_channels_last_combine_with_it(train, teacher):
    steps = ["--max_train_steps", 2, "--teacher_model_name_or_path", teacher]
    before = train("start", "--max_train_steps", 1)
    start = ["--model_name_or_path", before, *steps]
    frozen = weights(train("frozen", *start, "--freeze_stages", 2, "--ema_decay", 0.5))
    changed = {name for name, value in weights(before).items() if not torch.equal(value, frozen[name])}
    assert changed and not any(name.startswith(("clustr.stages.0", "clustr.stages.1")) for name in changed)
    adapted = weights(train("adapted", *start, "--lora_rank", 2))
    changed = {name for name, value in weights(before).items() if not torch.equal(value, adapted[name])}
    assert changed and all("_proj" in name or "classifier" in name for name in changed)
    at_once = train("at once", *start, "--drop_path_rate", 0.0)
    for other in (["--per_device_train_batch_size", 4], ["--channels_last", "true"]):
        same_training = train(other[0], *start, "--drop_path_rate", 0.0, *other)
        for name, value in weights(at_once).items():
            torch.testing.assert_close(weights(same_training)[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_teachers_saved_in_half_precision_teach_in_float32(train, teacher, tmp_path, dtype):
    half = tmp_path / "half"
    PvtV2ForImageClassification.from_pretrained(teacher, dtype=dtype).save_pretrained(half)
    (half / "preprocessor_config.json").write_bytes((teacher / "preprocessor_config.json").read_bytes())
    arguments = ["--max_train_steps", 1, "--distillation_alpha", 1.0, "--teacher_model_name_or_path"]
    exact, rounded = (losses(train(name, *arguments, path)) for name, path in (("exact", teacher), ("rounded", half)))
    assert rounded == pytest.approx(exact, rel=0.01)


def test_a_teacher_that_cannot_teach_is_refused(train, teacher, tmp_path):
    with pytest.raises(ValueError, match="must know the classes of the data by name, but lacks"):
        train("out", "--teacher_model_name_or_path", other_teacher(tmp_path / "other"))
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((teacher / name).read_bytes())
    with pytest.raises(ValueError, match="bare must have an image processor"):
        train("out", "--teacher_model_name_or_path", tmp_path / "bare")
    evaluated = ["--eval_only", "--model_name_or_path", train("model", "--max_train_steps", 1)]
    train("evaluated", *evaluated, "--teacher_model_name_or_path", tmp_path / "missing")  # not loaded to evaluate


def other_teacher(folder):
    config = PvtV2Config(**SMALL, id2label={0: "zero", 1: "one"}, label2id={"zero": 0, "one": 1})
    return save_teacher(folder, PvtV2ForImageClassification(config), small_processor())


def test_two_processes_give_the_weights_of_one(image_folders, tmp_path, teacher, forked_scripts):
    arguments = ["--max_train_steps", 3, "--teacher_model_name_or_path", teacher, "--drop_path_rate", 0.0]
    one = tmp_path / "one"
    run = forked_scripts("classification", classification_arguments(image_folders, one, *arguments), tmp_path / "log")
    assert run.end() == 0, run.log.read_text()[-2000:]
    two = tmp_path / "two"
    run_on_two_processes("classification", classification_arguments(image_folders, two, *arguments), tmp_path / "logs")
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=2e-4, rtol=0)


def test_trainer_learns_from_the_teacher(image_folders, tmp_path, teacher, monkeypatch):
    def train(name, *arguments):
        command = [trainer_script.__file__, *("--do_train", "--do_eval", "--variant", "nano", "--image_size", 32)]
        command += ["--train_dir", image_folders / "train", "--validation_dir", image_folders / "validation"]
        command += ["--per_device_train_batch_size", 8, "--max_steps", 3, "--logging_steps", 1, "--use_cpu"]
        command += ["--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / name, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        trainer_script.main()
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry], weights(tmp_path / name)

    plain, plain_weights = train("plain")
    taught, taught_weights = train("taught", "--teacher_model_name_or_path", teacher, "--distillation_alpha", 0.9)
    ignored, ignored_weights = train("ignored", "--teacher_model_name_or_path", teacher, "--distillation_alpha", 0.0)
    assert taught[0] != plain[0] and not same(taught_weights, plain_weights)
    assert ignored == pytest.approx(plain, abs=1e-3) and same(ignored_weights, plain_weights)
    evaluation = [json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("ignored", "plain")]
    assert evaluation[0]["eval_loss"] == evaluation[1]["eval_loss"]
    assert "| distillation_alpha | `0.9` |" in (tmp_path / "taught" / "README.md").read_text()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["clustr", "segformer", "pvt_v2"])
def test_accumulated_batches_of_trainer_are_one_batch(kind, alpha, tmp_path):
    """Models differ in whether they declare to count the images of accumulated batches themselves."""
    configs = {"clustr": ClusTRConfig, "segformer": SegformerConfig, "pvt_v2": PvtV2Config}
    config = configs[kind](**SMALL, num_labels=3, hidden_dropout_prob=0, classifier_dropout_prob=0, drop_path_rate=0)
    images, teacher = torch.randn(8, 3, 32, 32), make_teacher(torch.tensor([[3.0, 0.0, 1.0]]), distillation_alpha=alpha)
    data = [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(images)]

    def change(**batches):
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(config)
        before = model.classifier.weight.detach().clone()
        settings = {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0, "lr_scheduler_type": "constant"}
        settings |= {"max_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, **batches}
        args = TrainingArguments(str(tmp_path), **settings)
        DistillationTrainer(model=model, args=args, train_dataset=data, teacher=teacher).train()
        return model.classifier.weight.detach() - before

    at_once = change(per_device_train_batch_size=8)
    in_parts = change(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert at_once.abs().max() > 1e-5
    torch.testing.assert_close(in_parts, at_once, atol=1e-6, rtol=1e-3)


def test_a_segmenter_learns_from_its_teacher_and_resumes_exactly(
    segmentation_folders, tmp_path, run_script, segmentation_teacher
):
    def train(name, *arguments):
        data, folder = segmentation_folders, tmp_path / name
        settings = {"--output_dir": folder, "--train_dir": data / "train", "--validation_dir": data / "validation"}
        settings |= {"--id2label_file": data / "id2label.json", "--image_size": 96, "--crop_size": 64}
        settings |= {"--train_batch_size": 4, "--logging_steps": 1, "--eval_steps": "never", "--num_pictures": 0}
        run_script(segmentation, settings, "--max_train_steps", 2, *arguments)
        return folder

    taught = ["--teacher_model_name_or_path", segmentation_teacher, "--distillation_alpha", 0.8]
    whole = train("whole", *taught, "--checkpointing_steps", 1)
    resumed = train("resumed", *taught, "--resume_from_checkpoint", whole / "checkpoint-1")
    assert same(weights(whole), weights(resumed))
    plain = train("plain")
    assert losses(whole)[0] != losses(plain)[0]
    assert same(weights(train("ignored", *taught[:-1], 0.0)), weights(plain))
