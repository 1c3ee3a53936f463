"""Ward's method as written: looks at every pair of clusters before every merge. Slow and obvious."""

import torch


def merge_naively(tokens: torch.Tensor, label: torch.Tensor, tolerance: float) -> list[set[int]]:
    """Sets of the original clusters of one image, (N, C) tokens with labels (N,), that end in one cluster."""
    members = {int(m): (label == m).nonzero().flatten().tolist() for m in label.unique()}
    merged = {m: {m} for m in members}
    limit = tolerance * scatter(tokens)
    while len(members) > 1:
        costs = {
            (a, b): scatter(tokens[members[a] + members[b]]) - scatter(tokens[members[a]]) - scatter(tokens[members[b]])
            for a in members
            for b in members
            if a < b
        }
        a, b = min(costs, key=costs.get)
        if costs[a, b] > limit:
            break
        members[a] += members.pop(b)
        merged[a] |= merged.pop(b)
    return list(merged.values())


def scatter(tokens: torch.Tensor) -> float:
    """Sum of the squared distances of tokens to their mean."""
    return float((tokens - tokens.mean(dim=0)).square().sum())
