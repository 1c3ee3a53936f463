"""Runs this folder as a command: `python examples/ablations`."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ablations.command import main


if __name__ == "__main__":
    main()
