# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Where the data and the model of a task come from: the arguments that all scripts share, and what loads them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute
from datasets import Dataset, DatasetDict, Image
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from .. import ClusTRConfig
from ..loading import naming_unreadable_weights
from .arguments import LoopArguments
from .checkpoints import TrainingState, find_checkpoint
from .checksums import warn_of_changed_weights
from .data.class_names import FLAG, KnownNames, are_placeholders, names_of
from .data.labelled_rows import Labels, load_parts, match_classes


# The arguments that say where images are, by the kind of the source.
SOURCES = {
    "--dataset_name": ("dataset_name",),
    "--train_dir or --validation_dir": ("train_dir", "validation_dir"),
    "--train_file or --validation_file": ("train_file", "validation_file"),
}


@dataclass
class SourceArguments:
    """Which images to train and evaluate on."""

    # Whether the validation data are a part of the training data, as `load_splits` finds; no annotation, no argument.
    holds_back = False

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with the training images."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_file: str | None = field(default=None, metadata={"help": "Parquet file with the training rows."})
    validation_file: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share to split off where there is no validation."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many shuffled validation images."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    exclude_train_names: str | None = field(
        default=None,
        metadata={"help": "Leave out training images whose file name matches this regular expression."},
    )

    def __post_init__(self):
        check_pattern(self.exclude_train_names)
        given = [kind for kind, names in SOURCES.items() if any(getattr(self, name) is not None for name in names)]
        if len(given) > 1:
            raise ValueError(f"the data must come from one of a data set, folders and files, got {' and '.join(given)}")

    def check_training(self):
        """Raise a `ValueError` unless there is something to train on."""
        if self.dataset_name is None and self.train_dir is None and self.train_file is None:
            raise ValueError("one of --dataset_name, --train_dir, --train_file is needed, got none")

    def leave_training_out(self):
        """
        Forget what to train on, unless the validation data are a part of it.

        Raises:
            ValueError: if there is nothing to evaluate on.
        """
        if all(getattr(self, name) is None for names in SOURCES.values() for name in names):
            raise ValueError(
                "data to evaluate on are needed: --dataset_name, --validation_dir or --validation_file, got none"
            )
        self.exclude_train_names = self.max_train_samples = None
        if self.validation_dir is not None or self.validation_file is not None:
            self.train_dir = self.train_file = None


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to fine-tune; without it, --variant is trained from random weights."},
    )
    variant: str = field(default="nano", metadata={"help": "tiny, small, base or nano, see ClusTRConfig.from_variant."})
    config_overrides: dict | str | None = field(
        default=None, metadata={"help": "Fields of the configuration to change, as a JSON object."}
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if not the checkpoint's own."})
    image_processor_name: str | None = field(default=None, metadata={"help": "Processor, if not the checkpoint's own."})
    image_size: int | None = field(
        default=None, metadata={"help": "Size of the images in pixels; default: the checkpoint's, or the paper's."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa or eager; on CPUs, eager is faster in bf16. Default: transformers'."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep downloads."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Hub token; default is the one of `hf auth login`."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code in the checkpoint's repository."})
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Train a new head if the checkpoint's classes differ from the data's."},
    )

    def __post_init__(self):
        if isinstance(self.config_overrides, str):
            try:
                self.config_overrides = json.loads(self.config_overrides)
            except ValueError as error:
                raise ValueError(f"--config_overrides is not valid JSON: {error}") from error
        if not isinstance(self.config_overrides, dict | None):
            raise ValueError(f"--config_overrides must be a JSON object, got {self.config_overrides}")
        if self.model_name_or_path is None:
            self._check_overrides(ClusTRConfig())
            ClusTRConfig.from_variant(self.variant, **(self.config_overrides or {}))

    def override(self, config: PreTrainedConfig, **fields: Any) -> PreTrainedConfig:
        """
        A configuration with other fields, those of `--config_overrides` last.

        Raises:
            ValueError: if `--config_overrides` has a field that the configuration has not, or a value does not fit.
        """
        self._check_overrides(config)
        overrides = self.config_overrides or {}
        return type(config).from_dict({**config.to_dict(), **fields, **overrides})

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is told about where a checkpoint is."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    def load_processor(self):
        """The image processor of the checkpoint, or of `--image_processor_name`."""
        return AutoImageProcessor.from_pretrained(
            self.image_processor_name or self.model_name_or_path, **self.hub_arguments
        )

    def _check_overrides(self, config: PreTrainedConfig):
        unknown = sorted(set(self.config_overrides or {}) - set(config.to_dict()))
        if unknown:
            raise ValueError(f"--config_overrides names {unknown}, which are no fields of {type(config).__name__}")

    def choose_attention(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model, with the attention function of `--attn_implementation`, if that is given."""
        if self.attn_implementation is not None:
            model.set_attn_implementation(self.attn_implementation)
        return model


@dataclass
class RecipeArguments:
    """Regularisation."""

    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last block."})

    def config_fields(self) -> dict[str, Any]:
        """Fields of the configuration that the recipe sets."""
        return {} if self.drop_path_rate is None else {"drop_path_rate": self.drop_path_rate}


def load_splits(
    args: SourceArguments,
    model_args: ModelArguments,
    seed: int,
    load_folders: Callable[[dict[str, str]], DatasetDict],
    labels: Labels | None = None,
    known: KnownNames | None = None,
) -> DatasetDict:
    """
    Training and validation split of a Hub data set, parquet files or folders; only the latter if nothing else is named.

    Args:
        args, model_args: What to load, and where downloads are kept.
        seed (`int`): Of the split.
        load_folders (`Callable[[dict[str, str]], DatasetDict]`): Folder of each split -> its rows.
        labels ([`Labels`], *optional*): Where the rows have ids of classes. In all splits that are returned these count
            in one list of names.
        known ([`KnownNames`], *optional*): The classes of the checkpoint that is trained further or evaluated.

    Raises:
        ValueError: if there is neither a validation split nor a training split to take it from, or the names of the
            classes cannot be matched.
    """
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    if args.dataset_name is not None:
        parts = load_parts(args.dataset_name, args.dataset_config_name, **hub)
    elif args.train_file is not None or args.validation_file is not None:
        parts = load_parts("parquet", data_files=by_split(args.train_file, args.validation_file), **hub)
    else:
        parts = {split: [rows] for split, rows in load_folders(by_split(args.train_dir, args.validation_dir)).items()}
    data = DatasetDict(match_classes(parts, labels, known))
    if "validation" not in data:  # never the test split: checkpoints are chosen by the validation split
        if "train" not in data:
            raise ValueError(f"the data must have a split `validation` or `train`, got {sorted(data)}")
        args.holds_back = True
        split = data["train"].train_test_split(args.train_val_split, seed=seed)
        data = DatasetDict(train=split["train"], validation=split["test"])
    return data


def choose_samples(data: DatasetDict, args: SourceArguments, seed: int) -> DatasetDict:
    """
    At most `max_train_samples` and `max_eval_samples` shuffled rows of the splits, the training rows without those of
    `exclude_train_names`.

    Raises:
        ValueError: if `exclude_train_names` matches no training image or all of them, or their names are not known.
    """
    if args.exclude_train_names is not None and "train" in data:
        kept = exclude_names(data["train"], args.image_column_name, args.exclude_train_names)
        data = DatasetDict({**data, "train": kept})
    chosen = {}
    for split, most in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if split not in data:  # there is none to train on
            continue
        rows = data[split]
        chosen[split] = rows if most is None else rows.shuffle(seed=seed).select(range(min(most, len(rows))))
    return DatasetDict(chosen)


def check_pattern(pattern: str | None):
    """Raise a `ValueError` if `--exclude_train_names` is given and is no regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"--exclude_train_names must be a regular expression, got {pattern!r}: {error}") from error


def exclude_names(rows: Dataset, image_column: str, pattern: str) -> Dataset:
    """
    The rows in whose image's file name, without folders, the regular expression is not found.

    Raises:
        ValueError: if the expression is found in no name or in all of them, or an image has no name.
    """
    names = file_names(rows, image_column)
    unnamed = next((index for index, name in enumerate(names) if not name), None)
    if unnamed is not None:
        raise ValueError(
            f"--exclude_train_names needs the file names of the training images, but column {image_column!r} has none "
            f"for training sample {unnamed}"
        )
    kept = [index for index, name in enumerate(names) if not re.search(pattern, name)]
    if len(kept) in (0, len(names)):
        which = "all" if not kept else "none"
        raise ValueError(
            f"--exclude_train_names must match some of the training images' file names, got {pattern!r}, which matches "
            f"{which} of {len(names)}, such as {names[:3]}"
        )
    return rows.select(kept)


def file_names(rows: Dataset, image_column: str) -> list[str | None]:
    """The name of each row's image file, without its folders; None where only the image's content is known."""
    images = rows.select_columns([image_column]).cast_column(image_column, Image(decode=False)).with_format("arrow")
    names = []
    for batch in images.iter(batch_size=1000):
        paths = pyarrow.compute.struct_field(batch[image_column], "path").to_pylist()
        # Files in archives are written as zip://folder/name.png::archive.zip.
        names += [path and re.split(r"[/\\]", path.split("::")[0])[-1] for path in paths]
    return names


def by_split(train: str | None, validation: str | None) -> dict[str, str]:
    """What is given of each split."""
    return {split: value for split, value in (("train", train), ("validation", validation)) if value is not None}


def name_labels(labels: list[str]) -> dict[str, dict]:
    """`id2label` and `label2id` of a configuration."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def has_head(config: PreTrainedConfig, heads: Sequence[str]) -> bool:
    """Whether a checkpoint's head is one of the given kinds; one that does not say what it is has any."""
    architectures = config.architectures or heads
    return any(head in architecture for head in heads for architecture in architectures)


def known_names(
    args: ModelArguments,
    heads: Sequence[str],
    only_evaluates: bool = False,
    resumed: tuple[Path, Sequence[str]] | None = None,
) -> KnownNames | None:
    """
    The classes of the weights that the run starts or goes on from; None if they have no head for the task.

    Args:
        args: Which checkpoint to start from.
        heads (`Sequence[str]`): What the names of classes with a head for the task have in them.
        only_evaluates (`bool`): Whether `--model_name_or_path` is evaluated, and nothing is trained.
        resumed (`tuple[Path, Sequence[str]]`, *optional*): The checkpoint that the run goes on from, and its classes.

    Raises:
        ValueError: if a checkpoint without such a head is to be evaluated.
    """
    if resumed is not None:
        return KnownNames(resumed[1], f"the checkpoint {resumed[0]}", only_evaluates)
    if args.model_name_or_path is None:
        return None
    config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **args.hub_arguments)
    source = f"the checkpoint {args.model_name_or_path}"
    if not has_head(config, heads):
        if only_evaluates:
            raise ValueError(f"{source} is of {config.architectures}: to evaluate, it must be one {' or '.join(heads)}")
        return None
    names = names_of(config, source)
    return KnownNames(names, source, only_evaluates, args.ignore_mismatched_sizes) if names else None


def names_of_run(model_args: ModelArguments, heads: Sequence[str], args: LoopArguments) -> KnownNames | None:
    """The classes of the weights that a run of the loop starts from, goes on from, or evaluates; as [`known_names`]."""
    checkpoint = None
    if args.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint, announce=False)
    names = None if checkpoint is None else TrainingState.load(checkpoint).class_names
    return known_names(
        model_args,
        heads,
        only_evaluates=args.eval_only and (names is not None or args.resume_from_checkpoint is None),
        resumed=None if names is None else (checkpoint, names),
    )


