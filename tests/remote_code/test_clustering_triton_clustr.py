"""
The Triton kernels in Triton's interpreter, on CPUs, against the oracle, the compiled kernel and tensor operations.

The interpreter multiplies in full float32 whatever precision a kernel asks for; tests of precision therefore put errors
into the products by themselves. What a real compiler makes of the kernels: test_triton_compilation.py.
"""

import json
import warnings

import naive_dpc_knn
import pytest
import torch
from test_clustering_clustr import naive_aggregation
from test_clustering_kernel_clustr import exact_tokens

from clustr_hf import ClusTRConfig, ClusTRForImageClassification, find_clusters
from clustr_hf.remote_code import (
    clustering_triton_clustr,
    clustering_triton_launches_clustr,
    clustering_triton_support_clustr,
)
from clustr_hf.remote_code.clustering_clustr import aggregate_tokens, clustering_path
from clustr_hf.remote_code.clustering_tensor_clustr import cluster as cluster_by_tensors
from clustr_hf.remote_code.clustering_tensor_clustr import merge_gradients, merge_tokens
from clustr_hf.remote_code.clustering_triton_clustr import (
    Launch,
    cluster,
    error_bound,
)
from clustr_hf.remote_code.clustering_triton_merge_clustr import launch_merge, launch_merge_gradients


pytest.importorskip("triton", reason="the Triton kernels need the package triton")
interpreter = pytest.importorskip("triton.runtime.interpreter")

ASSIGNMENTS = ["density_parent", "nearest_center"]
# Large tiles, because every program takes long in the interpreter.
LARGE = Launch(rows=64, columns=64, block=64, exact_rows=64, exact_columns=64, exact_channels=16)
# Small tiles, so that few tokens fill many.
SMALL = Launch(rows=16, columns=16, block=16, exact_rows=16, exact_columns=16, exact_block=16)

# NumPy's warnings about degenerate tokens.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")


@pytest.fixture
def on_cpu(monkeypatch):
    """Clusters CPU tensors by the Triton kernels instead of the compiled kernel."""
    monkeypatch.setattr(clustering_triton_support_clustr, "is_on_gpu", lambda tokens: True)
    monkeypatch.setattr("clustr_hf.remote_code.clustering_clustr.can_cluster_by_kernel", lambda *args: False)
    monkeypatch.setattr(clustering_triton_clustr, "find_launch", lambda tokens: LARGE)


