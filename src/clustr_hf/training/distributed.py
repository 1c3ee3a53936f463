# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Distributed training: the [`Accelerator`] of a run, workarounds for DDP and FSDP2, and decisions that all processes
share.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.functional import batch_norm
from transformers.utils.logging import disable_progress_bar

from .arguments import LoopArguments


logger = get_logger(__name__)


def make_accelerator(args: LoopArguments) -> Accelerator:
    """
    Make the `Accelerator` of a run and configure logging. Several processes and FSDP work on CPUs as they do on GPUs.

    Raises:
        ValueError: if the package of a tracker in `args.report_to` is missing.
    """
    for tracker in args.report_to or []:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"--report_to {tracker} needs the package: pip install {tracker}")
    _configure_logging()
    accelerator = Accelerator(
        log_with=args.report_to,
        project_dir=args.output_dir,
        mixed_precision=args.mixed_precision,
        cpu=not torch.accelerator.is_available(),  # required for several processes on CPUs
    )
    if accelerator.device.type == "cpu":
        _enable_fsdp_on_cpus(accelerator)
        if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            logger.warning(
                "`accelerate launch --cpu` starts one process and ignores --num_processes; to start several: "
                "--config_file examples/accelerate/ddp_cpu.yaml"
            )
    _keep_output_precision(accelerator)
    return accelerator


def _configure_logging():
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    for library in ("accelerate", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    disable_progress_bar()  # transformers shows one for every model that is saved


def _enable_fsdp_on_cpus(accelerator: Accelerator):
    """Enable FSDP2 on CPUs, where the tests run it: torch supports it there, Accelerate 1.15 ignores the setting."""
    is_requested = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if is_requested and accelerator.distributed_type == DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
            state._shared_state["fsdp_plugin"] = plugin


def _keep_output_precision(accelerator: Accelerator):
    """Keep FSDP from casting outputs, such as boxes and losses in float32, to half precision."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None and plugin.fsdp_version == 2:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def uses_fsdp(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def check_fsdp_arguments(args: LoopArguments) -> None:
    """Raise a `ValueError` for an argument that needs whole weights in their own format, which FSDP shards."""
    given = {"ema_decay": args.ema_decay is not None, "optimizer muon": args.optimizer == "muon"}
    for name, is_given in (given | {"channels_last": args.channels_last}).items():
        if is_given:
            raise ValueError(f"--{name} does not work with FSDP, which shards the weights: use DDP")


def synchronize_batch_norms(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """
    Compute the statistics of batch norms over the images of all GPUs, since one GPU has too few images. CPU processes
    keep their own statistics, since torch has no synchronized batch norm for CPUs.
    """
    if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def fix_batch_norms_of_fsdp(model: nn.Module) -> None:
    """
    Run batch norms in float32 under FSDP. FSDP casts their weights to half precision but not their statistics, and
    torch's batch norm requires one precision for both.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.forward = functools.partial(_normalize_in_float32, module)


def _normalize_in_float32(norm: nn.modules.batchnorm._BatchNorm, features: torch.Tensor) -> torch.Tensor:
    weight, bias = norm.weight.float(), norm.bias.float()
    if norm.training:
        norm.num_batches_tracked.add_(1)
    statistics = (norm.running_mean, norm.running_var)
    normalized = batch_norm(features.float(), *statistics, weight, bias, norm.training, norm.momentum, norm.eps)
    return normalized.to(features.dtype)


def local_shard(parameter: nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this process holds: all of it, except with FSDP."""
    return getattr(parameter, "_local_tensor", parameter)


def broadcast_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace the buffers of all processes, such as statistics of batch norms, by those of the main process."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def is_main_process() -> bool:
    """Whether this is the only process or the first one, for code that has no `Accelerator`."""
    return int(os.environ.get("RANK", 0)) == 0


def decided_by_main_process(decide: Callable[[], Any]) -> Any:
    """Return or raise in all processes what `decide` returns or raises in the main process. All must call it."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return decide()
    answer = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = decide()
        except Exception as error:  # raised in all processes below; the others would otherwise wait for an answer
            answer[1] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
