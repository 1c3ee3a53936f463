# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Score, number of clusters and time of a checkpoint with different settings, side by side on the same images."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from cluster_count.settings import Setting, clustered_blocks
from clustr_hf.remote_code.clustering_content_clustr import MergedClusters
from clustr_hf.remote_code.modeling_clustr_attention import ScaleClusters
from clustr_hf.training import Task
from clustr_hf.training.data.loaders import LoaderOptions, evaluation_loader


class Recorder:
    """What is recorded of one setting: records of the task, clusters of each image, seconds of each batch."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.records: list[tuple[int, Any]] = []
        self.clusters: list[int] = []
        self.seconds: list[float] = []


@torch.no_grad()
def measure(task: Task, settings: Sequence[Setting], batch_size: int) -> list[dict[str, Any]]:
    """
    Evaluate a model with several settings. Every batch is evaluated with all of them, in an order that changes from
    batch to batch, so that their times are comparable.

    Args:
        task ([`Task`]): Model and evaluation data.
        settings (`Sequence[Setting]`): The first one is the reference of the times.
        batch_size (`int`): Images of a batch.

    Returns:
        `list[dict]`: for each setting `kind` and `value`; `metrics` of the task; `clusters`, the mean number of
        clusters of an image, summed over blocks and scales, and `clusters_std`, its standard deviation between images;
        `milliseconds` per image, the median over the batches; `time`, the median ratio to the time of the first setting
        for the same batch, and `time_quartiles`, the quartiles of that ratio.
    """
    recorders = [Recorder(setting) for setting in settings]
    loader = evaluation_loader(task.eval_data, task.collate, batch_size, LoaderOptions())
    model = task.model.eval()
    for number, loaded in enumerate(tqdm(loader, desc="batches")):
        kept = (loaded["indices"] >= 0).tolist()
        turn = number % len(recorders)
        for recorder in [*recorders[turn:], *recorders[:turn]]:
            if number == 0:
                _evaluate(task, model, loaded["batch"], recorder.setting)  # warm-up
            predicted, clusters, seconds = _evaluate(task, model, loaded["batch"], recorder.setting)
            indices = loaded["indices"].tolist()
            recorder.records += [(i, record) for i, record in zip(indices, predicted, strict=True) if i >= 0]
            recorder.clusters += [number for number, is_kept in zip(clusters, kept) if is_kept]
            recorder.seconds.append(seconds / len(kept))
    return [_summarize(task, recorder, recorders[0]) for recorder in recorders]


def _evaluate(task: Task, model: PreTrainedModel, batch: dict, setting: Setting) -> tuple[list, list[int], float]:
    """Records of the task, the number of clusters of each image, and the seconds that the batch took."""
    setting.apply(model)
    with recorded_clusters(model) as found:
        start = time.perf_counter()
        records = task.predict(model, batch)
        seconds = time.perf_counter() - start
    return records, torch.stack([count(clusters) for clusters in found]).sum(dim=0).tolist(), seconds


@contextmanager
def recorded_clusters(model: PreTrainedModel) -> Iterator[list[ScaleClusters]]:
    """Within this context, the clusters of every block and scale are appended to a list."""
    found: list[ScaleClusters] = []
    with ExitStack() as hooks:
        for _, block in clustered_blocks(model):
            hook = block.attention.register_forward_hook(lambda module, inputs, output: found.extend(output[2]))
            hooks.callback(hook.remove)
        yield found


def count(clusters: ScaleClusters) -> torch.Tensor:
    """Number of clusters of each image, (B,)."""
    if isinstance(clusters, MergedClusters):
        return (clusters.num_merged > 0).sum(dim=1)
    return clusters.amax(dim=1) + 1


def _summarize(task: Task, recorder: Recorder, reference: Recorder) -> dict[str, Any]:
    ratios = [own / other for own, other in zip(recorder.seconds, reference.seconds)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    records = [record for _, record in sorted(recorder.records, key=lambda pair: pair[0])]
    return {
        "kind": recorder.setting.kind,
        "value": recorder.setting.value,
        "metrics": task.compute_metrics(records),
        "samples": len(records),
        "clusters": statistics.mean(recorder.clusters),
        "clusters_std": statistics.pstdev(recorder.clusters),
        "milliseconds": 1000 * statistics.median(recorder.seconds),
        "time": quartiles[1],
        "time_quartiles": [quartiles[0], quartiles[2]],
    }
