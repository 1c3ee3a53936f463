# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Arguments that select a model; loads a checkpoint or a new model with a head for given classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from .. import ClusTRConfig
from ..loading import naming_unreadable_weights
from .checksums import warn_of_changed_weights
from .data.class_names import FLAG, KnownNames, are_placeholders, differ_only_in_repeated, names_of


def parse_overrides(overrides: dict | str | None) -> dict | None:
    """The value of `--config_overrides`; raises a `ValueError` unless it is a JSON object."""
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except ValueError as error:
            raise ValueError(f"--config_overrides is not valid JSON: {error}") from error
    if not isinstance(overrides, dict | None):
        raise ValueError(f"--config_overrides must be a JSON object, got {overrides}")
    return overrides


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to fine-tune or evaluate. Default: none; --variant is trained from random weights."
        },
    )
    variant: str = field(
        default="nano",
        metadata={"help": "Size of a new model: tiny, small, base or nano; see `ClusTRConfig.from_variant`."},
    )
    config_overrides: dict | str | None = field(
        default=None, metadata={"help": "Fields of the configuration to change, as a JSON object."}
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": (
                "Configuration to load in place of the checkpoint's own. Without a checkpoint, a new model with this "
                "configuration is trained; for classification and segmentation, any model of transformers."
            )
        },
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Image processor to load in place of the checkpoint's own."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Image size in pixels. Default: the checkpoint's, or the paper's."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention function, sdpa or eager (faster in bf16 on CPUs). Default: chosen by transformers."
        },
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for downloads. Default: the cache of the Hugging Face libraries."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(
        default=None, metadata={"help": "Access token for the Hub. Default: the token saved by `hf auth login`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code from the checkpoint's repository."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Whether to train a new head if the checkpoint's classes differ from the data's."},
    )

    def __post_init__(self):
        self.config_overrides = parse_overrides(self.config_overrides)
        if self.model_name_or_path is None and self.config_name is None:
            self._check_overrides(ClusTRConfig())
            ClusTRConfig.from_variant(self.variant, **(self.config_overrides or {}))

    def override(self, config: PreTrainedConfig, **fields: Any) -> PreTrainedConfig:
        """
        A copy of a configuration with other fields; `--config_overrides` has precedence over `fields`.

        Raises:
            ValueError: if `--config_overrides` names an unknown field, a value is invalid, or the configuration is not
                ClusTR's and lacks one of `fields` that is not None.
        """
        self._check_overrides(config)
        missing = sorted(name for name, value in fields.items() if value is not None and not hasattr(config, name))
        if missing and config.model_type != ClusTRConfig.model_type:
            raise ValueError(f"{type(config).__name__} does not have the fields {missing}, which the arguments set")
        overrides = self.config_overrides or {}
        return type(config).from_dict({**config.to_dict(), **fields, **overrides})

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that locate a checkpoint."""
        return {**self.download_arguments, "revision": self.model_revision, "trust_remote_code": self.trust_remote_code}

    @property
    def download_arguments(self) -> dict[str, Any]:
        """Arguments of all downloads, of checkpoints and of data sets."""
        return {"cache_dir": self.cache_dir, "token": self.token}

    def load_processor(self) -> Any:
        """The image processor of the checkpoint, or of `--image_processor_name`."""
        return AutoImageProcessor.from_pretrained(
            self.image_processor_name or self.model_name_or_path, **self.hub_arguments
        )

    def choose_processor(self, new: Any) -> Any:
        """The image processor of a new model: that of `--image_processor_name`, or else `new`."""
        return new if self.image_processor_name is None else self.load_processor()

    def _check_overrides(self, config: PreTrainedConfig):
        unknown = sorted(set(self.config_overrides or {}) - set(config.to_dict()))
        if unknown:
            raise ValueError(f"--config_overrides names {unknown}, which are no fields of {type(config).__name__}")

    def choose_attention(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model, with the attention function of `--attn_implementation` if that is given."""
        if self.attn_implementation is not None:
            model.set_attn_implementation(self.attn_implementation)
        return model


@dataclass
class RecipeArguments:
    """Regularisation."""

    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "Stochastic depth rate of the last block. Default: the configuration's."},
    )

    def config_fields(self) -> dict[str, Any]:
        """Fields of the configuration that the recipe sets."""
        return {} if self.drop_path_rate is None else {"drop_path_rate": self.drop_path_rate}


def name_labels(labels: list[str]) -> dict[str, dict]:
    """`id2label` and `label2id` of a configuration."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def head_name(model_class: type[PreTrainedModel]) -> str:
    """The part of a model's class name that all classes with the same head have in common."""
    return model_class.__name__.removeprefix("ClusTR")


def has_head(config: PreTrainedConfig, heads: Sequence[str]) -> bool:
    """Whether a checkpoint's architecture has one of the given heads; true if the configuration names none."""
    architectures = config.architectures or heads
    return any(head in architecture for head in heads for architecture in architectures)