def load_model(
    args: ModelArguments,
    labels: list[str],
    model_class: type[PreTrainedModel],
    auto_class: type,
    processor,
    **fields: Any,
) -> tuple[PreTrainedModel, Any]:
    """
    Model with a head for the labels, and its image processor.

    Args:
        args: What to load; without a checkpoint the weights are random.
        labels (`list[str]`): Names of the classes.
        model_class, auto_class (`type`): To make a new model by, and to load a checkpoint by, whoever's it is.
        processor: Of a new model.
        fields: Fields of the configuration, which `--config_overrides` may change.

    Raises:
        ValueError: if the checkpoint has a head for other classes, or for these in another order, and
            `--ignore_mismatched_sizes` is not given.
    """
    fields = {**name_labels(labels), **fields}
    if args.model_name_or_path is None:
        settings = {**fields, **(args.config_overrides or {})}
        return args.choose_attention(model_class(ClusTRConfig.from_variant(args.variant, **settings))), processor
    saved = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **args.hub_arguments)
    heads = [model_class.__name__.removeprefix("ClusTR")]
    model = load_weights(args, labels, heads, auto_class, args.override(saved, **fields), saved)
    return args.choose_attention(model), args.load_processor()


def load_weights(
    args: ModelArguments,
    labels: list[str],
    heads: Sequence[str],
    auto_class: type,
    config: PreTrainedConfig,
    saved: PreTrainedConfig,
) -> PreTrainedModel:
    """
    The checkpoint's weights in a model of another configuration, with a new head where that is for other classes.

    Args:
        args: Which checkpoint.
        labels (`list[str]`): Names of the classes.
        heads (`Sequence[str]`): As in [`has_head`].
        auto_class (`type`): To load it by.
        config, saved (`PreTrainedConfig`): The model's, and the checkpoint's.
    """
    source = f"the checkpoint {args.model_name_or_path}"
    warn_of_changed_weights(Path(args.model_name_or_path))
    names = names_of(saved, source) if has_head(saved, heads) else []
    is_other = bool(names) and names != labels and not (are_placeholders(names) and len(names) == len(labels))
    if is_other and (not args.ignore_mismatched_sizes or set(names) == set(labels)):
        raise ValueError(KnownNames(names, source).refusal(labels))
    try:
        with naming_unreadable_weights("--model_name_or_path", args.model_name_or_path):
            model = auto_class.from_pretrained(
                args.model_name_or_path,
                config=config,
                ignore_mismatched_sizes=args.ignore_mismatched_sizes,
                **args.hub_arguments,
            )
    except RuntimeError as error:
        if FLAG.removeprefix("--") not in str(error):
            raise
        raise ValueError(
            f"weights of {source} differ in shape from the model's, of {len(labels)} classes: {FLAG} makes them anew"
        ) from error
    # Other classes of the same number: the shapes do not give them away.
    return replace_head(model, labels) if is_other and len(names) == len(labels) else model


def replace_head(model: PreTrainedModel, labels: list[str]) -> PreTrainedModel:
    """A model with new random weights wherever their shapes depend on the number of classes."""
    fields = model.config.to_dict()
    fields.update({name: None for name in ("semantic_class_weights",) if name in fields})
    larger = type(model.config).from_dict({**fields, **name_labels([*labels, "one more"])})
    shapes = {name: weight.shape for name, weight in type(model)(larger).state_dict().items()}
    kept = {name: weight for name, weight in model.state_dict().items() if weight.shape == shapes[name]}
    fresh = type(model)(model.config).to(model.dtype)
    fresh.load_state_dict(kept, strict=False)
    return fresh
