# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Fit the attention of a converted model to that of its source, on images without labels.

Two steps, both in minutes: the key and value projections of every block by least squares; then, by gradient descent,
all that reduces the tokens, so that the output of each attention equals the source's. Both learn every block
separately, on the tokens that the source's attention sees, as attention transfer does for linear attention (LoLCATs,
Zhang et al. 2024). `recorded_attention.py` records those tokens.

Shapes: B images, N tokens, C channels, M cluster tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..remote_code.clustering_clustr import aggregate_tokens
from ..remote_code.modeling_clustr_attention import ClusTRAttention
from .recorded_attention import Place, Recording, paired_attentions, record_attentions


# Weight of the initial projection in the least squares, relative to the mean square of the cluster tokens: with few
# images, directions that they do not show keep the source's weights.
PRIOR_WEIGHT = 1e-4
# Parameters of an attention that the transfer trains: all that reduces the tokens, and on request the queries.
TRANSFERRED = ("kv_projs", "token_weight")
QUERIES = "q_proj"

Errors = dict[Place, float]


@dataclass
class CalibrationReport:
    """
    The model after each step of a calibration: `"as converted"`, `"least squares"` and `"transfer"`, if there is one.

    Args:
        errors (`dict[str, dict]`):
            For each step and (stage, block), counted from 0: the squared difference between the outputs of both
            attentions, relative to the variance of the source's output. 0 is exact, 1 is as good as a constant.
        scores (`dict[str, Any]`): For each step, what `evaluate` returned; empty without it.
    """

    errors: dict[str, Errors] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def as_table(self) -> str:
        """The errors as a Markdown table with one row per block."""
        lines = [f"| stage, block | {' | '.join(self.errors)} |", "| --- " * (len(self.errors) + 1) + "|"]
        for stage, block in next(iter(self.errors.values()), {}):
            values = " | ".join(f"{errors[stage, block]:.3f}" for errors in self.errors.values())
            lines.append(f"| {stage + 1}, {block + 1} | {values} |")
        return "\n".join(lines)


def calibrate(
    model: PreTrainedModel,
    source: PreTrainedModel,
    pixel_values: torch.Tensor,
    eval_pixel_values: torch.Tensor | None = None,
    num_steps: int = 0,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    train_queries: bool = False,
    seed: int = 0,
    evaluate: Callable[[PreTrainedModel], Any] | None = None,
    show_progress: bool = True,
) -> CalibrationReport:
    """
    Fit the attention of a converted model to that of its source. Only weights of the attention change.

    The fit uses N / lambda clusters; a model with `cluster_count="content"` has as many as its images need afterwards.

    Args:
        model (`PreTrainedModel`):
            As [`convert_grid_backbone`] returns it, with `attention_type="clustered"` and in float32; changed in place.
        source (`PreTrainedModel`): The model that it was converted from, on the same device.
        pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): Normalised images, a few hundred of them.
        eval_pixel_values (`torch.Tensor` of the same kind, *optional*):
            Other images, on which the errors are measured. Default: the images of the calibration.
        num_steps (`int`, defaults to 0): Number of steps of the transfer by gradient descent; 0 leaves it out.
        batch_size (`int`, defaults to 16): Number of images of a step, and of a forward pass.
        learning_rate (`float`, defaults to 1e-3): Peak learning rate of the transfer (Adam, decayed by a cosine).
        train_queries (`bool`, defaults to `False`): Whether the transfer also trains the query projections.
        seed (`int`, defaults to 0): Seed of the order of the images.
        evaluate (`Callable[[PreTrainedModel], Any]`, *optional*): Called with the model after each step.
        show_progress (`bool`, defaults to `True`): Whether to show progress bars.

    Returns:
        [`CalibrationReport`].

    Raises:
        ValueError: for a model that was not converted from the source, is not clustered or not in float32, and for
            images that are not a tensor of at least one image, or a batch size below 1.
        FloatingPointError: if the transfer diverges.
    """
    _check(model, source)
    _check_images("pixel_values", pixel_values)
    if eval_pixel_values is not None:
        _check_images("eval_pixel_values", eval_pixel_values)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    held_out = pixel_values if eval_pixel_values is None else eval_pixel_values
    pairs = paired_attentions(model, source)
    batches = _Batches(source, pairs, batch_size, show_progress)
    report = CalibrationReport()

    def describe(step: str):
        report.errors[step] = _measure(batches, held_out)
        if evaluate is not None:
            report.scores[step] = evaluate(model)

    with _in_evaluation(model, source), _same_number_of_clusters(model):
        describe("as converted")
        _fit_keys_and_values(batches, pixel_values)
        describe("least squares")
        if num_steps > 0:
            _transfer(batches, pixel_values, num_steps, learning_rate, train_queries, seed)
            describe("transfer")
    return report