def set_memory_options(model: torch.nn.Module, gradient_checkpointing: bool, channels_last: bool) -> None:
    """Apply `--gradient_checkpointing` and `--channels_last` to a model, in place."""
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if channels_last:  # convolutions follow the format of their weights, whatever that of the images is
        model.to(memory_format=torch.channels_last)


def is_clustr(model: PreTrainedModel) -> bool:
    """Whether a model is a ClusTR, whose folder the package completes with a card and a handler."""
    return model.config.model_type == ClusTRConfig.model_type


def require_clustr(model: PreTrainedModel, argument: str) -> None:
    """Raise a `ValueError` that names an argument unless the model is a ClusTR."""
    if not is_clustr(model):
        raise ValueError(f"--{argument} is for ClusTR models, got {type(model).__name__}")


def load_model(
    args: ModelArguments,
    labels: list[str],
    model_class: type[PreTrainedModel],
    auto_class: type,
    processor: Any,
    **fields: Any,
) -> tuple[PreTrainedModel, Any]:
    """
    A model with a head for the labels, and its image processor.

    Args:
        args: The checkpoint; without one, the weights are random.
        labels (`list[str]`): Class names.
        model_class, auto_class (`type`): Class of a new ClusTR, and the auto class of checkpoints and other models.
        processor: Image processor of a new model.
        fields: Fields of the configuration; `--config_overrides` has precedence.

    Raises:
        ValueError: if the checkpoint has a head for other classes, or for the same classes in another order, and
            `--ignore_mismatched_sizes` is not given.
    """
    fields = {**name_labels(labels), **fields}
    if args.model_name_or_path is None:
        model = _make_model(args, model_class, auto_class, fields)
        return args.choose_attention(model), args.choose_processor(processor)
    saved = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **args.hub_arguments)
    model = load_weights(args, labels, [head_name(model_class)], auto_class, args.override(saved, **fields), saved)
    return args.choose_attention(model), args.load_processor()


def _make_model(
    args: ModelArguments, model_class: type[PreTrainedModel], auto_class: type, fields: dict[str, Any]
) -> PreTrainedModel:
    """A model with random weights in float32: of `--config_name`, or ClusTR of `--variant`."""
    if args.config_name is None:
        settings = {**fields, **(args.config_overrides or {})}
        return model_class(ClusTRConfig.from_variant(args.variant, **settings))
    config = args.override(AutoConfig.from_pretrained(args.config_name, **args.hub_arguments), **fields)
    return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=args.trust_remote_code)


def load_weights(
    args: ModelArguments,
    labels: list[str],
    heads: Sequence[str],
    auto_class: type,
    config: PreTrainedConfig,
    saved: PreTrainedConfig,
) -> PreTrainedModel:
    """
    The checkpoint's weights, in float32, in a model of another configuration, with a new head if the checkpoint's head
    is for other classes.

    Args:
        args: The checkpoint.
        labels (`list[str]`): Class names.
        heads (`Sequence[str]`): As in [`has_head`].
        auto_class (`type`): Class that loads the checkpoint.
        config, saved (`PreTrainedConfig`): Configurations of the model and of the checkpoint.
    """
    source = f"the checkpoint {args.model_name_or_path}"
    warn_of_changed_weights(Path(args.model_name_or_path))
    names = names_of(saved, source) if has_head(saved, heads) else []
    is_same = names == labels or differ_only_in_repeated(names, labels)
    is_other = bool(names) and not is_same and not (are_placeholders(names) and len(names) == len(labels))
    if is_other and (not args.ignore_mismatched_sizes or set(names) == set(labels)):
        raise ValueError(KnownNames(names, source).refusal(labels))
    try:
        with naming_unreadable_weights("--model_name_or_path", args.model_name_or_path):
            model = auto_class.from_pretrained(
                args.model_name_or_path,
                config=config,
                dtype=torch.float32,  # by default, half-precision weights would be trained in half precision
                ignore_mismatched_sizes=args.ignore_mismatched_sizes,
                **args.hub_arguments,
            )
    except RuntimeError as error:
        if FLAG.removeprefix("--") not in str(error):
            raise
        raise ValueError(
            f"weights of {source} differ in shape from the model's for {len(labels)} classes: {FLAG} trains new ones"
        ) from error
    # The shapes do not reveal other classes of the same number.
    return replace_head(model, labels) if is_other and len(names) == len(labels) else model


def replace_head(model: PreTrainedModel, labels: list[str]) -> PreTrainedModel:
    """Reinitialise all parameters whose shapes depend on the number of classes."""
    fields = model.config.to_dict()
    if "semantic_class_weights" in fields:  # their number must match the number of classes
        fields["semantic_class_weights"] = None
    larger = type(model.config).from_dict({**fields, **name_labels([*labels, "one more"])})
    shapes = {name: weight.shape for name, weight in type(model)(larger).state_dict().items()}
    kept = {name: weight for name, weight in model.state_dict().items() if weight.shape == shapes[name]}
    fresh = type(model)(model.config).to(model.dtype)
    fresh.load_state_dict(kept, strict=False)
    return fresh
