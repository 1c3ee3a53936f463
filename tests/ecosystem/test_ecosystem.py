"""Wrappers, trainers and pipelines of other libraries around the models: PEFT, Trainer, transformers."""

import copy
import json
import logging
import sys

import pytest
import torch
from conftest import run_process
from hub_repositories import PIPELINES, make_image, make_model
from peft import LoraConfig, PolyConfig, TaskType, get_peft_model
from tiny_models import tiny_classifier, tiny_config
from transformers import AttentionInterface, Trainer, TrainingArguments
from transformers.utils.output_capturing import install_all_output_capturing_hooks

from clustr_hf import (
    ClusTRBackbone,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
    ClusTRForPoseEstimation,
    ClusTRForSemanticSegmentation,
    ClusTRModel,
)
from clustr_hf.remote_code.modeling_clustr_attention import eager_attention_forward


MODEL_CLASSES = [
    ClusTRModel,
    ClusTRBackbone,
    ClusTRForImageClassification,
    ClusTRForSemanticSegmentation,
    ClusTRForObjectDetection,
    ClusTRForInstanceSegmentation,
    ClusTRForPoseEstimation,
]
TENSOR = torch.ones(2, 3)
# What wrappers pass to every model, with neutral values.
HANDED_ON = {
    **dict.fromkeys(["input_ids", "attention_mask", "inputs_embeds", "position_ids", "head_mask", "token_type_ids"]),
    **dict.fromkeys(["bool_masked_pos", "past_key_values", "pixel_mask", "is_causal", "anything_else"]),
    **dict.fromkeys(["output_attentions", "output_hidden_states", "return_dict", "output_clusters"]),
    "use_cache": True,
    "num_items_in_batch": torch.tensor(7),
    "interpolate_pos_encoding": True,
    "output_router_logits": False,
    "task_ids": torch.tensor([0, 1]),
    **dict.fromkeys(["cu_seq_lens_q", "cu_seq_lens_k"], torch.tensor([0, 2])),
    **dict.fromkeys(["max_length_q", "max_length_k"], 2),
}


@pytest.fixture(scope="module")
def pixel_values():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small_model(model_class):
    torch.manual_seed(0)
    heads = {"fpn_hidden_size": 16, "box_head_hidden_size": 16, "mask_head_hidden_size": 16, "roi_batch_size": 16}
    return model_class(tiny_config(num_labels=3, deconv_hidden_sizes=[16, 16, 16], **heads)).eval()


def first_tensor(output) -> torch.Tensor:
    return next(value[0] if isinstance(value, tuple) else value for value in output.values())


@pytest.fixture
def watched_attention():
    """Keywords that reach an attention function `watched`, which has one of them in its signature."""
    seen = []

    def watched(module, query, key, value, attention_mask, temperature=None, **kwargs):
        seen.append({"temperature": temperature, **kwargs})
        return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("watched", watched)
    return seen


@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda model_class: model_class.__name__)
def test_keywords_of_wrappers_change_nothing_and_stay_outside_the_attention(
    model_class, pixel_values, watched_attention
):
    model = small_model(model_class)
    model.set_attn_implementation("watched")
    with torch.no_grad():
        expected = first_tensor(model(pixel_values))
        assert torch.equal(first_tensor(model(pixel_values, **HANDED_ON)), expected)
    assert watched_attention
    assert {name for call in watched_attention for name in call} == {
        "temperature", "dropout", "scaling", "output_attentions"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["attention_mask", "inputs_embeds", "input_ids", "position_ids", "head_mask"])
@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda model_class: model_class.__name__)
def test_inputs_of_other_models_are_refused(model_class, name, pixel_values):
    with pytest.raises(ValueError, match=rf"`{name}` must be None: .*got shape \(2, 3\)"):
        small_model(model_class)(pixel_values, **{name: TENSOR})


