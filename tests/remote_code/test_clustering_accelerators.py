"""What accelerators require: few operations, whole batches, no wait for the device. The tests run without one."""

import pytest
import torch
from test_clustering_kernel_clustr import exact_tokens
from torch.utils._python_dispatch import TorchDispatchMode

from clustr_hf import ClusTRConfig, ClusTRForImageClassification
from clustr_hf.remote_code import clustering_tensor_clustr, clustering_triton_support_clustr
from clustr_hf.remote_code.clustering_clustr import aggregate_tokens, clustering_path, find_clusters
from clustr_hf.remote_code.clustering_tensor_clustr import block_elements, cluster


ASSIGNMENTS = ["density_parent", "nearest_center"]
# Operations that make the host wait for the shape or the value of their result.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "equal")


class Operations(TorchDispatchMode):
    """Counts operations, each of which is about one launch on an accelerator, and keeps their names and sizes."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.name())
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.fixture(scope="module")
def meta_model():
    with torch.device("meta"):
        return ClusTRForImageClassification(ClusTRConfig.from_variant("small")).eval()


def operations_of_forward(model, size: int, batch: int) -> int:
    with torch.no_grad(), Operations() as operations:
        model(torch.empty(batch, 3, size, size, device="meta"))
    return len(operations.names)


@pytest.fixture
def accelerator(monkeypatch):
    """Treats CPU tensors like tensors on an accelerator."""
    monkeypatch.setattr(clustering_tensor_clustr, "is_on_accelerator", lambda tokens: True)
    monkeypatch.setenv("CLUSTR_KERNEL", "off")


@pytest.fixture
def triton_operators(monkeypatch):
    """Sends meta tensors through the Triton path, whose operators return only shapes for them."""
    pytest.importorskip("triton", reason="without Triton there is no such path")
    monkeypatch.setattr(clustering_triton_support_clustr, "is_on_gpu", lambda tokens: True)
    monkeypatch.setattr("clustr_hf.remote_code.clustering_clustr.cluster_by_triton", torch.ops.clustr_hf.find_clusters)


@pytest.mark.parametrize("size, batch, most", [(224, 64, 8100), (224, 128, 8100), (512, 16, 14_000), (1024, 2, 14_000)])
def test_tensor_operations_of_a_forward_are_few(meta_model, size, batch, most):
    assert operations_of_forward(meta_model, size, batch) <= most


@pytest.mark.parametrize("size, batch", [(224, 64), (224, 128), (512, 16), (1024, 2)])
def test_operations_with_triton_are_fewer(meta_model, triton_operators, size, batch):
    assert operations_of_forward(meta_model, size, batch) <= 3200


def test_operations_with_triton_do_not_depend_on_the_batch(meta_model, triton_operators):
    assert clustering_path(torch.empty(1, 49, 8, device="meta")) == "triton"
    assert operations_of_forward(meta_model, 224, 8) == operations_of_forward(meta_model, 224, 128)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("kind", ["fine", "grid", "walk", "copies", "two", "one"])
@pytest.mark.parametrize("mib", ["1024", "1"])
def test_large_blocks_give_the_same_clusters(kind, assignment, mib, accelerator, monkeypatch):
    monkeypatch.setenv("CLUSTR_BLOCK_MIB", mib)
    for shape in ((3, 157, 24), (2, 600, 5)):
        tokens = exact_tokens(kind, *shape, seed=1)
        numbers = [shape[1] // 64 + 1, shape[1] // 16, shape[1] + 5]
        found = cluster(tokens, numbers, 5, assignment)
        with monkeypatch.context() as context:
            context.setattr(clustering_tensor_clustr, "is_on_accelerator", lambda tokens: False)
            assert torch.equal(found, cluster(tokens, numbers, 5, assignment))


def test_the_densest_token_is_the_first_centre_beside_infinite_distances(accelerator):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 12, 4, generator=generator)
    tokens[0, :6] = 1e20 * (1 + 0.01 * torch.randn(6, 4, generator=generator))
    labels = cluster(tokens, [12], 3, "density_parent")[0, 0]
    assert labels[6:].eq(0).sum() == 1  # the dense group is the second one


def test_nothing_waits_for_the_device(accelerator):
    tokens = torch.randn(2, 60, 8, requires_grad=True)
    with Operations() as operations:
        for assignment in ASSIGNMENTS:
            (index,) = find_clusters(tokens, [4], assignment=assignment)
        aggregate_tokens(tokens, index, 4).sum().backward()
    waited = [name for name in operations.names if any(f"::{waiting}" in name for waiting in WAITING)]
    assert not waited


def test_blocks_fill_the_budget_and_no_more(accelerator, monkeypatch):
    tokens = torch.randn(4, 1024, 8)
    monkeypatch.setenv("CLUSTR_BLOCK_MIB", "2")
    assert block_elements(tokens) == 2**19 and block_elements(tokens.double()) == 2**18
    with Operations() as operations:
        cluster(tokens, [16], 5, "density_parent")
    assert 2**18 < operations.largest <= 2**19
    monkeypatch.delenv("CLUSTR_BLOCK_MIB")
    assert block_elements(tokens) == 2**28


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "much", ""])
def test_a_bad_budget_is_named(text, accelerator, monkeypatch):
    monkeypatch.setenv("CLUSTR_BLOCK_MIB", text)
    with pytest.raises(ValueError, match=f"`CLUSTR_BLOCK_MIB` must be a whole number of MiB, at least 1, got '{text}'"):
        find_clusters(torch.randn(1, 40, 4), [3])


def test_deterministic_algorithms_are_enough(accelerator):
    """No operation refuses to run, and two runs return the same bits."""
    tokens = torch.randn(2, 60, 8)
    torch.use_deterministic_algorithms(True)
    try:
        (index,) = find_clusters(tokens, [4])
        assert torch.equal(aggregate_tokens(tokens, index, 4), aggregate_tokens(tokens, index, 4))
    finally:
        torch.use_deterministic_algorithms(False)
