"""The compiled clustering kernel; all else is in setup.cfg. Without a compiler the package installs without it."""

from setuptools import Extension, setup


# GCC warns of its own headers: of vectors as arguments, and of vectors that are left undefined on purpose.
QUIET = ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]

setup(
    ext_modules=[
        # A plain C library that ctypes loads: it needs neither Python nor torch headers, and fits all their versions.
        Extension(
            "clustr_hf._clustering_kernel",
            sources=["src/clustr_hf/clustering_kernel.cpp"],
            depends=["src/clustr_hf/clustering_kernel_sweeps.inc"],
            # Processor features are chosen at run time. Contraction: a product is rounded alike wherever it is needed.
            extra_compile_args=[
                "-O3",
                "-std=c++17",
                "-fopenmp",
                "-ffp-contract=fast",
                "-Wno-psabi",
                "-Wno-uninitialized",
            ],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
    ]
)
