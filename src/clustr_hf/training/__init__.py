# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Training and evaluation of ClusTR with Accelerate: one loop, and a task for each head."""