def test_more_inputs_that_are_refused(pixel_values):
    model = small_model(ClusTRModel)
    for name, value in (("is_causal", True), ("labels", torch.tensor([0, 1])), ("bool_masked_pos", TENSOR > 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be None"):
            model(pixel_values, **{name: value})
    model(pixel_values, is_causal=False)
    with pytest.raises(ValueError, match="`output_clusters` must be False"):
        small_model(ClusTRBackbone)(pixel_values, output_clusters=True)


@pytest.mark.parametrize("keyword", [{"output_cluster": True}, {"output_cluster": False}, {"label": TENSOR}])
@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda model_class: model_class.__name__)
def test_misspelt_keywords_are_refused(model_class, keyword, pixel_values):
    (name,) = keyword
    with pytest.raises(TypeError, match=f"`{name}` is not an argument of this model: .*`output_clusters`"):
        small_model(model_class)(pixel_values, **keyword)


def test_a_mask_that_pads_nothing_is_taken(pixel_values):
    """Processors of detectors return one for images of the same size."""
    model, mask = small_model(ClusTRForImageClassification), torch.ones(2, 64, 64, dtype=torch.long)
    assert torch.equal(model(pixel_values, pixel_mask=mask).logits, model(pixel_values).logits)
    mask[1, :, -1] = 0
    with pytest.raises(ValueError, match="`pixel_mask` must be None"):
        model(pixel_values, pixel_mask=mask)


def test_a_custom_attention_function_gets_its_own_keywords(pixel_values, watched_attention):
    model = small_model(ClusTRForImageClassification)
    model.set_attn_implementation("watched")
    model(pixel_values, temperature=0.5)
    assert {call["temperature"] for call in watched_attention} == {0.5}
    model.set_attn_implementation("sdpa")
    with pytest.raises(TypeError, match="`temperature` is not an argument"):
        model(pixel_values, temperature=0.5)


@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda model_class: model_class.__name__)
def test_hidden_states_are_recorded_once(model_class, pixel_values):
    """For any number of installed hooks, which models inside models have."""
    model = small_model(model_class)
    with torch.no_grad():
        expected = model(pixel_values, output_hidden_states=True)
        install_all_output_capturing_hooks(model)
        again = model(pixel_values, output_hidden_states=True)
        chosen = model(pixel_values, output_hidden_states=[0, -1]).hidden_states
    widths = [16, 16, 32, 32, 64]
    assert [state.shape[1] for state in again.hidden_states] == widths
    torch.testing.assert_close(first_tensor(again), first_tensor(expected))
    assert [state is None for state in chosen] == [False, True, True, True, False]
    torch.testing.assert_close(chosen[-1], expected.hidden_states[-1])