@pytest.fixture
def product_error(monkeypatch):
    """Adds an error, a function of the operands, to every matrix product of the kernels."""

    def install(error):
        create_dot = interpreter.InterpreterBuilder.create_dot

        def wrong_dot(self, a, b, accumulator, *settings):
            product = create_dot(self, a, b, accumulator, *settings)
            product.data = product.data + error(a.data, b.data).astype(product.data.dtype)
            return product

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", wrong_dot)

    return install


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("kind", ["fine", "grid", "walk", "copies", "two", "one"])
def test_small_cases_agree_with_the_oracle(kind, assignment):
    """With and without ties; any number of tokens, channels and neighbours; several scales."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        num_tokens, channels = (int(torch.randint(1, high, (), generator=generator)) for high in (56, 20))
        k = int(torch.randint(1, 9, (), generator=generator))
        tokens = exact_tokens(kind, 2, num_tokens, channels, seed)
        numbers = [max(1, num_tokens // 7), max(1, num_tokens // 3), num_tokens + 3]
        found = cluster(tokens, numbers, k, assignment, LARGE if seed else SMALL)
        for image, labels in zip(tokens, found.transpose(0, 1)):
            assert labels.tolist() == naive_dpc_knn.cluster(image.tolist(), numbers, k, assignment)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("scale, offset", [(1, 0), (2**-10, 0), (2**6, 0), (1, 512), (2**-10, 1)])
def test_the_oracle_is_met_wherever_the_tokens_lie(scale, offset, assignment):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(1, 24, 12, generator=generator).mul(2**8).round().div(2**8) * scale + offset
    expected = naive_dpc_knn.cluster(tokens[0].tolist(), [3, 12], 5, assignment)
    assert [scale[0].tolist() for scale in cluster(tokens, [3, 12], 5, assignment, LARGE)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_hundred_random_cases_agree_with_the_compiled_kernel(assignment):
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        num_tokens = int(torch.randint(2, 65, (), generator=generator))
        channels = int(torch.randint(1, 65, (), generator=generator))
        tokens = torch.randn(2, num_tokens, channels, generator=generator)
        if torch.rand((), generator=generator) < 0.5:
            tokens = tokens.cumsum(dim=1)  # neighbours in the image are neighbours in feature space
        numbers = [max(1, num_tokens // 16), max(1, num_tokens // 4)]
        assert torch.equal(cluster(tokens, numbers, 5, assignment, LARGE), reference(tokens, numbers, 5, assignment))


def reference(tokens: torch.Tensor, *arguments) -> torch.Tensor:
    """Clusters by the compiled kernel, or by tensor operations if no kernel was built."""
    return torch.stack(find_clusters(tokens, *arguments))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("shape, launch", [((1, 130, 17), SMALL), ((2, 200, 80), LARGE), ((1, 90, 130), Launch())])
def test_several_tiles_and_blocks_of_channels_agree_with_the_compiled_kernel(shape, launch, assignment):
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    numbers = [max(1, shape[1] // 64), shape[1] // 16]
    assert torch.equal(cluster(tokens, numbers, 5, assignment, launch), reference(tokens, numbers, 5, assignment))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 2, 1), (1, 65, 1), (1, 20, 1024), (1, 17, 70)])
@pytest.mark.parametrize("k", [1, 8])
def test_least_and_largest_sizes(shape, assignment, k):
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(2)).mul(2**7).round().div(2**7)
    numbers = [1, max(1, shape[1] // 4), shape[1] + 1]
    found = cluster(tokens, numbers, k, assignment, LARGE)
    for image, labels in zip(tokens, found.transpose(0, 1)):
        assert labels.tolist() == naive_dpc_knn.cluster(image.tolist(), numbers, k, assignment)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tokens_are_clustered_as_their_float32_values(dtype):
    tokens = torch.randn(2, 60, 24, generator=torch.Generator().manual_seed(3)).to(dtype)
    for assignment in ASSIGNMENTS:
        expected = reference(tokens.float(), [4, 12], 5, assignment)
        assert torch.equal(cluster(tokens, [4, 12], 5, assignment, LARGE), expected)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_errors_within_the_bound_do_not_change_clusters(assignment, product_error, monkeypatch):
    """The errors of products are just below the bound. With a bound of 0, the same errors do change clusters."""
    tokens = torch.randn(1, 100, 24, generator=torch.Generator().manual_seed(4)).cumsum(dim=1)
    expected = reference(tokens, [6, 25], 5, assignment)
    size, generator = 2**-4, torch.Generator().manual_seed(0)

    def error(a, b):
        norms = (a**2).sum(axis=1, keepdims=True) ** 0.5 * (b**2).sum(axis=0, keepdims=True) ** 0.5
        signs = torch.randint(0, 2, norms.shape, generator=generator).numpy() * 2 - 1
        return 0.9 * size * signs * norms

    product_error(error)
    monkeypatch.setattr(clustering_triton_clustr, "error_bound", lambda *args: size)
    assert torch.equal(cluster(tokens, [6, 25], 5, assignment, LARGE), expected)
    monkeypatch.setattr(clustering_triton_clustr, "error_bound", lambda *args: 0.0)
    assert not torch.equal(cluster(tokens, [6, 25], 5, assignment, LARGE), expected)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_bound_holds_for_emulated_matrix_units(precision):
    """With operands truncated to TF32, three passes stay within the bound, and a single pass does not."""
    generator = torch.Generator().manual_seed(0)
    for channels in (16, 64, 512):
        x, y = (torch.randn(200, channels, generator=generator) for _ in range(2))
        # Truncating the last 13 bits is the largest error of a conversion to TF32.
        high = [(t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (x, y)]
        low = [((t - h).view(torch.int32) & ~0x1FFF).view(torch.float32) for t, h in zip((x, y), high)]
        product = high[0] @ high[1].T
        if precision == "tf32x3":
            product = (low[0] @ high[1].T + high[0] @ low[1].T) + product
        exact = x.double() @ y.double().T
        error = ((product.double() - exact).abs() / (x.norm(dim=1)[:, None] * y.norm(dim=1)[None]).double()).max()
        assert (error <= error_bound("tf32x3", channels)) == (precision == "tf32x3")


def test_every_row_may_be_flagged(monkeypatch):
    """With a useless bound every distance is measured, and the clusters are the same."""
    monkeypatch.setattr(clustering_triton_clustr, "error_bound", lambda *args: 1e6)
    tokens = exact_tokens("walk", 2, 50, 7, seed=1)
    for assignment in ASSIGNMENTS:
        for image, labels in zip(tokens, cluster(tokens, [4, 60], 5, assignment, SMALL).transpose(0, 1)):
            assert labels.tolist() == naive_dpc_knn.cluster(image.tolist(), [4, 60], 5, assignment)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 3e38, 1e-40, 0.0])
def test_degenerate_values_still_give_valid_labels(value, assignment):
    tokens = torch.randn(3, 40, 4)
    tokens[0] = value
    tokens[1, ::2] = value
    tokens[2, 7, 3] = value
    labels = cluster(tokens, [3, 12], 5, assignment, LARGE)
    assert labels.min() >= 0 and labels[0].max() < 3 and labels[1].max() < 12


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_distances_and_bounds_that_overflow(assignment):
    """Two groups at an infinite distance, and norms whose products overflow although distances do not."""
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(1, 12, 4, generator=generator)
    apart[0, :6] = 1e20 * (1 + 0.01 * torch.randn(6, 4, generator=generator))
    far = torch.cat([-torch.linspace(0, 3e18, 30), 1.5e19 + 1e15 * torch.arange(6)])[None, :, None]
    for tokens, numbers, k in ((apart, [1, 3], 3), (far, [2, 6], 5)):
        expected = cluster_by_tensors(tokens.double(), numbers, k, assignment)
        assert torch.equal(cluster(tokens, numbers, k, assignment, LARGE), expected)


def test_a_nan_token_does_not_disturb_the_others():
    tokens = torch.randn(1, 40, 4)
    tokens[0, 39] = torch.nan
    for assignment in ASSIGNMENTS:
        expected = cluster(tokens[:, :39], [3, 12], 5, assignment, LARGE)
        assert torch.equal(cluster(tokens, [3, 12], 5, assignment, LARGE)[:, :, :39], expected)


def test_result_does_not_depend_on_the_batch_the_strides_or_the_run():
    tokens = torch.randn(3, 16, 50).transpose(1, 2)
    together = cluster(tokens, [3, 12], 5, "density_parent", LARGE)
    assert torch.equal(together, cluster(tokens.contiguous(), [3, 12], 5, "density_parent", LARGE))
    for image in range(3):
        alone = cluster(tokens[image : image + 1], [3, 12], 5, "density_parent", SMALL)
        assert torch.equal(alone[:, 0], together[:, image])


def test_windows_are_batches(on_cpu):
    tokens = exact_tokens("fine", 2, 35, 6, seed=0)
    arguments = dict(num_clusters=[3, 9], size=(5, 7), window=4)
    found = find_clusters(tokens, **arguments)
    for labels, expected in zip(found, find_clusters(tokens.double(), **arguments)):
        assert torch.equal(labels, expected)


@pytest.mark.slow
def test_clusters_of_recorded_tokens_are_the_authors(recording):
    tensors, metadata = recording
    ratios, depths = json.loads(metadata["reduction_ratios"]), json.loads(metadata["depths"])
    stage_of_layer = [stage for stage, depth in enumerate(depths) for _ in range(depth)]
    for layer in range(5):
        tokens = tensors[f"clustering.layer{layer}.tokens"].float()
        num_clusters = [tokens.shape[1] // ratio for ratio in ratios[stage_of_layer[layer]]]
        for scale, found in enumerate(cluster(tokens, num_clusters, 5, "nearest_center", LARGE)):
            assert torch.equal(found, tensors[f"clustering.layer{layer}.scale{scale}.cluster_index"])


def test_aggregation_agrees_with_loops_and_with_itself():
    tokens, weight = torch.randn(2, 30, 5), torch.rand(2, 30)
    index = torch.randint(0, 6, (2, 30))
    expected = naive_aggregation(tokens, index, 8, weight)
    merged, weight_sum = launch_merge(tokens, weight, index, 8, 1e-6)
    torch.testing.assert_close(merged, expected)
    assert (merged[:, 6:] == 0).all()
    assert torch.equal(merged, launch_merge(tokens, weight, index, 8, 1e-6)[0])
    gradient = torch.randn(2, 8, 5)
    arguments = (tokens, weight, index, merged, weight_sum, gradient, 1e-6)
    for first, second, by_tensors in zip(
        launch_merge_gradients(*arguments), launch_merge_gradients(*arguments), merge_gradients(*arguments)
    ):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, by_tensors)


def test_aggregation_gradients_agree_with_finite_differences():
    tokens = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 9, dtype=torch.float64).add(0.1).requires_grad_()
    index = torch.randint(0, 3, (2, 9))
    aggregate = clustering_triton_clustr.aggregate
    assert torch.autograd.gradcheck(lambda t, w: aggregate(t, w, index, 4, 1e-6), (tokens, weight))


def test_aggregation_of_several_blocks_and_dtypes(on_cpu):
    index = torch.randint(0, 3, (2, 40))
    for dtype in (torch.float32, torch.bfloat16):
        tokens = torch.randn(2, 40, 100).to(dtype).requires_grad_()
        weight = torch.rand(2, 40, 1).requires_grad_()
        merged = aggregate_tokens(tokens, index, 4, weight)
        expected, _ = merge_tokens(tokens, weight.squeeze(-1), index, 4, 1e-6)
        torch.testing.assert_close(merged, expected.to(dtype))
        gradient = torch.randn_like(merged)
        found = torch.autograd.grad(merged, (tokens, weight), gradient, retain_graph=True)
        for ours, theirs in zip(found, torch.autograd.grad(expected.to(dtype), (tokens, weight), gradient)):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wrong", [-1, 4, 1000])
def test_clusters_out_of_range_make_their_image_nan(wrong):
    tokens, weight, index = torch.randn(2, 9, 3), torch.rand(2, 9), torch.randint(0, 3, (2, 9))
    index[1, 4] = wrong
    merged, weight_sum = launch_merge(tokens, weight, index, 4, 1e-6)
    assert merged[0].isfinite().all() and merged[1].isnan().all()
    gradients = launch_merge_gradients(tokens, weight, index, merged, weight_sum, torch.ones(2, 4, 3), 1e-6)
    for gradient in gradients:
        assert gradient[0].isfinite().all() and gradient[1].isnan().all()


def tiny_model() -> ClusTRForImageClassification:
    config = ClusTRConfig.from_variant("nano", depths=[1, 1, 1, 1], num_labels=3)
    return ClusTRForImageClassification(config).eval()


def test_a_model_trains_by_the_kernels(on_cpu, monkeypatch):
    """Compares forward, backward and clusters of a whole model with those of tensor operations."""
    model, pixel_values = tiny_model(), torch.rand(2, 3, 32, 32)
    assert clustering_path(torch.rand(1, 64, 32)) == "triton"

    def run():
        model.zero_grad()
        outputs = model(pixel_values, output_clusters=True, labels=torch.tensor([0, 2]))
        outputs.loss.backward()
        return outputs, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    outputs, gradients = run()
    again, gradients_again = run()
    assert torch.equal(outputs.logits, again.logits)
    monkeypatch.setenv("CLUSTR_KERNEL", "off")
    assert clustering_path(torch.rand(1, 64, 32)) == "tensor operations"
    expected, expected_gradients = run()
    for block, block_expected in zip(outputs.cluster_indices, expected.cluster_indices):
        assert all(torch.equal(a, b) for a, b in zip(block, block_expected))
    torch.testing.assert_close(outputs.logits, expected.logits)
    for gradient, same, wanted in zip(gradients, gradients_again, expected_gradients):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(gradient, same)


def test_the_paths_compile_without_graph_breaks(on_cpu):
    model, pixel_values = tiny_model(), torch.rand(1, 3, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outputs = compiled(pixel_values, labels=torch.tensor([1]))
    expected = model(pixel_values, labels=torch.tensor([1]))
    torch.testing.assert_close(outputs.logits, expected.logits)
    outputs.loss.backward()
    assert model.classifier.weight.grad is not None


def test_operators_pass_torchs_checks():
    tokens = torch.randn(2, 9, 3, requires_grad=True)
    weight, index = torch.rand(2, 9, requires_grad=True), torch.randint(0, 3, (2, 9))
    torch.library.opcheck(torch.ops.clustr_hf.merge_tokens, (tokens, weight, index, 4, 1e-6))


def test_what_the_kernels_leave_to_others(on_cpu, monkeypatch):
    tokens = torch.randn(1, 40, 4)
    can_cluster = clustering_triton_clustr.can_cluster
    assert can_cluster(tokens, 5) and can_cluster(tokens.bfloat16(), 8)
    assert not can_cluster(tokens.double(), 5)
    assert not can_cluster(tokens, 9) and can_cluster(tokens[:, :8], 9)
    assert not can_cluster(torch.empty(1, 40, 1025), 5)
    assert not can_cluster(torch.empty(1, 2**18 + 1, 1), 5)
    assert not can_cluster(tokens[:0], 5)
    assert not can_cluster(torch.nn.Parameter(tokens), 5)  # a subclass
    weight = torch.rand(1, 40)
    assert clustering_triton_clustr.can_aggregate(tokens, weight)
    assert not clustering_triton_clustr.can_aggregate(tokens.double(), weight.double())
    with torch.autograd.forward_ad.dual_level():
        assert not clustering_triton_clustr.can_aggregate(tokens, weight)
    monkeypatch.setenv("CLUSTR_KERNEL", "off")
    assert not can_cluster(tokens, 5)


def test_per_sample_gradients_of_torch_func_run(on_cpu):
    tokens = torch.randn(1, 30, 4)

    def loss(tokens):
        (index,) = find_clusters(tokens, [3])
        return aggregate_tokens(tokens, index, 3).square().sum()

    assert torch.func.grad(loss)(tokens).shape == tokens.shape


def test_forward_mode_derivatives_are_those_of_tensor_operations(on_cpu):
    tokens, weight, index = torch.randn(1, 30, 4), torch.rand(1, 30), torch.randint(0, 3, (1, 30))
    change = torch.randn(1, 30)
    _, tangent = torch.func.jvp(lambda weight: aggregate_tokens(tokens, index, 3, weight), (weight,), (change,))
    step = 1e-3 * change
    difference = aggregate_tokens(tokens, index, 3, weight + step) - aggregate_tokens(tokens, index, 3, weight - step)
    torch.testing.assert_close(tangent, difference / 2e-3, rtol=1e-2, atol=1e-3)
    gradient = torch.func.grad(lambda weight: aggregate_tokens(tokens, index, 3, weight).sum())(weight)
    assert gradient.shape == weight.shape and gradient.abs().max() > 0


def test_a_kernel_that_fails_is_replaced_with_one_message(on_cpu, monkeypatch):
    monkeypatch.setattr(clustering_triton_support_clustr, "_FAILURES", {})

    def fail():
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(clustering_triton_clustr, "load_kernels", fail)
    tokens = torch.randn(2, 40, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="tensor operations on cpu, because a Triton kernel failed: .*C compiler"):
        found = torch.stack(find_clusters(tokens, [3, 9]))
    assert torch.equal(found, cluster_by_tensors(tokens.detach(), [3, 9], 5, "density_parent"))
    assert clustering_path(tokens.detach()) == "tensor operations"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_clusters(tokens, [3, 9])
        # A compiled graph or a saved backward pass may still call the operators.
        torch.ops.clustr_hf.merge_tokens(tokens, torch.ones(2, 40), found[0], 3, 1e-6)[0].sum().backward()
    assert tokens.grad is not None


def test_running_out_of_memory_is_no_reason_to_give_up(on_cpu, monkeypatch):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(clustering_triton_clustr, "load_kernels", fail)
    with pytest.raises(torch.OutOfMemoryError):
        find_clusters(torch.randn(2, 40, 4), [3, 9])
    assert not clustering_triton_support_clustr._FAILURES


def test_launches_are_chosen_by_bits_and_channels_and_read_from_files(tmp_path):
    launches = {32: {64: Launch(rows=16), 256: Launch(rows=32)}}
    choose = clustering_triton_launches_clustr.choose_launch
    assert [choose(launches, 32, channels).rows for channels in (1, 64, 65, 256)] == [16, 16, 32, 32]
    assert choose(launches, 32, 257) == choose(launches, 16, 64) == clustering_triton_launches_clustr.DEFAULT_LAUNCH
    launches_of, table = clustering_triton_launches_clustr.launches_of, clustering_triton_launches_clustr.LAUNCHES
    assert launches_of("NVIDIA X", "sm_90") is table["sm_90"] and launches_of("AMD X", "gfx942") is table["gfx942"]
    assert launches_of("NVIDIA X", "sm_120") is launches_of("NVIDIA X", "sm_86") is table["sm_80"]
    assert launches_of("NVIDIA X", "sm_75") == launches_of("AMD X", "gfx90a") == {}
    path = tmp_path / "NVIDIA_X.json"
    path.write_text(json.dumps({"32": {"64": {"rows": 128}}}))
    assert clustering_triton_launches_clustr.read_launches(path) == {32: {64: Launch(rows=128)}}
    path.write_text(json.dumps({"32": {"64": {"precision": "tf32"}}}))
    with pytest.raises(ValueError, match=r"`precision` must be one of .*, got \['tf32'\]"):
        clustering_triton_launches_clustr.read_launches(path)
    for text in ("[]", '{"32": {"64": {"lines": 3}}}', '{"wide": {}}', "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"NVIDIA_X.json must hold .*rows, columns.*got"):
            clustering_triton_launches_clustr.read_launches(path)
