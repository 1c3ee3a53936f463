"""The compiled kernel against the oracle and tensor operations, for every instruction set of this processor."""

import ctypes.util
import subprocess
import sys

import naive_dpc_knn
import pytest
import torch
from conftest import run_process

from clustr_hf import find_clusters
from clustr_hf.remote_code import clustering_kernel_clustr
from clustr_hf.remote_code.clustering_kernel_clustr import (
    INSTRUCTION_SETS,
    can_cluster,
    cluster,
    supported_instruction_sets,
)


ASSIGNMENTS = ["density_parent", "nearest_center"]

pytestmark = pytest.mark.skipif(not supported_instruction_sets(), reason="the compiled kernel was not built")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    if request.param not in supported_instruction_sets():
        pytest.skip(f"this processor does not have {request.param}")
    return request.param


@pytest.fixture
def tensor_clusters(monkeypatch):
    """`find_clusters` by tensor operations."""

    def run(tokens, *args):
        with monkeypatch.context() as context:
            context.setenv("CLUSTR_KERNEL", "off")
            return torch.stack(find_clusters(tokens, *args))

    return run


def exact_tokens(kind: str, batch_size: int, num_tokens: int, channels: int, seed: int) -> torch.Tensor:
    """Tokens with so few bits that float32 represents their distances exactly, with and without ties."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch_size, num_tokens, channels, generator=generator)
    if kind == "fine":
        return tokens.mul(2**7).round().div(2**7)
    if kind == "grid":
        return tokens.mul(2).round()
    if kind == "walk":  # neighbours in the image are neighbours in feature space
        return tokens.mul(2).round().cumsum(dim=1)
    source = torch.randint(0, max(1, num_tokens // 3), (num_tokens,), generator=generator)
    return (
        {"copies": tokens[:, source], "two": tokens[:, source % 2], "one": tokens[:, source * 0]}[kind].mul(8).round()
    )


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("kind", ["fine", "grid", "walk", "copies", "two", "one"])
def test_thousands_of_small_cases_agree_with_the_oracle(kind, assignment):
    """Sizes close to the blocks of the sweeps (12, 24 and 48 tokens), any number of channels and neighbours."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(30):
        num_tokens, channels = (int(torch.randint(1, high, (), generator=generator)) for high in (56, 20))
        k = int(torch.randint(1, 9, (), generator=generator))
        tokens = exact_tokens(kind, 2, num_tokens, channels, seed)
        numbers = [max(1, num_tokens // 7), max(1, num_tokens // 3), num_tokens]
        expected = [naive_dpc_knn.cluster(image.tolist(), numbers, k, assignment) for image in tokens]
        for instruction_set in supported_instruction_sets():
            found = cluster(tokens, numbers, k, assignment, instruction_set)
            assert found.transpose(0, 1).tolist() == expected, instruction_set


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("kind", ["grid", "walk", "copies", "two", "one"])
@pytest.mark.parametrize("shape", [(1, 1003, 17), (3, 600, 64), (2, 784, 33)])
def test_larger_cases_agree_with_the_tensor_functions(shape, kind, assignment, tensor_clusters):
    """Enough blocks for seeded lists and for all threads."""
    tokens = exact_tokens(kind, *shape, seed=1)
    numbers = [shape[1] // 64, shape[1] // 16, shape[1] + 5]
    expected = tensor_clusters(tokens, numbers, 5, assignment)
    for instruction_set in supported_instruction_sets():
        assert torch.equal(cluster(tokens, numbers, 5, assignment, instruction_set), expected), instruction_set


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_smooth_tokens_agree_with_float64(assignment):
    base = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(6))
    for tokens in (base, base * 1e-4, base * 1e4, base + 100, base.cumsum(dim=1)):
        expected = torch.stack(find_clusters(tokens.double(), [7, 31], 5, assignment))
        for instruction_set in supported_instruction_sets():
            assert torch.equal(cluster(tokens, [7, 31], 5, assignment, instruction_set), expected), instruction_set


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_threads_and_batch_do_not_change_the_result(assignment, instruction_set):
    """Enough work for two threads on one image, and for seven on all."""
    tokens = torch.randn(3, 1600, 48, generator=torch.Generator().manual_seed(2))
    tokens[1] = tokens[1].mul(2).round()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = cluster(tokens, [14, 56], 5, assignment, instruction_set)
        for number in (2, 3, 7):
            torch.set_num_threads(number)
            assert torch.equal(cluster(tokens, [14, 56], 5, assignment, instruction_set), expected)
            for image in range(3):
                alone = cluster(tokens[image : image + 1], [14, 56], 5, assignment, instruction_set)
                assert torch.equal(alone[:, 0], expected[:, image])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("exponent", [-55, -30, 0, 30, 55])
@pytest.mark.parametrize("kind", ["fine", "grid", "walk"])
def test_all_decimal_places_of_float32_agree_with_the_tensor_functions(
    kind, exponent, instruction_set, tensor_clusters
):
    """Squared distances are exact, so that only logarithms and roots could round differently."""
    for seed in range(8):
        num_tokens, channels = 60 + 37 * seed, 2 + 5 * seed
        tokens = exact_tokens(kind, 1, num_tokens, channels, seed) * 2.0**exponent
        args = ([num_tokens // 7, num_tokens // 3, num_tokens], 2 + seed % 7, "density_parent")
        assert torch.equal(cluster(tokens, *args, instruction_set), tensor_clusters(tokens, *args))


@pytest.mark.parametrize(
    "seed, shape, k, exponent",
    [
        (153, (1, 213, 20), 4, -9),
        (235, (1, 295, 9), 2, -11),
        (379, (1, 198, 3), 2, -11),
        (476, (1, 295, 19), 5, -12),
        (507, (1, 85, 2), 2, -11),
    ],
)
def test_decision_values_are_rounded_alike(seed, shape, k, exponent, tensor_clusters):
    """Found by a search: float32 roots and logarithms of two libraries differ in the last bit, and so did clusters."""
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(4).round() * 2.0**exponent
    args = ([shape[1]], k, "density_parent")
    assert torch.equal(cluster(tokens, *args), tensor_clusters(tokens, *args))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 3e38, 1e-40, 0.0])
def test_degenerate_values_still_give_valid_labels(value, assignment, instruction_set):
    tokens = torch.randn(3, 200, 4)
    tokens[0] = value
    tokens[1, ::2] = value
    tokens[2, 7, 3] = value
    labels = cluster(tokens, [3, 60], 5, assignment, instruction_set)
    assert labels.min() >= 0 and labels[0].max() < 3 and labels[1].max() < 60


def test_strided_tokens_and_gradients_are_taken(tensor_clusters):
    tokens = torch.randn(3, 8, 50).mul(2).round().transpose(1, 2).requires_grad_()
    assert torch.equal(torch.stack(find_clusters(tokens, [4])), tensor_clusters(tokens, [4]))


@pytest.mark.parametrize("number", [2**31, 2**63 - 1, 2**63, 2**64, 10**30])
@pytest.mark.parametrize("path", ["on", "off"])
def test_numbers_of_any_size_mean_all_tokens(number, path, monkeypatch):
    monkeypatch.setenv("CLUSTR_KERNEL", path)
    tokens = torch.randn(2, 40, 4)
    for assignment in ASSIGNMENTS:
        (expected,) = find_clusters(tokens, [40], 40, assignment)
        (found,) = find_clusters(tokens, [number], number, assignment)
        assert torch.equal(found, expected) and sorted(found[0].tolist()) == list(range(40))
    (compiled,) = torch.compile(lambda tokens: find_clusters(tokens, [number]), backend="eager")(tokens)
    assert torch.equal(compiled, find_clusters(tokens, [40])[0])


def test_tensors_whose_memory_is_not_their_values():
    """Zeros of automatic differentiation have no memory; negative views hold their values with the opposite sign."""
    zeros = torch._efficientzerotensor(2, 10, 4)
    assert zeros.data_ptr() == 0 and not can_cluster(zeros, 5)
    assert torch.equal(find_clusters(zeros, [3])[0], find_clusters(torch.zeros(2, 10, 4), [3])[0])
    tokens = torch.arange(30.0).pow(1.5).view(1, 30, 1)
    tokens = torch.cat([tokens, tokens.flip(1) ** 2], dim=-1)
    negative = torch._neg_view(tokens)
    assert negative.is_neg() and negative.is_contiguous() and not can_cluster(negative, 5)
    assert torch.equal(find_clusters(negative, [4])[0], find_clusters(-tokens, [4])[0])
    empty = torch.randn(0, 10, 4)
    assert can_cluster(empty, 5) and find_clusters(empty, [3])[0].shape == (0, 10)


@pytest.mark.parametrize("path", ["on", "off"])
def test_freed_memory_is_an_error(path, monkeypatch):
    """FSDP frees the memory of parameters between their uses."""
    monkeypatch.setenv("CLUSTR_KERNEL", path)
    tokens = torch.randn(2, 10, 4)
    tokens.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"`tokens` must have memory, got a tensor of shape \(2, 10, 4\)"):
        find_clusters(tokens, [3])


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of a process as Linux does")
def test_little_work_starts_no_threads():
    """Each thread costs milliseconds on a busy machine. (Without torch, the process has no other threads.)"""
    program = f"""
import ctypes, os, random
library = ctypes.CDLL({str(clustering_kernel_clustr._library()._name)!r})
def threads_after(*shape):
    size = shape[0] * shape[1] * shape[2]
    tokens = (ctypes.c_float * size)(*(random.random() for _ in range(size)))
    labels, number = (ctypes.c_int64 * size)(), (ctypes.c_int64 * 1)(4)
    int64 = [ctypes.c_int64(size) for size in shape]
    one = ctypes.c_int64(1)
    arguments = [ctypes.byref(tokens), *int64, number, one, ctypes.c_int64(5), 0, 4, b"best", labels]
    assert library.clustr_find_clusters_v1(*arguments) == 0
    return len(os.listdir("/proc/self/task"))
print([threads_after(*shape) for shape in [(1, 16, 64), (1, 196, 320), (16, 64, 64), (2, 1200, 64), (1, 3136, 64)]])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "[1, 1, 1, 3, 4]\n", ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_running_out_of_memory_in_a_thread_is_an_error(tmp_path):
    """tests/remote_code/kernel/stress.cpp lets each allocation fail; this test covers the way to Python."""
    program = """
import resource, torch
from clustr_hf.remote_code.clustering_kernel_clustr import cluster
torch.set_num_threads(3)
cluster(torch.randn(3, 2000, 16), [9], 5, "density_parent")  # starts the threads, which need memory themselves
tokens = torch.randn(9, 8000, 64)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**21
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    cluster(tokens, [9], 5, "density_parent")
except MemoryError as error:
    print(error)
"""
    printed = run_process([sys.executable, "-c", program], tmp_path)
    assert printed == "Clustering tokens of shape (9, 8000, 64) ran out of memory.\n"


def test_what_the_kernel_leaves_to_tensor_operations():
    tokens = torch.randn(1, 40, 4)
    assert can_cluster(tokens, 5)
    assert not can_cluster(tokens.double(), 5)
    assert not can_cluster(tokens.to("meta"), 5)
    assert not can_cluster(tokens, 9)
    assert can_cluster(tokens[:, :8], 9)  # k is at most N


def test_the_kernel_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("CLUSTR_KERNEL", "off")
    assert not clustering_kernel_clustr.is_available()
    assert not can_cluster(torch.randn(1, 40, 4), 5)


def test_per_sample_gradients_of_torch_func_run():
    """The wrapped tensors of torch.func have no memory that the kernel could read."""
    tokens = torch.randn(1, 30, 4)

    def loss(tokens):
        (index,) = find_clusters(tokens, [3])
        return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)).square().sum()

    assert torch.func.grad(loss)(tokens).shape == tokens.shape


def test_unknown_instruction_sets_are_named():
    with pytest.raises(ValueError, match=r"`instruction_set` must be one of .* got 'sse9'"):
        cluster(torch.randn(1, 40, 4), [3], 5, "density_parent", "sse9")


def test_a_library_that_is_none_or_of_another_release_is_left_alone(tmp_path):
    path = tmp_path / "library.so"
    path.write_text("not a library")
    assert clustering_kernel_clustr._load(path) is None
    foreign = ctypes.util.find_library("m") if sys.platform == "linux" else None
    if foreign:
        assert clustering_kernel_clustr._load(foreign) is None


def test_without_a_library_there_is_no_kernel(tmp_path, monkeypatch):
    class Package:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(clustering_kernel_clustr.importlib.util, "find_spec", lambda name: Package())
    assert clustering_kernel_clustr._library.__wrapped__() is None
    monkeypatch.setattr(clustering_kernel_clustr.importlib.util, "find_spec", lambda name: None)
    assert clustering_kernel_clustr._library.__wrapped__() is None
