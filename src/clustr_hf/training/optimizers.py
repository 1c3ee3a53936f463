# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Which parameters are trained, by which optimizer (AdamW or Muon, weight decay), and their moving average."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32, get_mixed_precision_context_manager
from torch import nn
from transformers import PreTrainedModel

from .arguments import LoopArguments


if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

# Matrices with fewer rows or columns, such as the predictors of single numbers, are not worth orthogonalizing.
MIN_MUON_SIDE = 4


def freeze_stages(model: PreTrainedModel, number: int) -> None:
    """Exclude the first stages of the backbone from training; the later stages and the head stay trainable."""
    stages = getattr(model.base_model, "stages", None)
    if stages is None:
        raise ValueError(f"--freeze_stages is for ClusTR models, got {type(model).__name__}")
    if number > len(stages):
        raise ValueError(f"--freeze_stages must be at most {len(stages)}, the number of stages, got {number}")
    for stage in stages[:number]:
        stage.requires_grad_(False)


def make_optimizer(model: nn.Module, args: LoopArguments) -> torch.optim.Optimizer:
    """
    The optimizer of a run, at the peak learning rate of `args`; the schedule sets the rate of every step.

    `adamw` is AdamW for all parameters. `muon` is timm's Muon (Jordan et al. 2024) for the matrices of the backbone:
    Nesterov momentum of 0.95, five Newton-Schulz steps, updates scaled to AdamW's average size. The other parameters
    are trained by its fallback NAdamW, AdamW with Nesterov momentum.
    """
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
    groups = parameter_groups(model, args.weight_decay, with_matrices=args.optimizer == "muon")
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings)
    from timm.optim import Muon

    return Muon(groups, nesterov=True, momentum=0.95, ns_steps=5, adjust_lr_fn="match_rms_adamw", **settings)


def parameter_groups(model: nn.Module, weight_decay: float, with_matrices: bool = False) -> list[dict[str, Any]]:
    """
    The trainable parameters in two groups, with weight decay and without: biases, norms and other vectors are not
    decayed. `with_matrices` puts the matrices of the backbone before them in a group of their own, for Muon.

    The order of the groups is part of every saved optimizer. `timm.optim.param_groups_weight_decay` makes the same
    groups, but reverses their order and leaves out empty ones, so that checkpoints could not be resumed.
    """
    decayed, undecayed, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim <= 1 or "relative_position_bias" in name:
            undecayed.append(parameter)
        elif with_matrices and _is_backbone_matrix(model, name, parameter):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    if not with_matrices:
        return groups
    return [
        {"params": matrices, "weight_decay": weight_decay},
        *({**group, "use_fallback": True} for group in groups),
    ]


def _is_backbone_matrix(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains a parameter: not the head, nor convolutions on pixels or on single channels."""
    return f"{model.base_model_prefix}." in name and min(parameter.shape[:2]) >= MIN_MUON_SIDE


def make_average(model: nn.Module, decay: float, accelerator: Accelerator) -> "ModelEmaV3":
    """
    Make an exponential moving average of the weights. The average is evaluated in the precision that Accelerate gives
    the models which it prepares.
    """
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(model, decay=decay, use_warmup=True)
    if accelerator.native_amp:
        autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
        average.module.forward = convert_outputs_to_fp32(autocast(average.module.forward))
    return average
