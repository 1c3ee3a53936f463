"""The cost model of the clustering, compared with counts by hand; nothing is timed."""

import sys

import pytest
import torch
from benchmark.cost.model import Clustering
from benchmark.measurements.inputs import Setting
from conftest import REPOSITORY, run_process

from clustr_hf.remote_code.clustering_triton_launches_clustr import Launch


pytest.importorskip("triton", reason="launches of Triton kernels are counted with Triton")

from benchmark.cost.sweep_shares import shares_processed_again
from benchmark.cost.traffic import count_launches, find_clusterings


def test_clusterings_of_a_forward_are_found():
    found, traffic = find_clusterings("clustr-small", Setting(224, 224, 2))
    # Depths 3, 5, 13 with two scales; the last stage does not cluster.
    assert (
        found == [Clustering(2, 3136, 64, 2)] * 3 + [Clustering(2, 784, 128, 2)] * 5 + [Clustering(2, 196, 256, 2)] * 13
    )
    assert traffic.launches > 300 and traffic.bytes > 2 * 3 * 224 * 224 * 2


def test_costs_grow_as_they_should():
    small, large = Clustering(2, 784, 128, 2), Clustering(2, 3136, 128, 2)
    for part in ("matrix_seconds", "memory_seconds"):
        ratio = 16 if part == "matrix_seconds" else 4
        assert getattr(large, part)(True) == pytest.approx(ratio * getattr(small, part)(True))
    assert small.matrix_seconds(True) > small.matrix_seconds(False)
    assert count_launches(small, torch.float32) == count_launches(large, torch.float32) > 20


def test_shares_of_tokens_that_are_looked_at_again():
    torch.manual_seed(0)
    spread = shares_processed_again(torch.randn(1, 300, 64), Launch())
    assert spread["flagged"] == spread["measured"] == 0 and 0 < spread["missing"] < 0.5
    copies = shares_processed_again(torch.randn(1, 10, 64).repeat(1, 30, 1), Launch())
    assert copies["flagged"] == 1 and copies["measured"] == 1


def test_tables_are_printed(tmp_path):
    script = REPOSITORY / "examples" / "benchmark" / "clustering_cost.py"
    printed = run_process([sys.executable, script, "--settings", "224x1"], tmp_path)
    assert "| 224 x 1 |" in printed and "clustering of bfloat16 tokens" in printed and "not measured" in printed
