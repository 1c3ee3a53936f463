"""The clustering against a naive oracle, and the properties that a user relies on."""

import itertools
import math

import naive_dpc_knn
import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustr_hf import aggregate_tokens, find_clusters
from clustr_hf.remote_code import clustering_clustr, clustering_tensor_clustr
from clustr_hf.remote_code.clustering_clustr import count_clusters, weight_tokens
from clustr_hf.remote_code.clustering_equations_clustr import reference_aggregation, reference_clusters
from clustr_hf.remote_code.clustering_windows_clustr import find_clusters_in_windows
from clustr_hf.remote_code.configuration_tables_clustr import CLUSTER_ASSIGNMENTS


ASSIGNMENTS = ["density_parent", "nearest_center"]


@st.composite
def clustering_problems(draw):
    """
    Tokens of one to three images: smooth, on a coarse grid (ties), or with copies (ties), also far apart, close
    together, or far from the origin, where densities underflow, round to 1, or cancel; and what to ask for.
    """
    seed = draw(st.integers(0, 2**32 - 1))
    batch_size, num_tokens, channels = draw(st.integers(1, 3)), draw(st.integers(1, 33)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch_size, num_tokens, channels, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["smooth", "grid", "copies", "constant"]))
    if kind == "grid":
        tokens = tokens.mul(2).round()
    elif kind == "copies":
        source = torch.randint(0, max(1, num_tokens // 3), (num_tokens,), generator=generator)
        tokens = tokens[:, source]
    elif kind == "constant":
        tokens = tokens[:, :1].expand(-1, num_tokens, -1)
    tokens = tokens * draw(st.sampled_from([1, 2**-14, 2**6])) + draw(st.sampled_from([0, 1024]))
    num_clusters = draw(st.lists(st.integers(1, num_tokens + 3), min_size=1, max_size=3))
    return tokens, num_clusters, draw(st.integers(1, num_tokens + 3))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@settings(max_examples=300, deadline=None)
@given(problem=clustering_problems())
@example(problem=(torch.zeros(2, 1, 3, dtype=torch.float64), [1, 4], 5))
def test_agrees_with_the_naive_oracle(problem, assignment):
    tokens, num_clusters, k = problem
    expected = [naive_dpc_knn.cluster(image.tolist(), num_clusters, k, assignment) for image in tokens]
    found = find_clusters(tokens, num_clusters, k, assignment)
    for scale, cluster_index in enumerate(found):
        assert cluster_index.dtype == torch.long
        assert cluster_index.tolist() == [image[scale] for image in expected]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("num_tokens, channels, k", [(1, 3, 5), (7, 2, 9), (24, 4, 5), (40, 8, 3)])
def test_the_equations_as_written_agree_with_the_naive_oracle(num_tokens, channels, k, assignment):
    """Up to 25 tokens `torch.cdist` measures coordinate differences, so that copies tie exactly."""
    tokens = torch.randn(2, num_tokens, channels, dtype=torch.float64)
    if num_tokens <= 25:
        tokens[1, num_tokens // 2 :] = tokens[1, : num_tokens - num_tokens // 2].clone()
    numbers = [1, max(1, num_tokens // 4), num_tokens + 2]
    found = reference_clusters(tokens, numbers, k, assignment)
    expected = [naive_dpc_knn.cluster(image.tolist(), numbers, k, assignment) for image in tokens]
    assert torch.stack(found, dim=1).tolist() == expected


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_agrees_with_the_equations_as_written(assignment):
    tokens = torch.randn(2, 700, 16, dtype=torch.float64)
    expected = reference_clusters(tokens, [10, 43], 5, assignment)
    assert all(map(torch.equal, find_clusters(tokens, [10, 43], 5, assignment), expected))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("scale, offset", [(1, 0), (2**-10, 0), (2**6, 0), (1, 512), (2**-10, 1)])
def test_float32_agrees_with_the_naive_oracle(scale, offset, assignment):
    """Coordinates have so few bits that float32 represents them and their differences exactly."""
    generator = torch.Generator().manual_seed(5)
    for num_tokens in (5, 24, 49, 64):
        tokens = torch.randn(1, num_tokens, 12, generator=generator).mul(2**8).round().div(2**8) * scale + offset
        expected = naive_dpc_knn.cluster(tokens[0].tolist(), [3, 12], 5, assignment)
        assert [scale[0].tolist() for scale in find_clusters(tokens, [3, 12], 5, assignment)] == expected


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_float32_agrees_with_float64_wherever_the_tokens_lie(assignment):
    base = torch.randn(2, 196, 64, generator=torch.Generator().manual_seed(6))
    common = torch.randn(64, generator=torch.Generator().manual_seed(7))
    for tokens in (base, base * 20, base * 1e-4, base + 1000, common + 1e-3 * base):
        for a, b in zip(
            find_clusters(tokens, [12, 49], 5, assignment), find_clusters(tokens.double(), [12, 49], 5, assignment)
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 10, 4), (2, 10, 4)])
def test_empty_batches_and_the_meta_device_have_shapes(shape):
    device = "cpu" if shape[0] == 0 else "meta"
    assert [c.shape for c in find_clusters(torch.zeros(shape, device=device), [3])] == [shape[:2]]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_chunks_do_not_change_the_result(assignment, monkeypatch):
    tokens = torch.randn(3, 61, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = find_clusters(tokens, [15, 3], assignment=assignment)
    for elements in (1, 61 * 7, 61 * 61):
        monkeypatch.setattr(clustering_tensor_clustr, "CHUNK_ELEMENTS", elements)
        for expected, found in zip(whole, find_clusters(tokens, [15, 3], assignment=assignment)):
            assert torch.equal(expected, found)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_every_cluster_has_members_and_labels_are_valid(assignment):
    tokens = torch.randn(2, 100, 16)
    for number, cluster_index in zip([1, 7, 100, 130], find_clusters(tokens, [1, 7, 100, 130], assignment=assignment)):
        for image in cluster_index:
            assert image.unique().tolist() == list(range(min(number, 100)))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_separated_blobs_are_found(assignment):
    generator = torch.Generator().manual_seed(1)
    blob = torch.arange(4).repeat_interleave(20)[torch.randperm(80, generator=generator)]
    centers = 10 * torch.eye(4, 8)
    tokens = centers[blob] + 0.1 * torch.randn(80, 8, generator=generator)
    (found,) = find_clusters(tokens[None], [4], assignment=assignment)
    pairs = {(int(a), int(b)) for a, b in zip(blob, found[0])}
    assert len(pairs) == 4  # a one-to-one relation of blobs and clusters


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_does_not_depend_on_the_batch(assignment, dtype):
    tokens = torch.randn(7, 300, 32, dtype=dtype, generator=torch.Generator().manual_seed(2))
    together = find_clusters(tokens, [18, 75], assignment=assignment)
    for image in range(7):
        alone = find_clusters(tokens[image : image + 1], [18, 75], assignment=assignment)
        for a, b in zip(together, alone):
            assert torch.equal(a[image], b[0])


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_permuting_tokens_permutes_clusters(assignment):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 157, 24, dtype=torch.float64, generator=generator)
    order = torch.randperm(157, generator=generator)
    original = find_clusters(tokens, [9, 39], assignment=assignment)
    permuted = find_clusters(tokens[:, order], [9, 39], assignment=assignment)
    for a, b in zip(original, permuted):
        assert torch.equal(a[:, order], b)


def test_scales_share_their_centres():
    tokens = torch.randn(1, 64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    coarse, fine, single = find_clusters(tokens, [4, 16, 64])
    assert sorted(single[0].tolist()) == list(range(64))
    for label in range(4):
        center = (single[0] == label).nonzero().item()
        assert coarse[0, center] == fine[0, center] == label


def test_low_precision_is_clustered_in_float32():
    tokens = torch.randn(2, 50, 16).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = find_clusters(tokens, [5])[0]
    assert torch.equal(found, find_clusters(tokens.float(), [5])[0])


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30, 0.0])
def test_degenerate_values_still_give_valid_labels(assignment, value):
    tokens = torch.full((2, 40, 4), value)
    tokens[1, ::2] = 1.0
    for number, cluster_index in zip([3, 60], find_clusters(tokens, [3, 60], assignment=assignment)):
        assert cluster_index.min() >= 0 and cluster_index.max() < min(number, 40)


def test_memory_is_linear_in_the_number_of_tokens():
    """No operation creates a tensor of about N x N elements, for a batch or for a large image."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class LargestTensor(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    for batch_size, num_tokens in ((1, 4096), (64, 256)):
        tokens = torch.randn(batch_size, num_tokens, 4)
        with LargestTensor() as largest:
            find_clusters(tokens, [16], assignment="nearest_center")
        assert largest.elements <= clustering_tensor_clustr.CHUNK_ELEMENTS


def test_compiled_op_matches_and_passes_torchs_checks():
    tokens = torch.randn(2, 40, 8)
    torch.library.opcheck(torch.ops.clustr_hf.find_clusters, (tokens, [4, 10], 5, "density_parent"))
    compiled = torch.compile(lambda t: find_clusters(t, [4, 10]), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(tokens), find_clusters(tokens, [4, 10])):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": torch.zeros(4, 3)}, "`tokens` must have shape"),
        ({"tokens": torch.zeros(1, 0, 3)}, "`tokens` must have shape"),
        ({"tokens": torch.zeros(1, 4, 3, dtype=torch.long)}, "`tokens` must be floating point"),
        ({"num_clusters": []}, "`num_clusters` must be"),
        ({"num_clusters": [2, 0]}, "`num_clusters` must be"),
        ({"num_clusters": 3}, "`num_clusters` must be"),
        ({"num_neighbors": 0}, "`num_neighbors` must be"),
        ({"assignment": "kmeans"}, "`assignment` must be one of"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        find_clusters(**{"tokens": torch.zeros(1, 4, 3), "num_clusters": [2], **change})


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("size, window", [((8, 12), 4), ((9, 13), 4), ((5, 3), 7), ((7, 7), 1), ((2, 31), 6)])
def test_windows_are_clustered_one_by_one(size, window, assignment):
    """Compares with a loop over windows that are cut out by independent arithmetic."""
    height, width = size
    tokens = torch.randn(2, height * width, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    found = find_clusters(tokens, [3, 15], assignment=assignment, size=size, window=window)
    grid = tokens.view(2, height, width, 6)
    rows = [list(part) for part in numpy.array_split(range(height), math.ceil(height / window))]
    columns = [list(part) for part in numpy.array_split(range(width), math.ceil(width / window))]
    for labels, number in zip(found, [3, 15]):
        seen, total = set(), 0
        for ys, xs in itertools.product(rows, columns):
            share = max(1, number * len(ys) * len(xs) // (height * width))
            part = grid[:, ys][:, :, xs].flatten(1, 2)
            (expected,) = find_clusters(part, [share], assignment=assignment)
            in_window = labels.view(2, height, width)[:, ys][:, :, xs].flatten(1, 2)
            first = int(in_window.min())
            assert torch.equal(in_window, expected + first)
            seen.update(range(first, first + share))
            total += share
        assert seen == set(range(total))  # windows do not share labels, and every label is used
        assert count_clusters(number, size, window) == total
        assert labels.unique().tolist() == list(range(total))


def test_a_window_of_the_whole_image_is_no_window():
    tokens = torch.randn(2, 35, 6)
    for window in (7, 8, 100):
        assert count_clusters(9, (5, 7), window) == 9
        for a, b in zip(find_clusters(tokens, [3, 9]), find_clusters(tokens, [3, 9], size=(5, 7), window=window)):
            assert torch.equal(a, b)
    whole = find_clusters_in_windows(find_clusters, tokens, [3, 9], (5, 7), 7)
    for a, b in zip(find_clusters(tokens, [3, 9]), whole):
        assert torch.equal(a, b)


def test_the_configuration_knows_the_assignments():
    assert clustering_clustr.ASSIGNMENTS == CLUSTER_ASSIGNMENTS


def test_bad_windows_are_named():
    tokens = torch.zeros(1, 12, 3)
    with pytest.raises(ValueError, match=r"`size` must be .* grid of 12 tokens, got None"):
        find_clusters(tokens, [3], window=2)
    with pytest.raises(ValueError, match=r"`size` must be .* grid of 12 tokens, got \(3, 5\)"):
        find_clusters(tokens, [3], size=(3, 5), window=2)
    with pytest.raises(ValueError, match="`window` must be at least 1, got 0"):
        find_clusters(tokens, [3], size=(3, 4), window=0)


def naive_aggregation(tokens, cluster_index, num_clusters, weight):
    merged = torch.zeros(tokens.shape[0], num_clusters, tokens.shape[2], dtype=tokens.dtype)
    for b in range(tokens.shape[0]):
        for m in range(num_clusters):
            members = [n for n in range(tokens.shape[1]) if cluster_index[b, n] == m]
            total = sum(weight[b, n] for n in members)
            for n in members:
                merged[b, m] += tokens[b, n] * weight[b, n] / (total + 1e-6)
    return merged


def test_aggregation_agrees_with_loops():
    tokens, weight = torch.randn(2, 30, 5, dtype=torch.float64), torch.rand(2, 30, 1, dtype=torch.float64)
    (cluster_index,) = find_clusters(tokens, [6])
    expected = naive_aggregation(tokens, cluster_index, 8, weight[..., 0])
    for form in (weight, weight[..., 0]):
        torch.testing.assert_close(aggregate_tokens(tokens, cluster_index, 8, form), expected)
    assert (expected[:, 6:] == 0).all()
    torch.testing.assert_close(reference_aggregation(tokens, cluster_index, 8, weight), expected)
    ones = naive_aggregation(tokens, cluster_index, 8, torch.ones(2, 30))
    torch.testing.assert_close(aggregate_tokens(tokens, cluster_index, 8), ones)


def test_aggregation_gradients_agree_with_finite_differences():
    tokens = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 9, 1, dtype=torch.float64).add(0.1).requires_grad_()
    (cluster_index,) = find_clusters(tokens, [3])
    assert torch.autograd.gradcheck(lambda t, w: aggregate_tokens(t, cluster_index, 3, w), (tokens, weight))
    assert torch.autograd.gradcheck(weight_tokens, (tokens, weight))


def test_weighting_single_tokens_is_aggregation_without_the_order():
    tokens, weight = torch.randn(2, 9, 3), torch.rand(2, 9, 1)
    itself = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(weight_tokens(tokens, weight), aggregate_tokens(tokens, itself, 9, weight))


def test_aggregation_names_bad_shapes():
    with pytest.raises(ValueError, match="`cluster_index` must have shape"):
        aggregate_tokens(torch.zeros(1, 4, 3), torch.zeros(1, 5, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="`num_clusters` must be at least 1, got 0"):
        aggregate_tokens(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), 0)
    with pytest.raises(ValueError, match="`cluster_index` must be on cpu like `tokens`, got meta"):
        aggregate_tokens(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long, device="meta"), 2)
    with pytest.raises(ValueError, match="`token_weight` must be on cpu like `tokens`, got meta"):
        aggregate_tokens(
            torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), 2, torch.ones(1, 4, 1, device="meta")
        )
    with pytest.raises(ValueError, match="`token_weight` must have shape"):
        aggregate_tokens(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), 2, torch.ones(1, 4, 2))
