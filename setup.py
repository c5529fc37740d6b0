"""The part of the build that pyproject.toml cannot say: what is written in C. Own kernels, for processors with AMX, and
the thread that writes to sockets.

Where no compiler is found for them the install goes on without them: torch computes, and the event loop writes.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

KERNELS = Path("runtime/native")
SENDER = "streaming/sender.c"
FLAGS = "-std=c11 -O3 -g0 -pthread -fvisibility=hidden"
PROCESSOR = "-mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8"


class BuildIfPossible(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            self.warn(f"{ext.name} is left out: {error}")
            self.extensions = [other for other in self.extensions if other is not ext]


setup(
    cmdclass={"build_ext": BuildIfPossible},
    ext_modules=[
        Extension(
            "jitney.runtime.native.kernels",
            sources=sorted(map(str, KERNELS.glob("*.c"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            extra_compile_args=f"{FLAGS} {PROCESSOR}".split(),
            libraries=["m"],
            py_limited_api=True,
        ),
        Extension(
            "jitney.streaming._sender",
            sources=[SENDER],
            extra_compile_args=FLAGS.split(),
            py_limited_api=True,
        ),
    ],
)
