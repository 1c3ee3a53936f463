# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
Everything that a Hub repository carries beside its weights, and nothing else.

`publish` copies files of this folder into a repository, where `trust_remote_code=True` runs them without this package.
The folder is therefore flat, and its files import each other by `from .name import x` only.
"""
