"""The `normalise` that losses use: compiled for simple calls, where there is an extension.

Nothing compiled is loaded with the package: the public names below change at the first call. Use
them as this module's attributes.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent import _problem
from softxent._plan import Plan
from softxent._threads import native


class Ready:
    """A simple call, checked; of this class, which the compiled one replaces, nothing is."""

    hess: Any

    def plan(self, requested: str | None, n_threads: int | None) -> Plan:
        """Return the plan that `_plan.select` makes of the call."""
        raise NotImplementedError

    def plain(self) -> _problem.Problem:
        """Return the Problem that the plain `normalise` makes of the call."""
        raise NotImplementedError

    def run(self, plan: Plan) -> tuple[Any, Any]:
        """Run the plan's kernel; return what `_run.evaluate` returns."""
        raise NotImplementedError


def normalise(*arguments: Any, **options: Any) -> _problem.Problem | Ready:
    """Check a call and describe it: as `_problem.normalise`."""
    _settle()
    return normalise(*arguments, **options)


def class_numbers(labels: NDArray[Any], n_classes: int) -> NDArray[np.int64] | None:
    """Return labels kept as floats as class numbers; None: some are none, or the array is another.

    Taken are arrays of one axis, of any of NumPy's own float dtypes.
    """
    _settle()
    return class_numbers(labels, n_classes)


def _plain_class_numbers(labels: NDArray[Any], n_classes: int) -> NDArray[np.int64] | None:
    if labels.ndim != 1 or labels.dtype.kind != "f":
        return None
    with np.errstate(invalid="ignore"):  # NaN and what is too large: found to differ
        classes = labels.astype(np.int64)  # the kernels' own: no narrower is as fast
    # Negative numbers are the largest of all without their sign.
    valid = (classes == labels).all() and classes.view(np.uint64).max(initial=0) < n_classes
    return classes if valid or not len(classes) else None


def _settle() -> None:
    """Put what serves from now on in this module's names."""
    names = globals()
    try:
        compiled = importlib.import_module("softxent._ready") if native() else None
    except ImportError:  # broken: calls take the plain way
        compiled = None
    if compiled is None:
        names.update(normalise=_problem.normalise, class_numbers=_plain_class_numbers)
    else:
        names.update(Ready=compiled.Ready, normalise=compiled.normalise,
                     class_numbers=compiled.class_numbers)
