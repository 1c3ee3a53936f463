# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Runs the command of `examples/benchmark/` from its earlier path."""

from benchmark.command import main


if __name__ == "__main__":
    main()
