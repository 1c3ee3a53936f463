# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Configuration of the convolutional teacher."""

from transformers import PreTrainedConfig


class ConvNetConfig(PreTrainedConfig):
    """
    Configuration of a [`ConvNetForImageClassification`].

    Args:
        hidden_sizes (`list[int]`, defaults to `[64, 256, 256]`): Channels of each stage.
    """

    model_type = "clustr_convnet_teacher"

    hidden_sizes: list[int] | tuple[int, ...] = (64, 256, 256)
