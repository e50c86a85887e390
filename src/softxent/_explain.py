"""`explain`: the plan that a call would get."""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import DTypeLike

from softxent._plan import Plan, select
from softxent._problem import DTYPES, dtype_name
from softxent.backends._contract import Key
from softxent.losses import LOSSES

_ORDERS = ("C", "F", "strided")


def explain(
    shape: tuple[int, ...],
    dtype: DTypeLike = "float32",
    *,
    order: str = "C",
    loss: str = "cross_entropy",
    targets: str = "classes",
    grad: bool = True,
    grad_out: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Plan:
    """Return the plan of a call, without making it.

    Parameters
    ----------
    shape : tuple of int
        The logits' shape, classes last.
    dtype : {"float32", "float64", "float16", "bfloat16"} or a NumPy dtype
        The logits' dtype.
    order : {"C", "F", "strided"}
        Unit class stride, unit row stride, or neither (as any layout of foreign byte order is).
    loss : str
        The loss's name.
    targets : {"classes", "probabilities"}
        Kind of targets.
    grad : bool
        With the gradient?
    grad_out : bool
        Into a given `grad_out`, apart from the logits?
    backend, n_threads
        As the call would pass them.

    Returns
    -------
    Plan
        The very one the call would use; `print()` it.

    Raises
    ------
    ValueError
        An argument that names nothing.
    BackendUnavailableError
        `backend` cannot be used here.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.explain((1024, 32000), backend="numpy").backend
    'numpy'
    """
    key = key_of(dtype, order, loss, targets, grad)._replace(apart=grad and grad_out)
    shape = tuple(map(operator.index, shape))
    if not shape or min(shape) < 0 or shape[-1] == 0:
        raise ValueError(f"shape must be (..., C) with C >= 1, got {shape}")
    return select(key, math.prod(shape[:-1]), shape[-1], backend, n_threads)


def key_of(dtype: DTypeLike, order: str, loss: str, targets: str, grad: bool) -> Key:
    """Return the key of a call that is described by words; raise for those that name nothing."""
    if dtype == "bfloat16":  # NumPy knows the name only after ml_dtypes has been imported
        name = "bfloat16"
    else:
        try:
            wanted = np.dtype(dtype)
        except TypeError as error:
            raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}") from error
        name = dtype_name(wanted) or wanted.name
        if not wanted.isnative:
            order = "strided"
    for what, value, known in (
        ("dtype", name, DTYPES),
        ("order", order, _ORDERS),
        ("loss", loss, tuple(LOSSES)),
    ):
        if value not in known:
            raise ValueError(f"{what} must be one of {known}, got {value!r}")
    spec = LOSSES[loss]
    if targets not in spec.targets:
        raise ValueError(f"targets of {loss} must be one of {spec.targets}, got {targets!r}")
    return Key(spec.op, name, order, grad, targets)
