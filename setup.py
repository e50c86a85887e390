"""Builds the extensions; everything else about the package is in pyproject.toml.

An extension that does not compile is left out, with a warning: the package then works with what is
there (SOFTXENT_REQUIRE_EXTENSIONS=1 makes it an error, for those who build wheels).
SOFTXENT_LEVELS=v3, or several with commas, builds kernels for these instruction set levels only.
"""

import glob
import multiprocessing
import os
import platform
import sys

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.sdist import sdist

WALK = "src/softxent/backends/cython/"
POSIX = os.name == "posix"
# No -ffast-math nor any part of it that reorders sums, and none of it at the link: see
# CONTRIBUTING.md, "Flags".
# Loops over lanes that became memset and memcpy would be `rep` instructions: 30 cycles a start.
COMMON = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
          "-fno-tree-loop-distribute-patterns",
          # Nothing of one extension can be linked to another's: tests/test_objects.py.
          "-fvisibility=hidden"]
# Where Cython says inline, it is meant: an exp that is called is four times as slow.
INLINE = "-DCYTHON_INLINE=__inline__ __attribute__((__always_inline__, __unused__))"
# -march names of the levels need gcc 11 or clang 12; single features do not.
V2 = ["-msse3", "-mssse3", "-msse4.1", "-msse4.2", "-mpopcnt"]
V3 = [*V2, "-mavx", "-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe"]
V4 = [*V3, "-mavx512f", "-mavx512cd", "-mavx512vl", "-mavx512bw", "-mavx512dq",
      "-mprefer-vector-width=512"]
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
LEVELS = {"v2": V2, "v3": V3, "v4": V4} if X86 and POSIX else {"generic": []}
WANTED = os.environ.get("SOFTXENT_LEVELS", "").replace(",", " ").split() or list(LEVELS)
if not set(WANTED) <= set(LEVELS):
    sys.exit(f"SOFTXENT_LEVELS must be some of {', '.join(LEVELS)} here, got {', '.join(WANTED)}")
LEVELS = {level: LEVELS[level] for level in WANTED}


def extension(name: str, sources: list[str], flags: list[str], depends: list[str]) -> Extension:
    """Describe one extension module of the package."""
    posix = [*COMMON, INLINE, *flags, "-pthread"]
    return Extension(
        f"softxent.{name}",
        sources,
        include_dirs=["src/softxent", WALK, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=posix if POSIX else ["/O2", "/fp:precise"],
        extra_link_args=["-pthread"] if POSIX else [],
        depends=depends,
    )


headers = [WALK + name + ".h" for name in (
    "call", "elementary", "exp_block", "exp_block_of", "lanes", "sixteen", "sixteen_lanes",
    "vectors")]
walk_parts = [*sorted(glob.glob(WALK + "*.pxi")), *headers, "src/softxent/_control.h"]
extensions = [
    # These first: each takes as long as all others, which then fill what they leave of the cores.
    *(extension(f"backends.cython._walk_{level}", [f"{WALK}_walk_{level}.pyx"], flags, walk_parts)
      for level, flags in LEVELS.items()),
    extension("_native", ["src/softxent/_native.pyx", "src/softxent/_pool.c"], [],
              ["src/softxent/_pool.h", "src/softxent/_memory.h", "src/softxent/_control.h"]),
    extension("_ready", ["src/softxent/_ready.pyx"], [],
              ["src/softxent/_ready.h", "src/softxent/_control.h", *headers]),
    extension("kernels", ["src/softxent/kernels.pyx"], [],
              ["src/softxent/kernels.pxd", "src/softxent/_control.h", *headers]),
    extension("backends.cython._bind", [WALK + "_bind.pyx"], [],
              headers),
]
extensions = cythonize(
    extensions,
    # Side by side where processes fork: elsewhere each would run this file again.
    nthreads=(os.cpu_count() or 1) if multiprocessing.get_start_method() == "fork" else 0,
    build_dir="build/cython",
    include_path=[WALK],
    compiler_directives={"language_level": "3", "boundscheck": False, "wraparound": False,
                         "cdivision": True, "initializedcheck": False},
)
for built in extensions:
    # cythonize() forgets `optional`.
    built.optional = not os.environ.get("SOFTXENT_REQUIRE_EXTENSIONS")


class SourceDistribution(sdist):
    """An sdist that builds and tests: cythonize() hides the sources behind what it made of them."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Add what setuptools does not find by itself."""
        found = {path for pattern in ("src/**/*.pyx", "src/**/*.pxd", "src/**/*.pxi",
                                      "src/**/*.h", "src/softxent/_pool.c", "tests/*",
                                      "benchmarks/**", "docs/**", "*.md")
                 for path in glob.glob(pattern, recursive=True)
                 if os.path.isfile(path) and "__pycache__" not in path}
        super().make_release_tree(base_dir, sorted(found.union(files)))


setup(ext_modules=extensions, cmdclass={"sdist": SourceDistribution},
      options={"build_ext": {"parallel": os.cpu_count() or 1}})