def outputs_and_gradients(model, *inputs, **keywords) -> list[torch.Tensor]:
    """Tensors of a training step and of a prediction, and gradients, the same at every call."""
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    output = model.train()(*inputs, **keywords)
    output[0].float().mean().backward()
    tensors = [*output.to_tuple(), *model.eval()(*inputs, **keywords).to_tuple()]
    tensors += [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


def keywords_of(kind: str, model, size: tuple[int, int]) -> dict:
    """Labels, and a mask or swapped keypoints, for two images of the same size."""
    if kind == "poses":
        pairs = torch.tensor(model.config.flip_pairs)
        return {"labels": torch.rand(2, 17, *(extent // 2 for extent in size)).double(), "flip_pairs": pairs}
    if kind in ("semantic_fpn", "upernet"):
        mask = torch.ones(2, *size, dtype=torch.long)
        mask[0, size[0] - 8 :] = 0
        return {"labels": torch.randint(0, 3, (2, *size)), "pixel_mask": mask}
    return {"labels": torch.tensor([0, 2])} if kind == "classification" else {}


@pytest.mark.parametrize("kind", ["features", "classification", "semantic_fpn", "upernet", "poses"])
def test_another_default_device_changes_nothing(kind):
    """Every created tensor names its device. (In float64, clusters are found by tensor operations.)"""
    model, size = make_model(kind)[0].double(), (56, 72)
    model.config.semantic_class_weights = [1.0, 2.0, 3.0]
    inputs, keywords = torch.rand(2, 3, *size).double(), keywords_of(kind, model, size)
    expected = outputs_and_gradients(model, inputs, **keywords)
    torch.set_default_device("meta")
    try:
        found = outputs_and_gradients(model, inputs, **keywords)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, expected)


# Other task types are for models that generate.
TASK_TYPES = [None, "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"]


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda model_class: model_class.__name__)
def test_peft_of_every_task_type(model_class, task_type, pixel_values):
    """A new LoRA changes nothing; every adapter gets a gradient; optional outputs are returned."""
    model = small_model(model_class)
    with torch.no_grad():
        expected = first_tensor(model(pixel_values))
    model = get_peft_model(model, LoraConfig(task_type=task_type, r=2, target_modules=["q_proj", "fc1"]))
    output = model.eval()(pixel_values=pixel_values, output_hidden_states=True)
    torch.testing.assert_close(first_tensor(output), expected)
    assert len(output.hidden_states) == 5
    if model_class is ClusTRForInstanceSegmentation:  # whose first output is a list of detections
        loss = sum(state.square().mean() for state in output.hidden_states)
    else:
        loss = first_tensor(output).float().square().sum()
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if "lora_B" in name}
    assert len(gradients) == 10
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_every_task_type_of_peft_is_known_here():
    assert {None, *map(str.upper, TaskType)} == {*TASK_TYPES, "SEQ_2_SEQ_LM", "CAUSAL_LM"}


@pytest.mark.parametrize("task_type", ["FEATURE_EXTRACTION", "SEQ_CLS"])
def test_poly_adapters_get_their_task(task_type, pixel_values):
    """The tasks of the images select the adapters and do not reach the model."""
    sizes = {"r": 4, "n_tasks": 3, "n_skills": 2, "n_splits": 1}
    config = PolyConfig(task_type=task_type, target_modules=["q_proj"], init_weights=False, **sizes)
    model = get_peft_model(tiny_classifier(), config).eval()
    with torch.no_grad():
        one, other = (model(pixel_values=pixel_values, task_ids=torch.tensor([task, task])).logits for task in (0, 2))
    assert one.shape == (2, 5)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("task_type", ["none", None, "FEATURE_EXTRACTION", "SEQ_CLS"])
def test_trainer_with_and_without_peft(task_type, tmp_path):
    """Two steps with gradient accumulation train the model; evaluation returns the loss of the whole set."""
    model = tiny_classifier(num_labels=3)
    if task_type != "none":
        config = LoraConfig(task_type=task_type, r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
        model = get_peft_model(model, config)
    samples = [{"pixel_values": torch.rand(3, 32, 32), "labels": index % 3} for index in range(8)]
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "report_to": "none"}
    arguments = TrainingArguments(tmp_path, use_cpu=True, learning_rate=0.01, label_names=["labels"], **settings)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = Trainer(model, arguments, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    changed = {name for name, weight in model.named_parameters() if name in before and not weight.equal(before[name])}
    assert any("classifier" in name for name in changed) and any("q_proj" in name for name in changed)
    batch = {"pixel_values": torch.stack([s["pixel_values"] for s in samples]), "labels": torch.arange(8) % 3}
    with torch.no_grad():
        loss = model.eval()(**batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_upernet_makes_no_other_configuration(caplog, monkeypatch):
    """At level info, transformers logs that it creates a ResNet configuration."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = tiny_config(num_labels=3, segmentation_head="upernet", upernet_hidden_size=16)
    config._attn_implementation = "sdpa"
    before = config.to_dict()
    with caplog.at_level(logging.INFO, "transformers"):
        ClusTRForSemanticSegmentation(config)
    assert "esnet" not in caplog.text.lower() and "default" not in caplog.text
    assert config.to_dict() == before and config._attn_implementation == "sdpa"


PIPELINES_IN_SILENCE = """
import json, logging, sys
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
mode, picture, folders = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

class Messages(logging.Handler):
    def emit(self, record):
        assert "not supported" not in record.getMessage(), record.getMessage()

logging.getLogger("transformers").addHandler(Messages(logging.ERROR))
if mode != "remote code":
    import clustr_hf
for task, folder, module, name in folders:
    arguments = {"model": folder}
    if mode == "both" or (mode == "remote code" and name == "ClusTRForImageClassification"):
        model_class = get_class_from_dynamic_module(f"{module}.{name}", folder)
        assert mode != "both" or model_class is not getattr(clustr_hf, name)
        arguments = {"model": model_class.from_pretrained(folder), "image_processor": folder}
    answer = pipeline(task, trust_remote_code=True, **arguments)
    is_remote = type(answer.model).__module__.startswith("transformers_modules.")
    assert is_remote == (mode != "package"), (mode, type(answer.model))
    assert answer(picture) is not None
    print(task, "answered")
"""


KINDS = ("classification", "semantic_fpn", "detection", "instances", "poses", "features")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Task, folder, module and class name of a repository of each kind, and an image."""
    place = tmp_path_factory.mktemp("repositories")
    make_image().save(place / "image.png")
    found = []
    for kind in KINDS:
        task = PIPELINES[kind]
        model, processor = make_model(kind)
        model.save_pretrained(place / kind)
        processor.save_pretrained(place / kind)
        found.append((task, str(place / kind), type(model).__module__.rpartition(".")[2], type(model).__name__))
    return place / "image.png", found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["remote code", "package", "both"])
def test_pipelines_know_the_models(mode, repositories, tmp_path):
    """transformers logs an error for classes missing in its lists, before the pipeline works."""
    picture, found = repositories
    start = "import sys; sys.modules['clustr_hf'] = None\n" if mode == "remote code" else ""

    command = [sys.executable, "-c", start + PIPELINES_IN_SILENCE, mode, picture, json.dumps(found)]
    printed = run_process(command, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert printed.count("answered") == len(KINDS)
