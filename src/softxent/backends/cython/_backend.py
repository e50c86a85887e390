"""Chooses the walk that the processor can run, and binds calls to it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from softxent._machine import usable_levels
from softxent._threads import native
from softxent.backends._contract import BLOCK, Backend, Call, Key, Native, Op

_PREFIX = "softxent.backends.cython."
#: Operations whose rows can be cut.
_CUT = (Op.CROSS_ENTROPY, Op.FOCAL, Op.LOGSUMEXP, Op.SOFTMAX, Op.LOG_SOFTMAX)


class Task:
    """A call bound to a compiled walk, which runs on the native pool."""

    def __init__(self, bound: Native, units: int = 0, has_map: bool = False) -> None:
        self.native: Native | None = bound
        self.units = units
        self.has_map = has_map

    @property
    def refused(self) -> bool:
        """Whether a walk met a probability target that it refuses."""
        return bool(self.native is not None and self.native.owner[0].refused)

    @property
    def out_of_memory(self) -> bool:
        """Whether a walk found no memory for itself."""
        return bool(self.native is not None and self.native.owner[0].no_memory)

    def __call__(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Not used: where there are walks, there is the pool."""
        raise NotImplementedError("compiled walks run on the native pool")


@functools.cache
def _load(level: str) -> tuple[ModuleType | None, str]:
    """Import the walk of one level: the module and "", or None and why not."""
    try:
        importlib.import_module(_PREFIX + "_bind")
        return importlib.import_module(f"{_PREFIX}_walk_{level}"), ""
    except ModuleNotFoundError:
        return None, f"not built for {level}"
    except ImportError as error:
        return None, f"broken: {error}"


@functools.cache
def _binder(
    level: str,
) -> tuple[Callable[[Call], Any], dict[int, int], dict[int, int], Callable[[int], int]]:
    """Return what binds calls; kernels by item size, of whole and of cut rows; arguments' bytes."""
    module, reason = _load(level)
    assert module is not None, reason
    bound = importlib.import_module(_PREFIX + "_bind").Bound
    return bound, module.kernels(), module.split_kernels(), module.split_bytes


class Cython(Backend):
    """The compiled walks."""

    name = "cython"
    pairs = True

    def availability(self) -> str:
        """Return "available", or why no level can be used."""
        level, reason = self._choose()
        return "available" if level else reason

    def _choose(self) -> tuple[str, str]:
        # The level, or "" and why none.
        if native() is None:
            return "", "its extensions were not built, or cannot be imported (no C compiler?)"
        reasons = []
        for level in usable_levels():
            module, reason = _load(level)
            if module is not None:
                return level, ""
            reasons.append(reason)
        broken = [reason for reason in reasons if reason.startswith("broken")]
        wanted = " or ".join(usable_levels()) or "this processor"
        return "", broken[0] if broken else (
            f"its kernels were not built for {wanted} (no C compiler? other SOFTXENT_LEVELS?)")

    def isa(self) -> str:
        """Return the level in use."""
        return self._choose()[0]

    def supports(self, key: Key) -> str | None:
        """Return None where there is a walk: it serves every key."""
        level, reason = self._choose()
        return None if level else reason

    def kernel(self, key: Key, isa: str, units: int) -> tuple[int, int] | None:
        """Return the walk's address, and the bytes of its arguments if it cuts rows."""
        _, kernels, split_kernels, split_bytes = _binder(isa)
        size = 8 if key.dtype == "float64" else 4
        return (split_kernels[size], split_bytes(units)) if units else (kernels[size], 0)

    def cuts(self, key: Key) -> bool:
        """Return whether a row's value is its target's alone, or a piece's; classes are near."""
        return key.op in _CUT and key.order == "C" and key.targets in ("", "classes") and not (
            key.temperature or key.options)

    def bind(self, call: Call, isa: str, cut: bool = False) -> Task:
        """Return the task that evaluates `call` at level `isa`."""
        bound, kernels, split_kernels, split_bytes = _binder(isa)
        arguments = bound(call)
        size = 8 if call.is_wide else 4
        if not cut:
            return Task(Native(kernels[size], arguments.address, (arguments,)))
        units = call.n_rows * -(-call.n_classes // BLOCK)
        # int64, for its alignment; the first is the call's address.
        memory = np.empty(-(-split_bytes(units) // 8), np.int64)
        memory[0] = arguments.address
        return Task(Native(split_kernels[size], memory.ctypes.data, (arguments, memory)), units,
                    call.out_map is not None)


BACKEND = Cython()
