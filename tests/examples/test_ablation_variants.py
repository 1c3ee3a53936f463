"""The changes of the attention that the study of the ablations tries, against cells that are written down."""

import pytest
import torch
from ablations.variants import VARIANTS, attention_of
from tiny_models import tiny_config

from clustr_hf import ClusTRForImageClassification
from clustr_hf.remote_code.modeling_clustr_attention import ATTENTION_CLASSES


def make_attention(variant):
    config = tiny_config(reduction_ratios=[[4], [4], [4], [1]], attn_implementation="eager")
    return VARIANTS[variant](config, 0).double().eval()


def test_grid_cells_are_squares():
    tokens = torch.randn(2, 64, 16, dtype=torch.float64)
    (cells,) = make_attention("grid-means")._find_clusters(tokens, (8, 8), [16])
    assert cells[0].reshape(8, 8)[:4, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 5, 5], [4, 4, 5, 5]]
    assert cells.shape == (2, 64) and (cells[0] == cells[1]).all() and (cells[0].bincount() == 4).all()
    with pytest.raises(ValueError, match=r"\(5, 8\) tokens must divide into 10 square cells"):
        make_attention("grid-means")._find_clusters(torch.randn(1, 40, 16), (5, 8), [10])


def test_models_have_the_changed_attention_within_the_context_only():
    original = dict(ATTENTION_CLASSES)
    with pytest.raises(RuntimeError, match="stop"), attention_of("grid-means"):
        model = ClusTRForImageClassification(tiny_config())
        raise RuntimeError("stop")
    assert type(model.clustr.stages[0].blocks[0].attention) is VARIANTS["grid-means"]
    assert original == ATTENTION_CLASSES
