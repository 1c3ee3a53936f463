# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Weights of other models as weights of ClusTR.

`authors.py` renames the weights of the authors' code. `grid_backbones.py` converts PVTv2 and SegFormer, which attend to
a grid, and `image_processors.py` their image processors; `calibration.py` fits the converted attention to the source's.
"""

from .authors import convert_checkpoint, convert_state_dict, infer_config, load_authors_checkpoint
from .calibration import CalibrationReport, calibrate
from .grid_backbones import convert_grid_backbone, load_grid_source
from .image_processors import convert_image_processor


__all__ = [
    "CalibrationReport",
    "calibrate",
    "convert_checkpoint",
    "convert_grid_backbone",
    "convert_image_processor",
    "convert_state_dict",
    "infer_config",
    "load_authors_checkpoint",
    "load_grid_source",
]
