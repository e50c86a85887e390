"""The `normalise` that losses use: compiled for simple calls, where there is an extension.

Nothing compiled is loaded with the package: both names below change at the first call. Use them as
this module's attributes.
"""

from __future__ import annotations

import importlib
from typing import Any

from softxent import _problem
from softxent._threads import native


class Ready:
    """A simple call, checked; of this class, which the compiled one replaces, nothing is."""

    key: Any
    hess: Any
    n_rows: int
    n_classes: int

    def plain(self) -> _problem.Problem:
        """Return the Problem that the plain `normalise` makes of the call."""
        raise NotImplementedError

    def run(self, kernel: tuple[int, int], plan: Any, units: int) -> tuple[Any, Any]:
        """Run a kernel; return what `_run.evaluate` returns."""
        raise NotImplementedError


def normalise(*arguments: Any, **options: Any) -> _problem.Problem | Ready:
    """Check a call and describe it: as `_problem.normalise`."""
    names = globals()
    try:
        compiled = importlib.import_module("softxent._ready") if native() else None
    except ImportError:  # broken: calls take the plain way
        compiled = None
    if compiled is None:
        names["normalise"] = _problem.normalise
    else:
        names.update(Ready=compiled.Ready, normalise=compiled.normalise)
    return normalise(*arguments, **options)
