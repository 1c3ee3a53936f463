"""The compiled clustering kernel; all else is in setup.cfg. Without a compiler the package installs without it."""

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):
    """
    Builds a plain C library that ctypes loads: it needs neither Python nor torch headers, fits all their versions, and
    is named without one (`LIBRARY_FILE` in clustering_kernel_clustr.py).
    """

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + (".dll" if os.name == "nt" else ".so")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols  # on Windows, an extension would have to export `PyInit_...`


class AnyPythonWheel(bdist_wheel):
    """A wheel for one platform and every version of Python 3 that `python_requires` admits."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"bdist_wheel": AnyPythonWheel, "build_ext": BuildLibrary},
    ext_modules=[
        Extension(
            "clustr_hf._clustering_kernel",
            sources=["src/clustr_hf/csrc/clustering_kernel.cpp"],
            depends=[f"src/clustr_hf/csrc/clustering_kernel_{part}" for part in ("sweeps.inc", "threads.h")],
            # Processor features are chosen at run time. Contraction: a product is rounded alike wherever it is needed.
            # GCC warns of its own headers: of vectors as arguments, and of vectors that are left undefined on purpose.
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