@contextmanager
def _same_number_of_clusters(model: PreTrainedModel) -> Iterator[None]:
    """A context with `cluster_count="ratio"`: padded keys must not take part in the fit of keys and values."""
    config = model.config
    tolerance = config.cluster_tolerance if config.cluster_count == "content" else None
    try:
        model.set_cluster_budget(None)
        yield
    finally:
        model.set_cluster_budget(tolerance)


@contextmanager
def _in_evaluation(*models: PreTrainedModel) -> Iterator[None]:
    """A context with the models in evaluation mode."""
    before = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, training in zip(models, before):
            model.train(training)


def _check(model: PreTrainedModel, source: PreTrainedModel) -> None:
    if getattr(model.config, "attention_type", None) != "clustered":
        raise ValueError(f"`model` must be a ClusTR model with clustered attention, got {type(model).__name__}.")
    if model.dtype != torch.float32 or source.dtype != torch.float32:
        raise ValueError(f"`model` and `source` must be in float32, got {model.dtype} and {source.dtype}.")


def _check_images(name: str, pixel_values: torch.Tensor) -> None:
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or len(pixel_values) == 0:
        got = tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
        raise ValueError(f"`{name}` must be a tensor (B, channels, H, W) of at least one image, got {got}.")


class _Batches:
    """The recordings of the source's attention, batch by batch."""

    def __init__(self, source: PreTrainedModel, pairs: Mapping, batch_size: int, show_progress: bool):
        self.source, self.pairs, self.batch_size, self.show_progress = source, pairs, batch_size, show_progress

    def record(self, pixel_values: torch.Tensor) -> Iterator[tuple[Place, ClusTRAttention, Recording]]:
        """For each block: its place, our attention, and what the source's attention received and returned."""
        recordings = record_attentions(self.source, self.pairs, pixel_values)
        shared: dict[int, tuple[torch.Tensor, ...]] = {}
        for place, pair in self.pairs.items():
            recording = recordings[place]
            recording.cluster_index = shared.get(place[0]) if pair.shares_clusters else None
            if recording.cluster_index is None:
                recording.cluster_index = pair.find_clusters(recording)
            shared[place[0]] = recording.cluster_index
            yield place, pair.ours, recording

    def in_order(self, pixel_values: torch.Tensor, description: str) -> Iterator[torch.Tensor]:
        starts = range(0, len(pixel_values), self.batch_size)
        for start in tqdm(starts, desc=description, mininterval=1, disable=not self.show_progress):
            yield pixel_values[start : start + self.batch_size]

    def at_random(self, pixel_values: torch.Tensor, number: int, seed: int) -> Iterator[torch.Tensor]:
        """`number` batches; every image occurs once before one occurs again."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64, device="cpu")
        for _ in tqdm(range(number), desc="attention transfer", mininterval=1, disable=not self.show_progress):
            while len(order) < self.batch_size:
                order = torch.cat([order, torch.randperm(len(pixel_values), generator=generator, device="cpu")])
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            yield pixel_values[chosen.to(pixel_values.device)]


@torch.no_grad()
def _measure(batches: _Batches, pixel_values: torch.Tensor) -> Errors:
    """Squared errors of each attention, relative to the variance of the source's output."""
    errors, variances = dict.fromkeys(batches.pairs, 0.0), dict.fromkeys(batches.pairs, 0.0)
    for images in batches.in_order(pixel_values, "attention errors"):
        for place, attention, recording in batches.record(images):
            output = attention(recording.tokens, recording.size, recording.cluster_index)[0]
            errors[place] += (output - recording.output).square().sum().item()
            variances[place] += _deviation(recording.output).square().sum().item()
    return {place: errors[place] / max(variances[place], 1e-12) for place in errors}


