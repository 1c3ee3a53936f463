# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Measurements that may fail, with an exception or by ending their process, without ending the benchmark."""

import re
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


# Maximum length of an error message; compilers write pages.
MAX_MESSAGE_LENGTH = 400
# The folders of an absolute path, on Unix and Windows.
PATH_OF_FOLDERS = re.compile(r"(?<![\w/\\])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+")


def in_fresh_process(function: Callable, *args) -> Any:
    """Result of the function in a new process, which does not yet hold the memory of another model."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def attempt(function: Callable, *args) -> tuple[Any, str | None]:
    """Result of the function and `None`; or `None` and the error message, after the traceback was printed."""
    try:
        return function(*args), None
    except Exception as error:
        traceback.print_exc()
        return None, describe_failure(error)


def attempt_in_fresh_process(function: Callable, *args) -> tuple[Any, str | None]:
    """[`attempt`] in a new process, so that a crash of a kernel or compiler leaves this one intact."""
    outcome, crash = attempt(in_fresh_process, attempt, function, *args)
    return (None, crash) if outcome is None else outcome


def describe_failure(error: Exception) -> str:
    """Name and message of an error in one line, without the folders of this machine."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return PATH_OF_FOLDERS.sub("", message)[:MAX_MESSAGE_LENGTH]
