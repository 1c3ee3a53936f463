# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The measurement of the clustering alone."""

import argparse
from typing import Any

import torch

from benchmark.measurements.attempts import attempt, attempt_in_fresh_process
from benchmark.measurements.clusterings import CLUSTERINGS
from benchmark.measurements.inputs import benchmark_num_clusters, random_tokens
from benchmark.measurements.memory import clustering_memory
from benchmark.measurements.timing import interleaved_seconds, summarize
from clustr_hf.devices import (
    free_memory,
)


# Number of tokens up to which N x N matrices are built; with 20,000 tokens, each of the few matrices takes 1.6 GB.
MAX_DIRECT_TOKENS = 20_000
# Share of tokens that both clusterings must assign alike; rounding may swap centres of almost equal rank.
MIN_AGREEMENT = 0.98


def compare_clusterings(args: argparse.Namespace, num_tokens: int, channels: int) -> dict[str, Any]:
    """Time, memory and agreement of `find_clusters` and of the equations as written."""
    tokens = random_tokens(num_tokens, channels, args.seed).to(args.device)
    num_clusters = benchmark_num_clusters(num_tokens)
    agreement, failures = agreement_with_direct(tokens, num_clusters)
    names = list(CLUSTERINGS) if agreement is not None else ["find_clusters"]
    actions = {name: lambda cluster=CLUSTERINGS[name]: cluster(tokens, num_clusters) for name in names}
    description = f"{num_tokens}x{channels} clustering"
    rounds = max(1, args.repeats)
    seconds, failed = interleaved_seconds(actions, rounds, args.warmup, args.seed, args.device, description)
    failures |= failed
    memory: dict[str, dict[str, int | None] | None] = dict.fromkeys(CLUSTERINGS)
    for name in seconds:
        settings = (name, num_tokens, channels, args.device, args.seed)
        memory[name], failure = attempt_in_fresh_process(clustering_memory, *settings)
        failures |= {f"memory of {name}": failure} if failure is not None else {}
    return {
        "tokens": num_tokens,
        "channels": channels,
        "num_clusters": num_clusters,
        "algorithms": summarize(seconds, names[-1], batch=1),
        "agreement": agreement,
        "memory": memory,
        "seconds": seconds,
        "failures": failures,
    }


def agreement_with_direct(tokens: torch.Tensor, num_clusters: list[int]) -> tuple[float | None, dict[str, str]]:
    """Share of equal labels, or `None` if N x N matrices do not fit; and the failures."""
    num_tokens = tokens.shape[1]
    if num_tokens > MAX_DIRECT_TOKENS:
        matrix = 4 * num_tokens**2 / 1e9
        print(f"{num_tokens} tokens: direct transcription skipped, each of its matrices would take {matrix:.0f} GB")
        return None, {}
    ours = CLUSTERINGS["find_clusters"](tokens, num_clusters)
    direct, failure = attempt(CLUSTERINGS["direct"], tokens, num_clusters)
    if failure is not None:
        free_memory(tokens.device)
        return None, {"direct": failure}
    agreement = (torch.stack(ours) == torch.stack(direct)).double().mean().item()
    if agreement < MIN_AGREEMENT:
        raise RuntimeError(
            f"find_clusters and the direct transcription must agree on {MIN_AGREEMENT:.0%} of the tokens, "
            f"got {agreement:.1%} of {num_tokens}"
        )
    return agreement, {}
