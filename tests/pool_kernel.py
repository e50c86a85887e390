"""Builds and binds pool_kernel.c. Usable without pytest: child interpreters import it too."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
UNIT = np.dtype([("visits", np.int32), ("thread", np.int32), ("float_state", np.uint32)])


def build(folder: Path) -> Path | None:
    """Return the compiled library, or None where there is no compiler or no source tree."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    headers = HERE.parent / "src" / "softxent"
    if compiler is None or not (headers / "_control.h").exists():
        return None
    library = folder / "pool_kernel.so"
    command = [compiler, "-O2", "-fPIC", "-shared", f"-I{headers}", "-o", library]
    subprocess.run([*command, HERE / "pool_kernel.c"], check=True)
    return library


class _Args(ctypes.Structure):
    _fields_ = (
        ("units", ctypes.c_void_p),
        ("nanoseconds", ctypes.c_int64),
        ("flush", ctypes.c_int64),
        ("broken", ctypes.c_int64),
        ("quick_thread", ctypes.c_int32),
        ("others", ctypes.c_int32),
    )


class Watched:
    """A run of the kernel: `units` tells what happened to each."""

    def __init__(
        self,
        library: str | Path,
        n_units: int,
        *,
        seconds: float = 0.0,
        flush: bool = False,
        broken: int = -1,
        quick_thread: int = 0,
    ) -> None:
        self.units = np.zeros(n_units, UNIT)
        address = self.units.ctypes.data
        self._args = _Args(address, int(seconds * 1e9), flush, broken, quick_thread)
        self._library = ctypes.CDLL(str(library))
        self.function = ctypes.cast(self._library.watched, ctypes.c_void_p).value
        self.args = ctypes.addressof(self._args)

    def run(self, pool, grain: int = 1, n_threads: int = 2) -> Watched:
        """Run on `pool` (`softxent._native`)."""
        pool.run(self.function, self.args, len(self.units), grain, n_threads)
        return self

    @property
    def complete(self) -> bool:
        """Was every unit done exactly once?"""
        return bool((self.units["visits"] == 1).all())

    @property
    def threads(self) -> set[int]:
        """Who took part."""
        return set(self.units["thread"].tolist()) - {0}

    def set_float_state(self, state: int) -> None:
        """Set the calling thread's."""
        self._library.set_float_state(ctypes.c_uint32(state))
