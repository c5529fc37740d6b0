"""The part of the build that pyproject.toml cannot say: own kernels in C, for processors with AMX.

Where no compiler is found for them the install goes on without them, and torch computes.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

KERNELS = Path("runtime/native")
FLAGS = "-std=c11 -O3 -g0 -pthread -fvisibility=hidden"
PROCESSOR = "-mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8"


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            self.warn(f"{ext.name} is left out: {error}")
            self.extensions.remove(ext)


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            "jitney.runtime.native.kernels",
            sources=sorted(map(str, KERNELS.glob("*.c"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            extra_compile_args=f"{FLAGS} {PROCESSOR}".split(),
            libraries=["m"],
            py_limited_api=True,
        )
    ],
)
