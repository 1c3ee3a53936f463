"""Numbers of clusters that follow the content: the merging, and the attention and models that use it."""

import math
import warnings
from functools import partial

import pytest
import torch
from naive_ward import merge_naively
from scipy.cluster.hierarchy import fcluster, linkage
from tiny_models import tiny_classifier, tiny_config

from clustr_hf import ClusTRForObjectDetection, ClusTRForSemanticSegmentation, find_clusters
from clustr_hf.export import export_to_onnx
from clustr_hf.remote_code import clustering_content_clustr as content
from clustr_hf.remote_code import clustering_kernel_clustr as kernel
from clustr_hf.remote_code.clustering_content_clustr import MergedClusters, average_clusters, merge_clusters
from clustr_hf.remote_code.modeling_clustr_attention import ClusTRAttention


TOLERANCES = [0.0, 0.002, 0.01, 0.05, 0.3, 1.0]


@pytest.fixture(params=["compiled kernel", "tensor operations"])
def path(request, monkeypatch):
    """Both implementations; the kernel only where it was built."""
    if request.param == "tensor operations":
        monkeypatch.setenv("CLUSTR_KERNEL", "off")
    elif not kernel.is_available():
        pytest.skip("the kernel was not built")
    return request.param


def lumpy_tokens(batch_size: int, num_tokens: int, channels: int = 8) -> torch.Tensor:
    """Tokens around a few places, with another number of places in every image."""
    places = [torch.randn(3 + 4 * image, channels) for image in range(batch_size)]
    tokens = [each[torch.randint(len(each), (num_tokens,))] for each in places]
    return torch.stack(tokens) + 0.2 * torch.randn(batch_size, num_tokens, channels)


def parts(label: torch.Tensor, merged_label: torch.Tensor) -> set[frozenset[int]]:
    """The sets of original clusters that ended in one."""
    return {frozenset(label[merged_label == m].tolist()) for m in merged_label.unique()}


@pytest.mark.parametrize("tolerance", TOLERANCES[1:])
@pytest.mark.parametrize("assignment", ["density_parent", "nearest_center"])
def test_merges_are_those_of_a_naive_search(path, tolerance, assignment):
    tokens = lumpy_tokens(3, 60).double().float()
    (label,) = find_clusters(tokens, [20], assignment=assignment)
    merged = merge_clusters(tokens, label, 20, tolerance)
    for image in range(3):
        expected = merge_naively(tokens[image].double(), label[image], tolerance)
        assert parts(label[image], merged.cluster_index[image]) == set(map(frozenset, expected))
        sizes = sorted(len(part) for part in expected)
        assert sorted(merged.num_merged[image][merged.num_merged[image] > 0].tolist()) == sizes


@pytest.mark.parametrize("tolerance", [0.001, 0.01, 0.1])
def test_merging_all_tokens_is_scipys_ward(path, tolerance):
    tokens = lumpy_tokens(1, 150)
    label = torch.arange(150)[None]
    merged = merge_clusters(tokens, label, 150, tolerance)
    limit = tolerance * float((tokens[0] - tokens[0].mean(0)).square().sum())
    # scipy's height of a merge is sqrt(2 cost).
    expected = fcluster(linkage(tokens[0].double().numpy(), "ward"), math.sqrt(2 * limit), "distance")
    assert parts(label[0], merged.cluster_index[0]) == parts(label[0], torch.from_numpy(expected))
    assert 1 < merged.num_merged.shape[1] < 150


@pytest.mark.parametrize("instruction_set", kernel.INSTRUCTION_SETS)
def test_both_implementations_agree(instruction_set, monkeypatch):
    if instruction_set not in kernel.supported_instruction_sets():
        pytest.skip("the kernel was not built, or the processor lacks the instruction set")
    monkeypatch.setattr(content, "merge_by_kernel", partial(kernel.merge, instruction_set=instruction_set))
    # Numbers on both sides of the kernel's tiles, and of the blocks of its products.
    for num_clusters, num_tokens in ((1, 5), (2, 7), (17, 40), (64, 300), (200, 800), (300, 900), (513, 600)):
        tokens = lumpy_tokens(3, num_tokens)
        (label,) = find_clusters(tokens, [num_clusters])
        for tolerance in TOLERANCES[1:]:
            found = merge_clusters(tokens, label, num_clusters, tolerance)
            with monkeypatch.context() as patch:
                patch.setenv("CLUSTR_KERNEL", "off")
                expected = merge_clusters(tokens, label, num_clusters, tolerance)
            assert torch.equal(found.cluster_index, expected.cluster_index), (num_clusters, tolerance)
            assert torch.equal(found.num_merged, expected.num_merged)


