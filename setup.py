"""Builds the compiled clustering kernel, which is skipped without a compiler. Everything else is in setup.cfg."""

import os
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):
    """
    Builds a plain C library for ctypes. It needs no headers of Python or torch, works with all versions of both, and
    its name contains no version (`LIBRARY_FILE` in clustering_kernel_clustr.py).
    """

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + (".dll" if os.name == "nt" else ".so")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols  # the default on Windows adds `PyInit_...`


class AnyPythonWheel(bdist_wheel):
    """A wheel for one platform and every version of Python 3 that `python_requires` allows."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"bdist_wheel": AnyPythonWheel, "build_ext": BuildLibrary},
    ext_modules=[
        Extension(
            "clustr_hf._clustering_kernel",
            sources=sorted(glob("src/clustr_hf/csrc/*.cpp")),
            depends=sorted(glob("src/clustr_hf/csrc/*")),
            # No -march: processor features are selected at run time. -ffp-contract: products are rounded alike in all
            # places. -Wno-...: GCC warns about vector arguments and undefined vectors in its own headers.
            extra_compile_args=[
                "-O3",
                "-std=c++17",
                "-fopenmp",
                "-pthread",
                "-ffp-contract=fast",
                "-Wno-psabi",
                "-Wno-uninitialized",
            ],
            extra_link_args=["-fopenmp", "-pthread"],
            language="c++",
            optional=True,
        )
    ],
)