def _deviation(output: torch.Tensor) -> torch.Tensor:
    """The difference of an output (B, N, C) from the mean of each channel."""
    return output - output.mean(dim=(0, 1))


class _LeastSquares:
    """Least squares of targets (..., 2C) from inputs (..., C) for a linear layer, by normal equations in float64."""

    def __init__(self, projection: nn.Linear):
        self.projection = projection
        self.squares = self.products = 0.0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor):
        inputs, targets = (_in_float64(tokens.flatten(0, -2)) for tokens in (inputs, targets))
        if self.projection.bias is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        self.squares = self.squares + inputs.T @ inputs
        self.products = self.products + inputs.T @ targets

    def solve(self) -> None:
        """Replace the weights of the layer; what the inputs do not determine stays as it is."""
        parameters = [part for part in (self.projection.weight, self.projection.bias) if part is not None]
        initial = torch.cat([_in_float64(part.reshape(len(part), -1)) for part in parameters], dim=1).T
        diagonal = self.squares.diagonal()
        prior = torch.diag_embed(PRIOR_WEIGHT * diagonal.mean() * torch.ones_like(diagonal))
        change = torch.linalg.solve(self.squares + prior, self.products - self.squares @ initial)
        solution = (initial + change).T
        for parameter, part in zip(parameters, (solution[:, : self.projection.in_features], solution[:, -1])):
            parameter.copy_(part)


def _in_float64(values: torch.Tensor) -> torch.Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()  # Apple's GPUs have no float64


@torch.no_grad()
def _fit_keys_and_values(batches: _Batches, pixel_values: torch.Tensor) -> None:
    """
    Fit each `kv_projs`: from the token of a cluster, predict the mean of its tokens' keys and values. Those of a token
    are the ones that the source computes for its cell.
    """
    fits = {place: [_LeastSquares(each) for each in pair.ours.kv_projs] for place, pair in batches.pairs.items()}
    for images in batches.in_order(pixel_values, "least squares"):
        for place, attention, recording in batches.record(images):
            counts = attention._count_clusters(recording.tokens.shape[1])
            merged = attention._merge_tokens(recording.tokens, recording.size, recording.cluster_index, counts)
            for scale, tokens in enumerate(merged):
                targets = recording.keys_and_values
                if tokens.shape[1] < targets.shape[1]:
                    targets = aggregate_tokens(targets, recording.cluster_index[scale], tokens.shape[1])
                fits[place][scale].add(tokens, targets)
    for fit in (fit for of_block in fits.values() for fit in of_block):
        fit.solve()


def _transfer(
    batches: _Batches, pixel_values: torch.Tensor, num_steps: int, learning_rate: float, train_queries: bool, seed: int
) -> None:
    """Train the attention of every block to return what the source's attention returns for the same tokens."""
    names = (*TRANSFERRED, QUERIES) if train_queries else TRANSFERRED
    modules = [getattr(pair.ours, name) for pair in batches.pairs.values() for name in names]
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    if not parameters:
        return
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with _only_trained([pair.ours for pair in batches.pairs.values()], parameters), torch.enable_grad():
        for images in batches.at_random(pixel_values, num_steps, seed):
            for _, attention, recording in batches.record(images):
                output = attention(recording.tokens, recording.size, recording.cluster_index)[0]
                variance = _deviation(recording.output).square().mean().clamp(min=1e-12)
                ((output - recording.output).square().mean() / variance).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise FloatingPointError(f"the transfer diverged: `learning_rate` must be lower, got {learning_rate}.")


@contextmanager
def _only_trained(modules: list[nn.Module], parameters: list[nn.Parameter]) -> Iterator[None]:
    """A context in which only the given parameters of the modules require gradients."""
    before = {parameter: parameter.requires_grad for module in modules for parameter in module.parameters()}
    chosen = set(parameters)
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for parameter, requires_grad in before.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
