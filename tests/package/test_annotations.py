"""The public API has annotations of all parameters and return values, and type checkers find its module aliases."""

import importlib
import inspect
import pkgutil
import re

import clustr_hf
from clustr_hf import remote_code


# Modules without annotations: a script, a compiled library, and functions in Triton's language.
NOT_CHECKED = re.compile(r"__main__|_clustering_kernel$|triton_kernels|triton_tiles|hub_kernel")


def public_functions(module):
    """Name and function of everything public that a module defines, including methods of classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for attribute, method in vars(value).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                is_ours = inspect.isfunction(method) and method.__module__ == module.__name__
                if is_ours and not attribute.startswith("_") and method.__name__ == attribute:
                    yield f"{name}.{attribute}", method


def test_public_functions_are_annotated():
    missing = []
    for found in pkgutil.walk_packages(clustr_hf.__path__, f"{clustr_hf.__name__}."):
        if NOT_CHECKED.search(found.name):
            continue
        for name, function in public_functions(importlib.import_module(found.name)):
            signature = inspect.signature(inspect.unwrap(function))
            annotations = {
                key: value.annotation for key, value in signature.parameters.items() if key not in ("self", "cls")
            }
            annotations["return"] = signature.return_annotation
            missing += [f"{found.name}.{name}: {key}" for key, value in annotations.items() if value is signature.empty]
    assert missing == []


def test_modules_of_remote_code_are_aliases_in_the_package():
    for _, name, _ in pkgutil.iter_modules(remote_code.__path__):
        alias = importlib.import_module(f"clustr_hf.{name}")
        assert alias is getattr(clustr_hf, name) is importlib.import_module(f"{remote_code.__name__}.{name}")
    former = clustr_hf.modeling_clustr_detection
    assert former.ClusTRForInstanceSegmentation is clustr_hf.ClusTRForInstanceSegmentation
    assert former.ClusTRForObjectDetection is clustr_hf.ClusTRForObjectDetection
    assert all(hasattr(clustr_hf, name) for name in clustr_hf.__all__)