def test_unknown_instruction_sets_are_refused():
    if not kernel.is_available():
        pytest.skip("the kernel was not built")
    with pytest.raises(ValueError, match=r"`instruction_set` must be one of .*got 'sse9'"):
        kernel.merge(torch.randn(1, 4, 2), torch.ones(1, 4), torch.ones(1), "sse9")


def test_blocks_of_rows_change_nothing(monkeypatch):
    tokens = lumpy_tokens(2, 300)
    (label,) = find_clusters(tokens, [100])
    expected = merge_clusters(tokens, label, 100, 0.01)
    monkeypatch.setattr(content, "MAX_MATRIX", 100)
    monkeypatch.setattr(content, "block_elements", lambda tokens: 700)
    found = merge_clusters(tokens, label, 100, 0.01)
    assert torch.equal(found.cluster_index, expected.cluster_index) and torch.equal(
        found.num_merged, expected.num_merged
    )


def test_an_image_does_not_depend_on_its_batch(path):
    tokens = torch.cat([lumpy_tokens(3, 200), torch.ones(1, 200, 8)])
    (label,) = find_clusters(tokens, [50])
    together = merge_clusters(tokens, label, 50, 0.01)
    numbers = (together.num_merged > 0).sum(dim=1).tolist()
    assert len(set(numbers)) == 4 and max(numbers) == together.num_merged.shape[1] < 50
    for image, number in enumerate(numbers):
        alone = merge_clusters(tokens[image : image + 1], label[image : image + 1], 50, 0.01)
        assert torch.equal(alone.cluster_index[0], together.cluster_index[image])
        assert torch.equal(alone.num_merged[0], together.num_merged[image, :number])


def test_more_tolerance_only_merges_more(path):
    tokens = lumpy_tokens(2, 200)
    (label,) = find_clusters(tokens, [40])
    finer = label
    for tolerance in TOLERANCES:
        merged = merge_clusters(tokens, label, 40, tolerance).cluster_index
        for image in range(2):
            assert all(len(merged[image][finer[image] == m].unique()) == 1 for m in finer[image].unique())
        finer = merged
    assert finer.max() == 0  # with a tolerance of 1 everything is one cluster
    unmerged = merge_clusters(tokens, label, 40, 0.0)
    assert torch.equal(unmerged.cluster_index, label) and (unmerged.num_merged == 1).all()


def test_a_plain_image_is_one_cluster(path):
    tokens = torch.full((2, 300, 8), 3.7)
    tokens[1, 150:] = -1.0
    (label,) = find_clusters(tokens, [100])
    merged = merge_clusters(tokens, label, 100, 1e-6)
    assert (merged.num_merged > 0).sum(dim=1).tolist() == [1, 2]
    assert merged.num_merged.sum(dim=1).tolist() == [100, 100]
    assert merged.cluster_index[1, :150].unique().tolist() != merged.cluster_index[1, 150:].unique().tolist()


def test_clusters_without_tokens_are_left_out(path):
    tokens = lumpy_tokens(2, 30)
    label = torch.tensor([3, 7, 9])[torch.arange(30) % 3].expand(2, -1)
    merged = merge_clusters(tokens, label, 12, 0.0)
    assert merged.num_merged.tolist() == [[1, 1, 1]] * 2
    assert torch.equal(merged.cluster_index, (torch.arange(30) % 3).expand(2, -1))


