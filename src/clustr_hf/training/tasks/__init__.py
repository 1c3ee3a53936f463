# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""The tasks of the paper, one folder per task: data, model, transforms, evaluation and the task itself."""
