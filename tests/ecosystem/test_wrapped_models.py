"""
Models whose modules were wrapped, hooked, replaced or moved by other libraries: their outputs equal those of the
original model, and the additions take effect. The oracle is the original model, or the same addition to a network
written with plain calls.
"""

import contextlib
import copy
import functools

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from hub_repositories import make_image, make_model
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from tiny_models import tiny_classifier, tiny_config
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.transforms.functional import to_tensor

from clustr_hf import ClusTRForImageClassification, bundled_checkpoint
from clustr_hf.remote_code import feed_forward_fused_clustr
from clustr_hf.remote_code.feed_forward_fused_clustr import can_fuse
from clustr_hf.remote_code.modeling_clustr import ClusTRMLP


TASKS = ("classification", "semantic_fpn", "upernet", "detection", "instances", "poses")


def make_input(kind: str) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 64, 48) if kind == "poses" else torch.rand(1, 3, 96, 64)


@functools.cache
def untouched(kind: str):
    """A model (copy it before changing it), an input and its output."""
    model = make_model(kind)[0]
    return model, make_input(kind), predict(model, make_input(kind))


@torch.no_grad()
def predict(model, pixel_values):
    output = model(pixel_values)
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def assert_same(output, expected, tolerance=1e-4):
    assert output.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(output[name], values, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=TASKS)
def task(request):
    """A new copy of the task's model, its input and the output of the untouched model."""
    model, pixel_values, expected = untouched(request.param)
    return copy.deepcopy(model), pixel_values, expected


# Offloading.


def test_offloaded_to_the_cpu(task):
    model, pixel_values, expected = task
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same(predict(model, pixel_values), expected)


def test_offloaded_to_the_disk(task, tmp_path):
    model, pixel_values, expected = task
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert_same(predict(model, pixel_values), expected)


@pytest.mark.parametrize("device_map", [{"": "disk"}, "auto"])
def test_loaded_with_weights_on_the_disk(device_map, task, tmp_path):
    """As `device_map="auto"` loads a model that is larger than the memory."""
    model, pixel_values, expected = task
    model.save_pretrained(tmp_path / "model")
    memory = {"max_memory": {"cpu": 3_000_000}} if device_map == "auto" else {}
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload", **memory
    )
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert_same(predict(loaded.eval(), pixel_values), expected)


def test_the_bundled_checkpoint_offloaded():
    model = ClusTRForImageClassification.from_pretrained(bundled_checkpoint()).eval()
    image = torch.rand(1, 3, 64, 64)
    expected = predict(model, image)
    assert_same(predict(cpu_offload(model, execution_device=torch.device("cpu")), image), expected)


# Hooks.


