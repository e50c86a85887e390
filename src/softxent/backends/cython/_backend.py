"""Chooses the walk that the processor can run, and binds calls to it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

from softxent._machine import usable_levels
from softxent.backends._contract import Backend, Call, Key, Native

_PREFIX = "softxent.backends.cython."


class Task:
    """A call bound to a compiled walk."""

    def __init__(self, function: int, call: Call) -> None:
        bound = importlib.import_module(_PREFIX + "_bind").Bound(call)
        self.native: Native | None = Native(function, bound.address, bound)

    def __call__(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Not used: the pool is in the same build as the walks."""
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


class Cython(Backend):
    """The compiled walks."""

    name = "cython"

    def availability(self) -> str:
        """Return "available", or why no level can be used."""
        level, reason = self._choose()
        return "available" if level else reason

    def _choose(self) -> tuple[str, str]:
        # The level, or "" and why none.
        reasons = []
        for level in usable_levels():
            module, reason = _load(level)
            if module is not None:
                return level, ""
            reasons.append(reason)
        broken = [reason for reason in reasons if reason.startswith("broken")]
        return "", broken[0] if broken else "its extensions were not built (no C compiler?)"

    def isa(self) -> str:
        """Return the level in use."""
        return self._choose()[0]

    def supports(self, key: Key) -> str | None:
        """Return None: the walk serves every key."""
        return None

    def bind(self, call: Call) -> Task:
        """Return the task that evaluates `call` at the level in use."""
        module, _ = _load(self.isa())
        assert module is not None, "bound without being available"
        return Task(module.kernels()[call.logits.dtype.newbyteorder("=").name], call)


BACKEND = Cython()
