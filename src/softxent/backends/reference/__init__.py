"""The NumPy backend: the definition of every result, and the fallback that is always there."""

from __future__ import annotations

from typing import final

from softxent.backends._contract import Backend, Call, Key, Task
from softxent.backends.reference.rows import RowsTask

__all__ = ["BACKEND"]


@final
class NumPyBackend(Backend):
    """Evaluates rows with NumPy's own operations."""

    name = "numpy"
    # Its scratch is counted for the whole process: one range at a time.
    parallel = False

    def availability(self) -> str:
        """Return "available": NumPy is this package's one hard dependency."""
        return "available"

    def supports(self, key: Key) -> str | None:
        """Return None: every operation, dtype and layout is served."""
        return None

    def isa(self) -> str:
        """Return "": NumPy chooses its own instructions."""
        return ""

    def bind(self, call: Call, isa: str, cut: bool = False) -> Task:
        """Return the task that evaluates `call`."""
        return RowsTask(call)


BACKEND = NumPyBackend()
