# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Run with `pytest`. `LOCAL_KERNELS=$repo_id=<folder>` tests the variants of a folder instead of those on the Hub.
"""

import pytest
import torch
from kernels import get_kernel


kernel = get_kernel("$repo_id", version=int("$version"), trust_remote_code=True)


@pytest.fixture
def device():
    if torch.cuda.is_available():
        return "cuda"
    return "xpu" if hasattr(torch, "xpu") and torch.xpu.is_available() else "cpu"


def groups(device, num_groups=4, size=6):
    """Tokens (2, num_groups * size, 8) around centres that are far apart, and the group of each token."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(num_groups, device="cpu").repeat_interleave(size)
    noise = 0.1 * torch.randn(2, num_groups * size, 8, generator=generator, device="cpu")
    return (10 * torch.eye(8, device="cpu")[group] + noise).to(device), group.to(device)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("assignment", ["density_parent", "nearest_center"])
def test_groups_become_clusters(device, assignment):
    tokens, group = groups(device)
    (found,) = kernel.find_clusters(tokens, [4], assignment=assignment)
    for labels in found:
        assert len({*zip(labels.tolist(), group.tolist())}) == 4


@pytest.mark.kernels_ci
def test_drop_in(device):
    tokens, _ = groups(device)
    mask = torch.ones(2, 24, device=device)
    mask[1, 18:] = 0
    idx_cluster, cluster_num = kernel.cluster_dpc_knn({"x": tokens}, 4, token_mask=mask)
    (expected,) = kernel.find_clusters(tokens[1:, :18], [4], assignment="nearest_center")
    assert cluster_num == 4 and torch.equal(idx_cluster[1, :18], expected[0])


@pytest.mark.kernels_ci
def test_aggregation_has_gradients(device):
    tokens, group = groups(device)
    tokens.requires_grad_()
    merged = kernel.aggregate_tokens(tokens, group.expand(2, -1), 4)
    torch.testing.assert_close(merged, tokens.unflatten(1, (4, 6)).mean(dim=2), rtol=1e-5, atol=1e-5)
    merged.sum().backward()
    torch.testing.assert_close(tokens.grad, torch.full_like(tokens, 1 / 6), rtol=1e-5, atol=1e-5)