def test_averages_do_not_depend_on_the_sizes_of_the_clusters():
    label = torch.tensor([[0, 0, 0, 1, 3, 3]])
    tokens = torch.tensor([[[5.0], [5.0], [5.0], [5.1], [-9.0], [-9.0]]])
    merged = merge_clusters(tokens, label, 5, 0.01)  # nothing is in the clusters 2 and 4
    assert merged.num_merged.tolist() == [[2, 1]]
    originals = torch.tensor([[[1.0], [3.0], [100.0], [7.0], [100.0]]])
    torch.testing.assert_close(average_clusters(originals, merged), torch.tensor([[[2.0], [7.0]]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens = lumpy_tokens(2, 80).to(dtype)
    (label,) = find_clusters(tokens, [20])
    merged = merge_clusters(tokens, label, 20, 0.02)
    wide = merge_clusters(tokens.double(), label, 20, 0.02)
    assert torch.equal(merged.cluster_index, wide.cluster_index)
    assert merged.num_merged.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast_changes_nothing(path):
    tokens = lumpy_tokens(2, 80)
    (label,) = find_clusters(tokens, [20])
    expected = merge_clusters(tokens, label, 20, 0.02)
    with torch.autocast("cpu", torch.bfloat16):
        found = merge_clusters(tokens, label, 20, 0.02)
    assert torch.equal(found.cluster_index, expected.cluster_index)


def test_empty_batches_and_devices_without_values():
    merged = merge_clusters(torch.zeros(0, 10, 4), torch.zeros(0, 10, dtype=torch.long), 3, 0.1)
    assert merged.cluster_index.shape == (0, 10)
    meta = merge_clusters(
        torch.zeros(2, 10, 4, device="meta"), torch.zeros(2, 10, dtype=torch.long, device="meta"), 3, 0.1
    )
    assert meta.cluster_index.shape == (2, 10) and meta.num_merged.shape == (2, 3)


def test_not_a_number_ends_without_an_error(path):
    tokens = lumpy_tokens(2, 40)
    tokens[0, 3] = math.nan
    label = torch.arange(40).expand(2, -1) % 10
    merged = merge_clusters(tokens, label, 10, 0.05)
    alone = merge_clusters(tokens[1:], label[1:], 10, 0.05)
    assert torch.equal(merged.cluster_index[1], alone.cluster_index[0])
    assert merged.cluster_index.min() >= 0 and merged.cluster_index.max() < 10


def test_a_library_of_an_earlier_release_is_not_called(monkeypatch):
    class Earlier:
        """A library without the function."""

    tokens = lumpy_tokens(1, 40)
    label = torch.arange(40)[None] % 10
    expected = merge_clusters(tokens, label, 10, 0.05)
    monkeypatch.setattr(kernel, "_library", lambda: Earlier())
    assert not kernel.can_merge(torch.zeros(1, 2, 2))
    assert torch.equal(merge_clusters(tokens, label, 10, 0.05).cluster_index, expected.cluster_index)


@pytest.mark.parametrize("arguments", [{"tolerance": -0.1}, {"tolerance": 1.5}, {"tolerance": math.nan}])
def test_invalid_tolerances_are_named(arguments):
    with pytest.raises(ValueError, match=r"`tolerance` must be in \[0, 1\]"):
        merge_clusters(torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.long), 2, **arguments)
    with pytest.raises(ValueError, match="`cluster_index` must have shape"):
        merge_clusters(torch.zeros(1, 4, 2), torch.zeros(1, 5, dtype=torch.long), 2, 0.1)


def naive_attention(attention: ClusTRAttention, tokens: torch.Tensor, merged: list[MergedClusters]) -> torch.Tensor:
    """
    The attention of one image, (N, C) -> (N, C): all the original clusters, each with the mean of the tokens of those
    that it was merged with, without padding and without a mask.
    """
    weight, total = attention.token_weight(tokens).exp(), 0
    for clusters, projection in zip(merged, attention.kv_projs):
        label, owner = clusters.original_index[0], clusters.merged_index[0]
        means = []
        for k in range(len(owner)):
            member = label == k
            means.append((weight * tokens)[member].sum(dim=0) / (weight[member].sum() + 1e-6))
        means = torch.stack([torch.stack(means)[owner == m].mean(dim=0) for m in owner])
        heads = attention.num_heads, attention.head_dim
        query = attention.q_proj(tokens).unflatten(-1, heads)
        key, value = (part.unflatten(-1, heads) for part in projection(means).chunk(2, dim=-1))
        scores = torch.einsum("nhc,mhc->hnm", query, key) * attention.head_dim**-0.5
        total = total + torch.einsum("hnm,mhc->nhc", scores.softmax(dim=-1), value).flatten(1)
    return attention.o_proj(total)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_merged_keys_count_as_often_as_the_original_ones(implementation):
    fields = {"cluster_count": "content", "cluster_tolerance": 0.01, "attn_implementation": implementation}
    attention = ClusTRAttention(tiny_config(reduction_ratios=[[4, 1], [4], [4], [1]], **fields), stage_index=0).eval()
    tokens = lumpy_tokens(3, 64, channels=16)
    with torch.no_grad():
        output, weights, clusters = attention(tokens)
        for image in range(3):
            merged = [MergedClusters(*(part[image : image + 1] for part in scale)) for scale in clusters]
            expected = naive_attention(attention, tokens[image], merged)
            torch.testing.assert_close(output[image], expected, rtol=1e-5, atol=1e-5)
    numbers = [(scale.num_merged > 0).sum(dim=1) for scale in clusters]
    assert len(set(numbers[1].tolist())) == 3 and max(numbers[1]) < 64
    if implementation == "eager":
        width = clusters[0].num_merged.shape[1]
        first, second = weights[..., :width], weights[..., width:]
        for part, number in ((first, numbers[0]), (second, numbers[1])):
            torch.testing.assert_close(part.sum(dim=-1), torch.ones_like(part[..., 0]))
            for image in range(3):
                assert part[image, ..., : number[image]].gt(0).all() and not part[image, ..., number[image] :].any()


OPTIONS = [
    {},
    {"cluster_window": 5},
    {"cluster_sharing": "stage"},
    {"max_clusters": 6},
    {"cluster_assignment": "nearest_center"},
    {"cluster_window": 6, "cluster_sharing": "stage", "max_clusters": 10},
]


def varied_images() -> torch.Tensor:
    """A plain image, a smooth one, and noise."""
    smooth = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), (64, 64), mode="bilinear")[0]
    return torch.stack([torch.full((3, 64, 64), 0.3), smooth, torch.randn(3, 64, 64)])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_models_with_every_option(options, implementation):
    model = tiny_classifier(**options, attn_implementation=implementation)
    images = varied_images()
    with torch.no_grad():
        expected = model(images, output_clusters=True)
        model.set_cluster_budget(0.01)
        together = model(images, output_clusters=True)
        alone = torch.cat([model(image[None]).logits for image in images])
        torch.testing.assert_close(together.logits, alone, rtol=0, atol=1e-5)
        for full, fewer in zip(expected.cluster_indices, together.cluster_indices, strict=True):
            for before, after in zip(full, fewer, strict=True):
                assert (after.amax(dim=1) <= before.amax(dim=1)).all() and after.shape == before.shape
                assert all(len(label.unique()) == label.max() + 1 for label in after)
        counts = torch.stack([label.amax(dim=1) + 1 for scales in together.cluster_indices for label in scales])
        assert counts.min() >= 1 and counts[:, 0].sum() < counts[:, 2].sum()
        model.set_cluster_budget(None)
        assert torch.equal(model(images).logits, expected.logits)
    if options.get("cluster_sharing") == "stage":
        first, second = together.cluster_indices[1:3]  # the stage with two blocks
        assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_nothing_is_merged_for_a_fixed_number(monkeypatch):
    """`"ratio"` neither merges nor masks: its results are those of releases without the field."""

    def refuse(*args):
        raise AssertionError("clusters were merged")

    masks = []
    monkeypatch.setattr("clustr_hf.remote_code.modeling_clustr_attention.merge_clusters", refuse)
    original = ClusTRAttention._attention_mask
    monkeypatch.setattr(ClusTRAttention, "_attention_mask", lambda *args: masks.append(original(*args)) or masks[-1])
    tiny_classifier()(varied_images())
    assert masks and set(masks) == {None}


