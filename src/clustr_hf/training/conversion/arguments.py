# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command line of a conversion."""

from dataclasses import dataclass, field
from typing import Any

from ...devices import default_device, parse_device
from ..models import ModelArguments, parse_overrides


def _same_help(name: str) -> dict[str, str]:
    return dict(ModelArguments.__dataclass_fields__[name].metadata)


@dataclass
class ConversionArguments:
    """The model to convert, the images of the calibration, and the repository to write."""

    model_name_or_path: str = field(
        metadata={"help": "PVTv2 or SegFormer to convert: a folder, or an id on the Hub such as OpenGVLab/pvt_v2_b2."}
    )
    output_dir: str = field(metadata={"help": "Folder of the repository to write."})
    config_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": (
                "Fields of ClusTR's configuration to set, as a JSON object, for example reduction_ratios. Default: two "
                "scales per stage, with r^2 and r^2 / 4 tokens per cluster for the source's reduction by r."
            )
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Image size in pixels, for a new image processor. Default: the source's."}
    )
    image_dir: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder with images without labels for the calibration, at any depth. Default: the training images of "
                "the data set."
            )
        },
    )
    num_calibration_images: int = field(
        default=256,
        metadata={
            "help": (
                "Number of images of the calibration, chosen at random; a fifth of them only measures its errors. 0 "
                "converts without calibration."
            )
        },
    )
    transfer_steps: int = field(
        default=200,
        metadata={"help": "Number of steps of the attention transfer; 0 fits keys and values by least squares only."},
    )
    transfer_batch_size: int = field(default=16, metadata={"help": "Number of images in a step of the transfer."})
    transfer_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the transfer."})
    train_queries: bool = field(
        default=False, metadata={"help": "Whether the transfer also trains the query projections."}
    )
    eval_batch_size: int = field(default=64, metadata={"help": "Number of images in an evaluation batch."})
    license: str | None = field(
        default=None,
        metadata={
            "help": (
                "License of the source's weights, as named on the Hub. Default: what the card of the source says, or "
                "that of the released weights of a source on the Hub."
            )
        },
    )
    device: str = field(default_factory=default_device, metadata={"help": "Device, such as cpu or cuda:0."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice and the order of the images."})
    cache_dir: str | None = field(default=None, metadata=_same_help("cache_dir"))
    model_revision: str = field(default="main", metadata=_same_help("model_revision"))
    token: str | None = field(default=None, metadata=_same_help("token"))

    def __post_init__(self):
        self.config_overrides = parse_overrides(self.config_overrides)
        for name in ("num_calibration_images", "transfer_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("transfer_batch_size", "transfer_learning_rate", "eval_batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be positive, got {getattr(self, name)}")
        self.device = parse_device(self.device)

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that locate the source."""
        return {"cache_dir": self.cache_dir, "token": self.token, "revision": self.model_revision}

    @property
    def source_arguments(self) -> ModelArguments:
        """The source as the model of a training."""
        return ModelArguments(
            model_name_or_path=self.model_name_or_path,
            cache_dir=self.cache_dir,
            token=self.token,
            model_revision=self.model_revision,
        )
