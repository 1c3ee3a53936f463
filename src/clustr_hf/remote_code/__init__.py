# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""
The code that is uploaded to the Hub beside the weights, and nothing else.

`publish` copies the files that a model needs into its repository, where `trust_remote_code=True` runs them without this
package. Therefore this folder has no subfolders, and its files import each other by `from .name import x` only.
"""
