# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Lists of names, such as class names, in messages and on cards; long lists are shortened."""

from collections.abc import Iterable


MAX_NAMES = 20


def join_names(names: Iterable[object]) -> str:
    """The names, separated by commas; if there are more than `MAX_NAMES`, only the first ones."""
    names = list(map(str, names))
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def shorten(names: Iterable[str]) -> str:
    """The names as Python prints a list; if there are more than `MAX_NAMES`, only the first ones and their number."""
    names = list(names)
    if len(names) <= MAX_NAMES:
        return str(names)
    return f"[{', '.join(map(repr, names[: MAX_NAMES // 2]))}, ...] ({len(names)} names)"