def test_without_tolerance_outputs_are_those_of_a_fixed_number():
    model = tiny_classifier()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        model.set_cluster_budget(0)
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sharing", ["block", "stage"])
def test_training(path, sharing):
    fields = {"cluster_count": "content", "cluster_tolerance": 0.01, "cluster_sharing": sharing}
    model = tiny_classifier(**fields).train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, losses = varied_images(), []
    for _ in range(8):
        loss = model(images, labels=torch.tensor([0, 1, 2])).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad.isfinite().all() for weight in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_gradients_are_those_of_finite_differences():
    fields = {"cluster_count": "content", "cluster_tolerance": 0.05}
    attention = ClusTRAttention(tiny_config(reduction_ratios=[[4], [4], [4], [1]], **fields), stage_index=0).double()
    tokens = lumpy_tokens(2, 12, channels=16).double().requires_grad_()
    with torch.no_grad():
        clusters = attention(tokens)[2]
    assert torch.autograd.gradcheck(lambda tokens: attention(tokens, None, clusters)[0], tokens, atol=1e-6)


def test_compiled_models():
    model, images = tiny_classifier(cluster_count="content", cluster_tolerance=0.01), varied_images()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)
        model.set_cluster_budget(0.3)  # seen by the compiled model
        torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


class Logits(torch.nn.Module):
    """A model with a tensor as its output."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def test_exports(monkeypatch, tmp_path):
    model = tiny_classifier(cluster_count="content", cluster_tolerance=0.01)
    with pytest.raises(ValueError, match=r'must have `cluster_count="ratio"`.*set_cluster_budget'):
        export_to_onnx(model, tmp_path / "model.onnx", (64, 64))
    monkeypatch.setattr(content, "MAX_ROUNDS", 3)  # the rounds are unrolled
    monkeypatch.setenv("CLUSTR_KERNEL", "off")
    batch = {"pixel_values": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(Logits(model), (torch.randn(2, 3, 32, 32),), dynamic_shapes=batch).module()
        for number in (1, 4):
            images = torch.randn(number, 3, 32, 32)
            torch.testing.assert_close(exported(images), model(images).logits, rtol=1e-4, atol=1e-5)


def test_a_budget_reaches_every_part_and_is_saved(tmp_path):
    fields = {"num_labels": 3, "decoder_hidden_size": 8, "fpn_hidden_size": 8}
    for cls in (ClusTRForSemanticSegmentation, ClusTRForObjectDetection):
        model = cls(tiny_config(**fields)).eval()
        model.set_cluster_budget(0.02)
        attentions = [module for module in model.modules() if isinstance(module, ClusTRAttention)]
        assert attentions and {each.config.cluster_tolerance for each in attentions} == {0.02}
        model.save_pretrained(tmp_path)
        loaded = cls.from_pretrained(tmp_path).eval()
        assert (loaded.config.cluster_count, loaded.config.cluster_tolerance) == ("content", 0.02)
        images = varied_images()
        with torch.no_grad():
            found, expected = (each(images).logits for each in (loaded, model))
        torch.testing.assert_close(found, expected)


def test_invalid_budgets_change_nothing():
    model = tiny_classifier()
    for tolerance in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"`cluster_tolerance` must be in \[0, 1\]"):
            model.set_cluster_budget(tolerance)
    assert (model.config.cluster_count, model.config.cluster_tolerance) == ("ratio", 0.002)
    grid = tiny_classifier(attention_type="spatial_reduction", reduction_ratios=[4, 4, 4, 1])
    with pytest.raises(ValueError, match="`cluster_count` must be 'ratio' with `attention_type` 'spatial_reduction'"):
        grid.set_cluster_budget(0.1)
    assert grid.config.cluster_count == "ratio"
    with pytest.raises(ValueError, match="`cluster_count` must be one of"):
        tiny_config(cluster_count="adaptive")
