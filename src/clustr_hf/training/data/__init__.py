# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Reading data sets: splits, class names, annotation files, and samples in a reproducible order."""
