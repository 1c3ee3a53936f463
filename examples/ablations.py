# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The command of `examples/ablations/` under its earlier path."""

from ablations.command import main


if __name__ == "__main__":
    main()
