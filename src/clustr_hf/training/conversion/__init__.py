# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Conversion of pretrained grid backbones with data: convert, fit the attention to the source's, evaluate every step, and
write a repository whose card says where the weights come from.
"""

from .arguments import ConversionArguments
from .command import convert


__all__ = ["ConversionArguments", "convert"]
