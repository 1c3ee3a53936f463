"""The attentions: agreement with loops and with transformers' PVTv2, and models with grids instead of clusters."""

import math

import pytest
import torch
from tiny_models import tiny_classifier, tiny_config
from torch import nn
from transformers import PvtV2Config
from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2SelfAttention

from clustr_hf import ClusTRForImageClassification, find_clusters
from clustr_hf.remote_code.modeling_clustr_attention import (
    ClusTRAttention,
    ClusTRNearestKeysAttention,
    ClusTRSpatialReductionAttention,
)


def naive_attention(attention: ClusTRAttention, tokens: torch.Tensor, ratios: list[int]) -> torch.Tensor:
    """Eqs. 5 to 8 for one image, token by token: (N, C) -> (N, C)."""
    num_tokens, channels = tokens.shape
    head_dim = attention.head_dim
    log_weight = torch.zeros(num_tokens)
    if attention.token_weight is not None:
        log_weight = tokens @ attention.token_weight.weight[0] + attention.token_weight.bias
    numbers = [max(1, math.floor(num_tokens / ratio)) for ratio in ratios]
    indices = find_clusters(tokens[None], numbers)
    query = attention.q_proj(tokens)
    total = torch.zeros(num_tokens, channels, dtype=tokens.dtype)
    for index, number, projection in zip(indices, numbers, attention.kv_projs):
        merged = []
        for m in range(number):
            members = index[0] == m
            weight = log_weight[members].exp()
            merged.append((weight[:, None] * tokens[members]).sum(0) / (weight.sum() + 1e-6))
        key, value = projection(torch.stack(merged)).split(channels, dim=-1)
        for head in range(channels // head_dim):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for n in range(num_tokens):
                scores = key[:, part] @ query[n, part] / head_dim**0.5
                total[n, part] += torch.softmax(scores, dim=0) @ value[:, part]
    return attention.o_proj(total)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("ratios", [[16, 4], [4, 1], [4], [2.5, 100], [1], [1, 1]])
def test_attention_agrees_with_loops(implementation, ratios):
    config = tiny_config(reduction_ratios=[ratios, [4], [4], [1]], attn_implementation=implementation)
    attention = ClusTRAttention(config, stage_index=0).double().eval()
    tokens = torch.randn(2, 35, 16, dtype=torch.float64)
    with torch.no_grad():
        output, _, cluster_index = attention(tokens)
        expected = torch.stack([naive_attention(attention, image, ratios) for image in tokens])
    # The only token of a cluster is scaled by w / (w + 1e-6); plain attention (all ratios 1) has no weights.
    tolerance = 1e-12 if attention.is_clustered else 1e-5
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
    assert cluster_index is None if set(ratios) == {1} else len(cluster_index) == len(ratios)


def pvt_v2_attention(attention: ClusTRSpatialReductionAttention, cell: int):
    """transformers' spatial-reduction attention with the same weights."""
    channels = attention.q_proj.in_features
    config = PvtV2Config(num_attention_heads=[attention.num_heads], layer_norm_eps=attention.config.layer_norm_eps)
    config.qkv_bias = True
    theirs = PvtV2SelfAttention(config, channels, attention.num_heads, spatial_reduction_ratio=cell).double()
    parts = {"query": attention.q_proj, "proj": attention.o_proj}
    parts |= {"spatial_reduction": attention.reduction, "layer_norm": attention.reduction_layer_norm}
    for name, part in parts.items():
        getattr(theirs, name).load_state_dict(part.state_dict())
    for name, rows in (("key", slice(0, channels)), ("value", slice(channels, None))):
        getattr(theirs, name).weight.data = attention.kv_projs[0].weight[rows].detach()
        getattr(theirs, name).bias.data = attention.kv_projs[0].bias[rows].detach()
    return theirs.eval()


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_spatial_reduction_is_that_of_pvt(size):
    config = tiny_config(attention_type="spatial_reduction", reduction_ratios=[4, 4, 4, 1])
    attention = ClusTRSpatialReductionAttention(config, stage_index=1).double().eval()
    tokens = torch.randn(2, size[0] * size[1], 32, dtype=torch.float64)
    with torch.no_grad():
        output, _, cluster_index = attention(tokens, size)
        expected = pvt_v2_attention(attention, 2)(tokens, *size)[0]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    assert cluster_index is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("top_k", [1, 5, 12, 100])
def test_nearest_keys_agree_with_loops(implementation, top_k):
    """12 keys of a 6 x 8 grid: a query sees the `top_k` with the largest scores."""
    fields = {"attention_type": "spatial_reduction_knn", "reduction_ratios": [4, 4, 4, 1], "attention_top_k": top_k}
    config = tiny_config(**fields, attn_implementation=implementation)
    attention = ClusTRNearestKeysAttention(config, stage_index=1).double().eval()
    tokens = torch.randn(1, 48, 32, dtype=torch.float64)
    with torch.no_grad():
        output = attention(tokens, (6, 8))[0][0]
        features = attention.reduction(tokens.mT.reshape(1, 32, 6, 8)).flatten(2).mT[0]
        key, value = attention.kv_projs[0](attention.reduction_layer_norm(features)).split(32, dim=-1)
        query, attended = attention.q_proj(tokens[0]), torch.zeros(48, 32, dtype=torch.float64)
        for part in (slice(0, 16), slice(16, 32)):
            for n in range(48):
                scores = (key[:, part] @ query[n, part]).tolist()
                best = sorted(range(12), key=lambda m: -scores[m])[:top_k]
                weights = torch.tensor([scores[m] / 16**0.5 for m in best], dtype=torch.float64).softmax(0)
                attended[n, part] = sum(weight * value[m, part] for weight, m in zip(weights, best))
        torch.testing.assert_close(output, attention.o_proj(attended), rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention_type", ["spatial_reduction", "spatial_reduction_knn"])
def test_models_with_grids_train_save_and_find_no_clusters(tmp_path, attention_type):
    fields = {"attention_type": attention_type, "reduction_ratios": [64, 16, 4, 1], "attention_top_k": 2}
    model = tiny_classifier(**fields)
    for size in (
        (32, 32),
        (57, 83),
    ):  # the grid of the first stage is, or is not, smaller than a cell in one direction
        images = torch.randn(2, 3, *size)
        output = model(images, labels=torch.tensor([0, 1]), output_clusters=True)
        assert output.cluster_indices == ()
        model.zero_grad()
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    reloaded = ClusTRForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.attention_type == attention_type
    assert torch.equal(reloaded(images).logits, model(images).logits)


def test_without_attention_a_block_adds_its_normalised_tokens():
    """The control: x + norm(x), then the feed-forward network; no weights of an attention, no clusters."""
    model = tiny_classifier(attention_type="none").double().eval()
    block = model.clustr.stages[0].blocks[0]
    nn.init.normal_(block.layer_norm_before.weight)
    assert not any(name.startswith("attention") for name in block.state_dict())
    tokens = torch.randn(2, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        output, clusters = block(tokens, (3, 4))
        mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, unbiased=False)
        norm = (tokens - mean) / (variance + 1e-6).sqrt()
        middle = tokens + norm * block.layer_norm_before.weight + block.layer_norm_before.bias
        expected = middle + block.mlp(block.layer_norm_after(middle), (3, 4))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    assert clusters is None


def test_models_without_attention_train_save_and_find_no_clusters(tmp_path):
    model = tiny_classifier(attention_type="none")
    images = torch.randn(2, 3, 57, 83)
    output = model(images, labels=torch.tensor([0, 1]), output_clusters=True, output_hidden_states=True)
    assert output.cluster_indices == () and len(output.hidden_states) == 5
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.set_attn_implementation("eager")
    assert not model(images, output_attentions=True).attentions
    model.eval().save_pretrained(tmp_path)
    reloaded = ClusTRForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.attention_type == "none"
    assert torch.equal(reloaded(images).logits, model(images).logits)


def test_a_grid_smaller_than_a_cell_is_padded_with_zeros():
    config = tiny_config(attention_type="spatial_reduction", reduction_ratios=[16, 4, 4, 1])
    attention = ClusTRSpatialReductionAttention(config, stage_index=0).double().eval()
    tokens = torch.randn(1, 2, 5, 16, dtype=torch.float64)
    padded = torch.cat([tokens, torch.zeros(1, 2, 5, 16, dtype=torch.float64)], dim=1)
    with torch.no_grad():
        output, _, _ = attention(tokens.flatten(1, 2), (2, 5))
        expected, _, _ = attention(padded.flatten(1, 2), (4, 5))
    torch.testing.assert_close(output, expected[:, :10], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="`size` must be the"):
        attention(tokens.flatten(1, 2))
