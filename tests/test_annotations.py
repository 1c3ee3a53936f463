"""The public API for type checkers: annotations of all parameters and return values, and the paths of aliases."""

import importlib
import inspect
import pkgutil
import typing

import pytest

import clustr_hf
from clustr_hf import convert_checkpoint, loading, metrics, publish, remote_code, visualization


MODULES = [clustr_hf, convert_checkpoint, loading, metrics, publish, visualization]
MODULES += [
    importlib.import_module(f"{remote_code.__name__}.{name}")
    for _, name, _ in pkgutil.iter_modules(remote_code.__path__)
    if "triton_kernels" not in name  # written in Triton's language
]


def public_functions(module):
    """Name and function of everything public that this package defines, methods of classes included."""
    for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
        value = getattr(module, name)
        if getattr(value, "__module__", "").split(".")[0] != "clustr_hf":
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for attribute, method in vars(value).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                is_ours = inspect.isfunction(method) and method.__module__.startswith("clustr_hf")
                if is_ours and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", method


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_functions_are_annotated(module):
    missing = []
    for name, function in public_functions(module):
        function = inspect.unwrap(function)
        typing.get_type_hints(function)  # every name in an annotation exists
        signature = inspect.signature(function)
        parameters = [value for key, value in signature.parameters.items() if key not in ("self", "cls")]
        missing += [f"{name}: {value.name}" for value in parameters if value.annotation is value.empty]
        missing += [f"{name}: return" for _ in [0] if signature.return_annotation is signature.empty]
    assert missing == []


def test_modules_of_remote_code_are_aliases_in_the_package():
    for _, name, _ in pkgutil.iter_modules(remote_code.__path__):
        alias = importlib.import_module(f"clustr_hf.{name}")
        assert alias is getattr(clustr_hf, name) is importlib.import_module(f"{remote_code.__name__}.{name}")
    former = clustr_hf.modeling_clustr_detection
    assert former.ClusTRForInstanceSegmentation is clustr_hf.ClusTRForInstanceSegmentation
    assert former.ClusTRForObjectDetection is clustr_hf.ClusTRForObjectDetection
    for name in clustr_hf.__all__:
        assert hasattr(clustr_hf, name)
