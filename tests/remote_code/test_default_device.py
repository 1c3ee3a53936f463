"""
`torch.set_default_device` of a user does not reach our tensors: each is made on the device of what it belongs to.

"meta" stands in for an accelerator: a tensor that is made without a device has no data there.
"""

import ast
from pathlib import Path

import pytest
import torch
from hub_repositories import make_image, make_model

from clustr_hf import aggregate_tokens, find_clusters


ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
SOURCES = [path for path in FILES if "checkpoints" not in path.parts]  # these hold copies
FACTORIES = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn"),
    *("randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
}


def factories_without_device(source: str) -> list[int]:
    """Lines that call a function of torch which makes a tensor, and do not say where."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and call.func.attr in FACTORIES
        and "device" not in [keyword.arg for keyword in call.keywords]
    ]


def test_the_rule_finds_what_it_looks_for():
    assert factories_without_device("a = 1\nb = torch.zeros(3)\nc = torch.ones(3, device=b.device)") == [2]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_tensor_that_is_made_states_its_device(path):
    assert factories_without_device(path.read_text()) == []


@pytest.fixture
def other_device():
    """A function that makes "meta" the default device until the end of the test."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("compiled", ["on", "off"])
@pytest.mark.parametrize("assignment", ["density_parent", "nearest_center"])
@pytest.mark.parametrize("window", [None, 5])
def test_clusters(compiled, assignment, window, other_device, monkeypatch):
    monkeypatch.setenv("CLUSTR_KERNEL", compiled)
    tokens, weight = torch.randn(2, 12 * 9, 8), torch.rand(2, 12 * 9, 1)
    arguments = {"assignment": assignment, "size": (12, 9), "window": window}
    expected = find_clusters(tokens, [4, 20], **arguments)
    merged = aggregate_tokens(tokens, expected[0], int(expected[0].max()) + 1, weight)
    other_device()
    clusters = find_clusters(tokens, [4, 20], **arguments)
    assert all(torch.equal(*pair) for pair in zip(clusters, expected))
    assert torch.equal(aggregate_tokens(tokens, clusters[0], merged.shape[1], weight), merged)


@pytest.mark.parametrize("kind", ["classification", "semantic_fpn", "upernet", "detection", "instances", "poses"])
@torch.no_grad()
def test_models(kind, other_device):
    model, _ = make_model(kind)
    pixel_values = torch.rand(1, 3, 64, 48)
    expected = model(pixel_values)
    other_device()
    output = model(pixel_values)
    for name, values in expected.items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(output[name], values), name


BOX = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}
LABELS = {
    "classification": torch.tensor([1]),
    "semantic_fpn": torch.arange(64 * 48).view(1, 64, 48) % 3,
    "upernet": torch.arange(64 * 48).view(1, 64, 48) % 3,
    "detection": [BOX],
    "instances": [{**BOX, "masks": torch.ones(1, 64, 48, dtype=torch.bool)}],
}


@pytest.mark.parametrize("kind", LABELS)
def test_training(kind, other_device):
    model, _ = make_model(kind)
    pixel_values, labels = torch.rand(2, 3, 64, 48), LABELS[kind]
    labels = torch.cat([labels] * 2) if isinstance(labels, torch.Tensor) else labels * 2
    other_device()
    loss = model.train()(pixel_values, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.device.type == "cpu" for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["classification", "semantic_fpn", "detection", "instances"])
@torch.no_grad()
def test_processors_and_what_they_make_of_outputs(kind, other_device):
    model, processor = make_model(kind)

    def run():
        inputs = processor([make_image()], return_tensors="pt")
        outputs = model(**inputs)
        if kind == "semantic_fpn":
            return [*inputs.values(), *processor.post_process_semantic_segmentation(outputs, [(90, 120)])]
        if kind == "detection":
            (found,) = processor.post_process_object_detection(outputs, 0.3, [(90, 120)])
            return [*inputs.values(), *found.values()]
        if kind == "instances":
            (found,) = processor.post_process_instance_segmentation(outputs, 0.3, target_sizes=[(90, 120)])
            return [*inputs.values(), found["segmentation"]]
        return [*inputs.values(), outputs.logits]

    expected = run()
    other_device()
    assert all(torch.equal(*pair) for pair in zip(run(), expected, strict=True))
