# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tasks of the paper: data, transforms, evaluation and the task itself, in a folder each."""
