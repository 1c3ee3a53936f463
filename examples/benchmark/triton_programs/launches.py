# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The kernel launches of clustering and aggregation, recorded without a GPU."""

from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.compiler import ASTSource

from clustr_hf.remote_code import clustering_triton_clustr, clustering_triton_merge_clustr
from clustr_hf.remote_code.clustering_triton_launches_clustr import choose_launch, launches_of, load_kernels


POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}


class KernelLaunch(NamedTuple):
    """A kernel with the types of its arguments and its constants, as Triton compiles it."""

    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]

    def source(self) -> ASTSource:
        kernel = getattr(load_kernels(), self.name)
        positions = {name: (position,) for position, name in enumerate(kernel.arg_names)}
        aligned = {positions[name]: [["tt.divisibility", 16]] for name, kind in self.signature if kind.startswith("*")}
        constants = {positions[name]: value for name, value in self.constants}
        return ASTSource(kernel, dict(self.signature), constants, aligned)


class Recorder:
    """Replaces the module of kernels: counts launches and records each distinct one, without running any."""

    def __init__(self):
        self.kernels = load_kernels()
        self.tl = self.kernels.tl
        self.launches: dict[KernelLaunch, None] = {}
        self.number = 0

    def __getattr__(self, name: str):
        kernel = getattr(self.kernels, name)

        class Launcher:
            def __getitem__(_, grid):
                return lambda *args, **settings: self._record(name, kernel, args, settings)

        return Launcher()

    def _record(self, name: str, kernel, args: tuple, settings: dict[str, Any]):
        self.number += 1
        options = tuple((key, settings.pop(key)) for key in ("num_warps", "num_stages") if key in settings)
        values = {**dict(zip(kernel.arg_names, args)), **settings}
        constant = {key for key, kind in kernel.fn.__annotations__.items() if kind is self.tl.constexpr}
        constant |= {key for key, value in values.items() if value is None}
        signature = tuple(
            (key, "constexpr" if key in constant else _type_name(values[key])) for key in kernel.arg_names
        )
        constants = tuple((key, values[key]) for key in kernel.arg_names if key in constant)
        self.launches[KernelLaunch(name, signature, constants, options)] = None


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def record_launches(target: str, channels: int, dtype: torch.dtype, num_neighbors: int = 5) -> list[KernelLaunch]:
    """All launches of clustering and aggregation on a chip, for tokens with `channels` channels."""
    tokens = torch.empty(2, 3136, channels, dtype=dtype, device="meta")
    launch = choose_launch(launches_of(target, target), 8 * tokens.element_size(), channels)
    weight = torch.empty(2, 3136, device="meta")
    recorder = Recorder()
    with (
        mock.patch.object(clustering_triton_clustr, "load_kernels", lambda: recorder),
        mock.patch.object(clustering_triton_merge_clustr, "load_kernels", lambda: recorder),
    ):
        for assignment in ("density_parent", "nearest_center"):
            clustering_triton_clustr.cluster(tokens, [49, 196], num_neighbors, assignment, launch)
        cluster_index = torch.empty(2, 3136, dtype=torch.long, device="meta")
        merged, weight_sum = clustering_triton_merge_clustr.launch_merge(tokens, weight, cluster_index, 49, 1e-6)
        arguments = (tokens, weight, cluster_index, merged, weight_sum, merged, 1e-6)
        clustering_triton_merge_clustr.launch_merge_gradients(*arguments)
    return list(recorder.launches)
