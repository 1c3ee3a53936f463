"""The changes of the attention that the study of the ablations tries, against loops and against plain attention."""

import pytest
import torch
from ablations.variants import VARIANTS, attention_of
from tiny_models import tiny_config

from clustr_hf import ClusTRForImageClassification
from clustr_hf.remote_code.modeling_clustr_attention import ATTENTION_CLASSES, ClusTRAttention


def make_attention(variant, ratios=(4,)):
    config = tiny_config(reduction_ratios=[list(ratios), [4], [4], [1]], attn_implementation="eager")
    return VARIANTS[variant](config, 0).double().eval()


def plain_attention(attention, tokens):
    """Attention of all tokens to all tokens with the projections of the first scale, (B, N, C)."""
    parts = (attention.q_proj(tokens), *attention.kv_projs[0](tokens).chunk(2, dim=-1))
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return attention.o_proj(output.transpose(1, 2).flatten(2))


def test_the_weight_of_a_cluster_in_the_softmax_stands_for_its_members():
    """Copies of tokens form clusters of different sizes: as if every token attended to every token."""
    attention = make_attention("weights-in-softmax")
    torch.nn.init.zeros_(attention.token_weight.weight)
    torch.nn.init.zeros_(attention.token_weight.bias)
    distinct = torch.randn(4, 16, dtype=torch.float64)
    label = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3])
    tokens = distinct[label][None]
    with torch.no_grad():
        output, _, _ = attention(tokens, (4, 4), (label[None],))
        torch.testing.assert_close(output, plain_attention(attention, tokens), rtol=0, atol=1e-5)
        without, _, _ = ClusTRAttention.forward(_as_plain(attention), tokens, (4, 4), (label[None],))
    assert (without - output).abs().max() > 1e-3


def _as_plain(attention):
    """The clustered attention with the same weights."""
    plain = ClusTRAttention(attention.config, 0).double().eval()
    plain.load_state_dict(attention.state_dict())
    return plain


def test_the_position_of_a_cluster_is_the_mean_of_its_members_positions():
    attention = make_attention("position-in-keys")
    tokens, label = torch.randn(1, 16, 16, dtype=torch.float64), torch.arange(16) % 4
    with torch.no_grad():
        (merged,) = attention._merge_tokens(tokens, (4, 4), (label[None],), [4])
        (plain,) = ClusTRAttention._merge_tokens(attention, tokens, (4, 4), (label[None],), [4])
        place = attention.position_embeddings((4, 4), tokens).flatten(0, 1)
        for m in range(4):
            torch.testing.assert_close(merged[0, m] - plain[0, m], place[label == m].mean(0), rtol=0, atol=1e-5)


def test_grid_cells_are_squares():
    tokens = torch.randn(2, 64, 16, dtype=torch.float64)
    (cells,) = make_attention("grid-means")._find_clusters(tokens, (8, 8), [16])
    assert cells[0].reshape(8, 8)[:4, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 5, 5], [4, 4, 5, 5]]
    assert cells.shape == (2, 64) and (cells[0] == cells[1]).all() and (cells[0].bincount() == 4).all()
    with pytest.raises(ValueError, match=r"\(5, 8\) tokens must divide into 10 square cells"):
        make_attention("grid-means")._find_clusters(torch.randn(1, 40, 16), (5, 8), [10])


def test_models_have_the_changed_attention_within_the_context_only():
    original = dict(ATTENTION_CLASSES)
    with pytest.raises(RuntimeError, match="stop"), attention_of("plain-means"):
        model = ClusTRForImageClassification(tiny_config())
        raise RuntimeError("stop")
    assert type(model.clustr.stages[0].blocks[0].attention) is VARIANTS["plain-means"]
    assert model.clustr.stages[0].blocks[0].attention.token_weight is None
    assert original == ATTENTION_CLASSES