def modules_with_parameters(model):
    return {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_every_module_with_parameters_fires(register, task):
    model, pixel_values, expected = task
    fired, modules = dict.fromkeys(modules_with_parameters(model), 0), modules_with_parameters(model)

    def count(name, *arguments):
        fired[name] += 1

    for name, module in modules.items():
        getattr(module, register)(functools.partial(count, name))
    assert_same(predict(model, pixel_values), expected)
    once = {name for name in fired if ".blocks." in name}
    assert {name: fired[name] for name in once} == dict.fromkeys(once, 1)
    assert [name for name in fired if not fired[name] and "auxiliary" not in name] == []


def test_hooks_on_modules_without_parameters_fire():
    model = tiny_classifier()
    fired = []
    for block in (block for stage in model.clustr.stages for block in stage.blocks):
        for module in (block.mlp.activation, block.mlp.dropout):
            module.register_forward_hook(lambda module, *_: fired.append(type(module).__name__))
    predict(model, torch.rand(1, 3, 64, 64))
    assert fired == ["GELUActivation", "Dropout", "Dropout"] * sum(model.config.depths)


def test_a_hook_on_all_modules_of_the_process_fires():
    model, seen = tiny_classifier(), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        predict(model, torch.rand(1, 3, 64, 64))
    finally:
        handle.remove()
    assert set(modules_with_parameters(model).values()) <= seen


def test_backward_hooks_fire():
    model, seen = tiny_classifier(), set()
    modules = modules_with_parameters(model).values()
    for module in modules:
        module.register_full_backward_hook(lambda module, *_: seen.add(module))
    model(torch.rand(1, 3, 64, 64), labels=torch.tensor([1])).loss.backward()
    assert set(modules) == seen


def test_a_hook_sees_whole_features_of_large_images(monkeypatch):
    """Without hooks, the network processes such an image in strips."""
    monkeypatch.setattr(feed_forward_fused_clustr, "FEED_FORWARD_ELEMENTS", 1000)
    model, shapes = tiny_classifier(), []
    mlp = model.clustr.stages[0].blocks[0].mlp
    for name in ("fc1", "depthwise", "fc2"):
        getattr(mlp, name).register_forward_hook(lambda module, _, output: shapes.append(tuple(output.shape)))
    predict(model, torch.rand(1, 3, 64, 64))
    assert shapes == [(1, 256, 32), (1, 32, 16, 16), (1, 256, 16)]


# Weights that are computed from others, and adapters. The oracle is the feed-forward network of Eq. 9 in plain calls.


def call_every_module(mlp, tokens, size):
    maps = mlp.fc1(tokens).unflatten(1, size).permute(0, 3, 1, 2)
    hidden = mlp.activation(maps + mlp.depthwise(maps))
    return mlp.fc2(hidden.permute(0, 2, 3, 1).flatten(1, 2))


def make_mlp():
    torch.manual_seed(0)
    mlp = ClusTRMLP(tiny_config(), stage_index=0).eval()
    return mlp, torch.randn(2, 12, 16), (4, 3)


WRAPPERS = {
    "pruning": lambda mlp: prune.l1_unstructured(mlp.depthwise, "weight", amount=0.5),
    "structured pruning": lambda mlp: prune.ln_structured(mlp.fc1, "weight", amount=0.5, n=2, dim=0),
    "pruned bias": lambda mlp: prune.random_unstructured(mlp.depthwise, "bias", amount=0.5),
    "weight normalisation": lambda mlp: double_norm(parametrizations.weight_norm(mlp.depthwise)),
    "spectral normalisation": lambda mlp: parametrizations.spectral_norm(mlp.depthwise),
    "parametrisation": lambda mlp: parametrize.register_parametrization(mlp.depthwise, "weight", Doubled()),
    "seamless tiles": lambda mlp: (
        setattr(mlp.depthwise, "padding_mode", "circular")
        or setattr(mlp.depthwise, "_reversed_padding_repeated_twice", [1, 1, 1, 1])
    ),
    "dilation": lambda mlp: (setattr(mlp.depthwise, "dilation", (2, 2)), setattr(mlp.depthwise, "padding", (2, 2))),
    "another activation": lambda mlp: setattr(mlp, "activation", nn.ReLU()),
    "a replaced forward": lambda mlp: setattr(mlp.depthwise, "forward", lambda maps: 3 * maps),
    "a replaced convolution": lambda mlp: setattr(mlp, "depthwise", nn.Sequential(mlp.depthwise, nn.Tanh())),
    "a forward hook that changes": lambda mlp: mlp.depthwise.register_forward_hook(lambda *args: 2 * args[-1]),
    "a pre-hook that changes": lambda mlp: mlp.fc2.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
    "a subclass": lambda mlp: setattr(mlp.fc1, "__class__", DoubledLinear),
}


def double_norm(module):
    module.parametrizations.weight.original0.data *= 2


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class DoubledLinear(nn.Linear):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_what_was_done_to_a_module_acts(name, with_gradient):
    mlp, tokens, size = make_mlp()
    before = mlp(tokens, size)
    assert can_fuse(mlp, tokens)
    WRAPPERS[name](mlp)
    assert not can_fuse(mlp, tokens)
    with contextlib.nullcontext() if with_gradient else torch.no_grad():
        after = mlp(tokens, size)
        torch.testing.assert_close(after, call_every_module(mlp, tokens, size))
    assert (after - before).abs().max() > 1e-3


def test_a_pruned_model_trains():
    model = tiny_classifier().train()
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(module, "weight", amount=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        model(torch.rand(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert missing == []
        optimizer.step()
        optimizer.zero_grad()


ADAPTERS = {
    "LoHa": functools.partial(LoHaConfig, r=2, init_weights=False),
    "LoKr": functools.partial(LoKrConfig, r=2, init_weights=False),
    "LoRA": functools.partial(LoraConfig, r=2, init_lora_weights=False),
}


def adapted_modules(model, name: str) -> list[str]:
    """All linear layers and convolutions that the adapter supports: LoRA's rank must divide the groups."""
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if name == "LoRA":
        names = [n for n in names if "depthwise" not in n]
    return names


@pytest.mark.parametrize("name", ["LoHa", "LoKr", "LoRA"])
@pytest.mark.parametrize("kind", TASKS)
def test_adapters_on_every_layer_act_learn_and_merge(name, kind):
    """In float64, because the adapters' random weights amplify rounding errors."""
    model, pixel_values, expected = untouched(kind)
    adapted = get_peft_model(copy.deepcopy(model), ADAPTERS[name](target_modules=adapted_modules(model, name)))
    adapted, pixel_values = adapted.eval().double(), pixel_values.double()
    output = predict(adapted, pixel_values)
    merged = predict(copy.deepcopy(adapted).merge_and_unload(), pixel_values)
    key = next(key for key in ("logits", "heatmaps") if key in expected)
    if kind != "instances":  # the number of detections depends on the weights
        assert (output[key] - expected[key]).abs().max() > 1e-3
    assert_same(merged, output)


@pytest.mark.parametrize("name", ["LoHa", "LoKr"])
def test_adapters_on_every_layer_learn(name):
    model = tiny_classifier()
    adapted = get_peft_model(model, ADAPTERS[name](target_modules=adapted_modules(model, name))).train()
    adapted(torch.rand(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
    trained = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
    assert any("depthwise" in name for name, _ in trained)
    assert [name for name, p in trained if p.grad is None] == []


# Quantisation.


def test_int8_weights_of_torchao_are_as_their_values_in_float(task):
    torchao = pytest.importorskip("torchao.quantization")
    model, pixel_values, _ = task
    expected = copy.deepcopy(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    quantized = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear) and is_int8(m.weight)}
    assert quantized
    for name, weight in quantized.items():
        expected.get_submodule(name).weight.data = weight.dequantize()
    assert_same(predict(model, pixel_values), predict(expected, pixel_values), tolerance=1e-3)


def is_int8(weight):
    return type(weight).__name__ == "Int8Tensor"


def quantize_with_torch(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def quantize_with_torchao(model):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    return model


@pytest.mark.parametrize("quantize", [quantize_with_torch, quantize_with_torchao])
def test_dynamic_int8_is_close_to_float(quantize):
    """Linear layers in int8 with the range of the input of each call, which is the whole image and not a strip."""
    model = ClusTRForImageClassification.from_pretrained(bundled_checkpoint()).eval()
    images = torch.stack([to_tensor(make_image((96, 96)).rotate(90 * turn)) for turn in range(4)])
    expected = predict(model, images)["logits"]
    quantized = quantize(model)
    assert not can_fuse(quantized.clustr.stages[0].blocks[0].mlp, images)
    logits = predict(quantized, images)["logits"]
    assert not torch.equal(logits, expected)
    assert (logits - expected).norm() < 0.1 * expected.norm()


# A process in which a module wrapped for several devices is visible to the package.


def test_a_convolution_sharded_on_its_own(tmp_path):
    """FSDP with each depthwise convolution in its own unit, whose weight is complete only during its call."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    model, image = tiny_classifier(), torch.rand(1, 3, 64, 64)
    expected = predict(model, image)["logits"]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for module in list(model.modules()):
            if isinstance(module, ClusTRMLP):
                fully_shard(module.depthwise)
        fully_shard(model)
        torch.testing.assert_close(predict(model, image)["logits"], expected, rtol=1e-4, atol=1e-5)
        model.train()(image, labels=torch.tensor([1])).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    finally:
        dist.destroy_process_group()
