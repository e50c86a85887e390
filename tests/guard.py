"""Arrays beside memory that may not be touched. Usable without pytest: children import it."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Memory between two pages whose reading or writing is the end of the process."""

    def __init__(self, n_bytes: int) -> None:
        self.n = max(-(-n_bytes // PAGE), 1) * PAGE
        self.map = mmap.mmap(-1, self.n + 2 * PAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for at in (0, PAGE + self.n):
            assert _libc.mprotect(ctypes.c_void_p(self.start + at), PAGE, 0) == 0

    def place(self, array: np.ndarray, at_end: bool) -> np.ndarray:
        """Return the same array, its first or last byte beside a guard; signs of strides kept."""
        assert array.nbytes <= self.n
        first = self.n - array.nbytes if at_end else 0
        order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
        dense = np.ndarray([array.shape[i] for i in order], array.dtype, self.map, PAGE + first)
        view = dense.transpose(np.argsort(order))
        view = view[(..., *(slice(None, None, -1 if s < 0 else 1) for s in array.strides))]
        view[...] = array
        return view


class Places:
    """Guarded memory by name, made anew when it is too small."""

    def __init__(self) -> None:
        self.memory: dict[str, Guarded] = {}

    def place(self, name: str, array: np.ndarray, at_end: bool) -> np.ndarray:
        """Place `array` where whatever had this name lay."""
        if name not in self.memory or self.memory[name].n < array.nbytes:
            self.memory[name] = Guarded(2 * array.nbytes)
        return self.memory[name].place(array, at_end)
