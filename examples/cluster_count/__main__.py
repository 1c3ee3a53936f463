# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Runs this folder as a command: `python examples/cluster_count`."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the packages this one imports

from cluster_count.command import main


if __name__ == "__main__":
    main()
